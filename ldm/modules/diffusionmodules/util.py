"""Small pieces that U-Net, autoencoder and samplers share."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ldm.public_names import absent_names
from ldm.util import UserError

__getattr__ = absent_names(__name__)

NUM_GROUPS = 32  # of every group normalization of the public models
SMALL_MAP = 1024  # pixels; torch's own limit between the two ways of its kernel for channels last


Groups = int | Mapping[int, int]  # of a model's group normalizations: for all, or by number of channels


class GroupNorm(nn.GroupNorm):
    """torch's; but where its kernel for bfloat16 that lies channels last is ten times slower, the other kernel and two copies."""

    def forward(self, x: Tensor) -> Tensor:
        is_slow = x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.ndim == 4 and x[0, 0].numel() < SMALL_MAP
        if is_slow and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)
        return super().forward(x)


def normalization(channels: int, num_groups: Groups = NUM_GROUPS, eps: float = 1e-5) -> nn.GroupNorm:
    """Group normalization; UserError if `num_groups` does not divide `channels`."""
    count = num_groups if isinstance(num_groups, int) else num_groups.get(channels, 0)
    if count < 1 or channels % count:
        raise UserError(f"norm_num_groups={num_groups} gives no number of groups that divides a layer of {channels} channels; set it in "
                        "the config to a divisor of every level's width, or to a count for each width, {64: 16, 128: 32}")
    return GroupNorm(count, channels, eps=eps)


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
