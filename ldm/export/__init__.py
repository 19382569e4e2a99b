"""A learned prefix as a file for other programs: A1111, Forge, ComfyUI, InvokeAI, diffusers."""
