"""How fast this repository trains and draws, measured beside the released loop's work and beside diffusers."""
