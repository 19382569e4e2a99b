"""FID and KID between two sets of pictures (paper section 4.1): from the features of each picture to one number.

Both compare the pictures of a model with a prefix with those of the same model without it. The noise is the same on both
sides, which makes the distances smaller than between sets that were drawn independently; both are biased or noisy for few
pictures, so their number belongs beside them. Which features: ldm/evaluation/inception.py.
"""

import numpy as np
import torch
from torch import Tensor, nn

from ldm.util import UserError

BLOCK = 1000  # pictures at once


class _Given(nn.Module):
    """Where torchmetrics has its network: the features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(features: np.ndarray, base: np.ndarray) -> float | None:
    """FID: |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)) of the means m and covariances S of two sets, (N, D) and (N', D).

    In double precision, through torchmetrics' running sums. None if a set has fewer than two pictures.
    """
    if min(len(features), len(base)) < 2:
        return None
    _check(features, base)
    # Imported here because torchmetrics takes seconds, and not everything in this package needs it.
    from torchmetrics.image.fid import FrechetInceptionDistance

    # All features are here: the other devices of a run must not be waited for, they do not compute.
    metric = FrechetInceptionDistance(feature=_Given(features.shape[1]), sync_on_compute=False)
    for pictures, real in ((base, True), (features, False)):
        for start in range(0, len(pictures), BLOCK):
            metric.update(torch.from_numpy(pictures[start:start + BLOCK]).double(), real=real)
    return max(0.0, float(metric.compute()))  # rounding can put equal sets a little below 0


def kernel_distance(features: np.ndarray, base: np.ndarray, *, subsets: int = 100, seed: int = 0) -> float | None:
    """KID: unbiased squared MMD of two sets, (N, D) and (N', D), under the kernel (x y / D + 1)^3; may fall below 0.

    Mean over `subsets` of BLOCK pictures of each set, drawn by `seed`; where the smaller set has no more than BLOCK pictures,
    subsets of its size, and only one if both sets have that size. None if a set has fewer than two pictures.
    """
    size = min(len(features), len(base), BLOCK)
    if size < 2:
        return None
    _check(features, base)
    rng = np.random.default_rng(seed)
    distances = []
    for _ in range(1 if len(features) == len(base) == size else subsets):
        one, other = (pictures[rng.choice(len(pictures), size, replace=False)].astype(np.float64) for pictures in (features, base))
        within = _others(_kernel(one, one)) + _others(_kernel(other, other))
        distances.append(within - 2 * _kernel(one, other).mean())
    return float(np.mean(distances))


def _check(*sets: np.ndarray) -> None:
    for features in sets:
        broken = int((~np.isfinite(features).all(axis=1)).sum())
        if broken:
            raise UserError(f"the features of {broken} of {len(features)} images are not finite, so they have no distance; check the "
                            "weights of the feature network, or score with another --fid_protocol")


def _kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one @ other.T / one.shape[1] + 1) ** 3


def _others(kernel: np.ndarray) -> float:
    """Mean over pairs of different pictures."""
    return (kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1))
