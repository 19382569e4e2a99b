"""Randomly initialised models to compare with diffusers', whose twins are built in ldm/benchmark/diffusers_twin.py."""

import torch
from torch import Tensor, nn


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """The module in eval mode, with random values for the weights that start at zero and the norms that start at one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1 or not parameter.any():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return module.eval().requires_grad_(False)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
