"""Latent diffusion, Stable Diffusion v1, and Anonymization Prompt Learning on top of it."""
