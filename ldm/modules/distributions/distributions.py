"""The autoencoder's posterior, a Gaussian with diagonal covariance."""

import torch
from torch import Tensor


class DiagonalGaussianDistribution:
    """N(mean, exp(logvar)) from moments (B, 2c, h, w): first c channels of mean, then c of log-variance."""

    def __init__(self, moments: Tensor):
        self.mean, logvar = moments.chunk(2, dim=1)  # (B, c, h, w) each
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std, self.var = torch.exp(0.5 * self.logvar), torch.exp(self.logvar)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Reparametrised sample, (B, c, h, w); gradients reach the moments."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.std * noise

    def mode(self) -> Tensor:
        return self.mean

    def kl(self) -> Tensor:
        """KL divergence from N(0, 1), (B,), summed over channels and pixels."""
        return 0.5 * (self.mean.square() + self.var - 1.0 - self.logvar).flatten(1).sum(dim=1)
