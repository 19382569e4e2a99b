"""What the miniature's two face networks share: a residual block, and normalisation statistics for averaged weights."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3 x 3 convolutions around a shortcut, (B, in, H, W) -> (B, out, H / stride, W / stride)."""

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(),
                                  nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer))
        self.shortcut = nn.Sequential() if inner == outer and stride == 1 else nn.Sequential(
            nn.AvgPool2d(stride), nn.Conv2d(inner, outer, 1, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


@torch.no_grad()
def calibrated(net: nn.Module, run: Callable[[int], object], batches: int = 40) -> nn.Module:
    """`net` in evaluation mode, its normalisation statistics measured afresh: run(i) sends training batch i through it.

    Weights that are averaged over training steps have other activations than the weights they were averaged from.
    """
    norms = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None      # a plain mean over the batches
    net.train()
    for step in range(batches):
        run(step)
    return net.eval()
