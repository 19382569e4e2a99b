"""The frozen model: autoencoder, diffusion process and samplers."""
