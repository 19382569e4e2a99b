"""Small pieces that U-Net, autoencoder and samplers share."""

import math

import torch
from torch import Tensor, nn

SMALL_MAP = 1024  # pixels; torch's own limit between the two ways of its kernel for channels last


def norm_groups(channels: int) -> int:
    """Groups of a group normalisation: 32, or in a narrow model fewer, so that at least 4 channels share one.

    Four is what the narrowest layer of Stable Diffusion v1 has (128 channels). The result divides `channels`.
    """
    return max(groups for groups in (1, 2, 4, 8, 16, 32) if channels % groups == 0 and groups <= max(1, channels // 4))


class GroupNorm(nn.GroupNorm):
    """torch's; but where its kernel for bfloat16 that lies channels last is ten times slower, the other kernel and two copies."""

    def forward(self, x: Tensor) -> Tensor:
        is_slow = x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.ndim == 4 and x[0, 0].numel() < SMALL_MAP
        if is_slow and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)
        return super().forward(x)


def normalization(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    return GroupNorm(norm_groups(channels), channels, eps=eps)


def zero_module(module: nn.Module) -> nn.Module:
    """The module with all parameters zero, so that a residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def timestep_embedding(timestep: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoids of the timestep: (B,) -> (B, dim) float32, cosines first; periods from 2 pi to 2 pi max_period."""
    exponent = torch.arange(dim // 2, dtype=torch.float32, device=timestep.device) / (dim // 2)
    angle = timestep.float()[:, None] * torch.exp(-math.log(max_period) * exponent)  # (B, dim / 2)
    return torch.cat([angle.cos(), angle.sin()], dim=1)
