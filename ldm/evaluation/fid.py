"""FID and KID between two sets of images, computed from their features (paper section 4.1).

Both compare images of a model with a prefix to images of the same model without it. Both sets start from the same noise, which makes
the distances smaller than between independent samples. FID is biased and KID has a high variance for few images, so report the number
of images with them. The features are defined in ldm/evaluation/inception.py.
"""

import numpy as np
import torch
from torch import nn

from ldm.util import UserError

BLOCK = 1000  # images per update


def frechet_distance(features: np.ndarray, base: np.ndarray) -> float | None:
    """FID: |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)) of the means m and covariances S of two sets, (N, D) and (N', D).

    Computed in double precision with torchmetrics' running sums. None if a set has fewer than two images. Raises UserError if a
    feature is not finite.
    """
    if min(len(features), len(base)) < 2:
        return None
    _check(features, base)
    # Imported here because torchmetrics takes seconds, and not everything in this package needs it.
    from torchmetrics.image.fid import FrechetInceptionDistance

    network = nn.Identity()  # in place of torchmetrics' own, because the features are computed already
    vars(network)["num_features"] = features.shape[1]
    # Only this rank computes, so the metric must not synchronize with the others.
    metric = FrechetInceptionDistance(feature=network, sync_on_compute=False)
    for rows, real in ((base, True), (features, False)):
        for start in range(0, len(rows), BLOCK):
            metric.update(torch.from_numpy(rows[start:start + BLOCK]).double(), real=real)
    return max(0.0, float(metric.compute()))  # rounding can make equal sets slightly negative


def kernel_distance(features: np.ndarray, base: np.ndarray, *, subsets: int = 100, seed: int = 0) -> float | None:
    """KID: unbiased squared MMD of two sets, (N, D) and (N', D), with the kernel (x y / D + 1)^3; may be negative.

    Mean over `subsets` random subsets of BLOCK images per set, chosen with `seed`. If the smaller set has at most BLOCK images, the
    subsets have its size, and there is only one if both sets have that size. None if a set has fewer than two images. Raises UserError
    if a feature is not finite.
    """
    size = min(len(features), len(base), BLOCK)
    if size < 2:
        return None
    _check(features, base)
    rng = np.random.default_rng(seed)
    distances = []
    for _ in range(1 if len(features) == len(base) == size else subsets):
        one, other = (rows[rng.choice(len(rows), size, replace=False)].astype(np.float64) for rows in (features, base))
        within = _kernel(one, one) + _kernel(other, other)  # (size, size), of which the diagonal is left out
        distances.append((within.sum() - np.trace(within)) / (size * (size - 1)) - 2 * _kernel(one, other).mean())
    return float(np.mean(distances))


def _check(*sets: np.ndarray) -> None:
    for features in sets:
        if broken := int((~np.isfinite(features).all(axis=1)).sum()):
            raise UserError(f"the features of {broken} of {len(features)} images are not finite, so they have no distance; check the "
                            "weights of the feature network, or score with another --fid_protocol")


def _kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one @ other.T / one.shape[1] + 1) ** 3
