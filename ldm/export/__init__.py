"""Exports a learned prefix for other programs: A1111, Forge, ComfyUI, InvokeAI, diffusers."""
