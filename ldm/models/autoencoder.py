"""KL autoencoder: image x in [-1, 1] <-> latent with 4 channels and 1/8 of the side (paper section 3.2)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.diffusionmodules.model import Decoder, Encoder
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.public_names import absent_names
from ldm.util import refuse_other_architectures

__getattr__ = absent_names(__name__)

PIXELS_AT_ONCE = 2**19  # two images of 512 px, which take 2 GB in float32; larger batches take more and are no faster


class AutoencoderKL(nn.Module):
    """Latents here are unscaled; LatentDiffusion multiplies by `scale_factor`."""

    def __init__(self, ddconfig: Mapping[str, Any], embed_dim: int, **other):
        super().__init__()
        refuse_other_architectures("AutoencoderKL", other)
        self.embed_dim = embed_dim
        self.encoder = Encoder(**ddconfig)
        self.decoder = Decoder(**ddconfig)
        self.quant_conv = nn.Conv2d(2 * ddconfig["z_channels"], 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, ddconfig["z_channels"], 1)

    def encode(self, image: Tensor) -> DiagonalGaussianDistribution:
        """Posterior over latents (B, embed_dim, H/8, W/8) of an image (B, 3, H, W) in [-1, 1]."""
        parts = image.split(max(1, PIXELS_AT_ONCE // image.shape[-2:].numel()))
        return DiagonalGaussianDistribution(torch.cat([self.quant_conv(self.encoder(part)) for part in parts]))

    def decode(self, latent: Tensor) -> Tensor:
        """Image (B, 3, 8h, 8w), about [-1, 1] but not clamped, of an unscaled latent (B, embed_dim, h, w)."""
        parts = latent.split(max(1, PIXELS_AT_ONCE // (64 * latent.shape[-2:].numel())))  # 8 x 8 pixels per element of a channel
        return torch.cat([self.decoder(self.post_quant_conv(part)) for part in parts])

    def forward(self, image: Tensor, sample_posterior: bool = True) -> tuple[Tensor, DiagonalGaussianDistribution]:
        """Reconstruction of the image, and its posterior."""
        posterior = self.encode(image)
        return self.decode(posterior.sample() if sample_posterior else posterior.mode()), posterior
