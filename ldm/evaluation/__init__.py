"""What a method is measured by: images in, numbers out; nothing here knows a diffusion model."""
