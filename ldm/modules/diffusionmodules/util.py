"""Small parts that the U-Net, the autoencoder and the size condition of SDXL share."""

import math
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ldm.public_names import absent_names
from ldm.util import UserError

__getattr__ = absent_names(__name__)

NUM_GROUPS = 32  # of every group normalization of the public models

Groups = int | Mapping[int, int]  # number of groups of all group normalizations, or by number of channels


def normalization(channels: int, num_groups: Groups = NUM_GROUPS, eps: float = 1e-5) -> nn.GroupNorm:
    """Group normalization; UserError if `num_groups` does not divide `channels`."""
    count = num_groups if isinstance(num_groups, int) else num_groups.get(channels, 0)
    if count < 1 or channels % count:
        raise UserError(f"norm_num_groups={num_groups} gives no number of groups that divides a layer of {channels} channels; set it in "
                        "the config to a divisor of every level's width, or to a count for each width, {64: 16, 128: 32}")
    return nn.GroupNorm(count, channels, eps=eps)


def upsample(channels: int) -> nn.Sequential:
    """Double the side by repeating pixels, then smooth with a convolution."""
    return nn.Sequential(OrderedDict(repeat=nn.Upsample(scale_factor=2.0), conv=nn.Conv2d(channels, channels, 3, padding=1)))


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
