"""Speed of training and sampling, compared with the work of the released loop and with diffusers."""
