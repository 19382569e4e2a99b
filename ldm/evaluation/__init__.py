"""Metrics of a method, computed from images; nothing here depends on a diffusion model."""
