"""PLMS sampler: DDIM steps along a prediction extrapolated from the last four (arXiv 2202.09778)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.models.diffusion.ddim import DDIMSampler, Grid
from ldm.util import UserError

# Adams-Bashforth weights of the newest to the oldest prediction, for 2, 3 and 4 predictions.
WEIGHTS = {2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


class PLMSSampler(DDIMSampler):
    """Deterministic; 20 to 50 steps."""

    def make_schedule(self, ddim_num_steps: int, ddim_discretize: str = "uniform", ddim_eta: float = 0.0, verbose: bool = True) -> None:
        if ddim_eta != 0:
            raise UserError(f"PLMS was asked for eta = {ddim_eta} but is deterministic; give eta = 0 or use DDIM")
        super().make_schedule(ddim_num_steps, ddim_discretize, ddim_eta, verbose)

    def _step(self, x: Tensor, c: Tensor, t: Tensor, index: int, grid: Grid, *, t_next: Tensor, history: list[Tensor],
              noise: Mapping[str, Any], **guidance: Any) -> tuple[Tensor, Tensor]:
        """Append the prediction to `history`, which holds the previous ones, oldest first."""
        eps = self._eps(x, c, t, **guidance)
        recent = [eps, *reversed(history[-3:])]  # newest first
        history.append(eps)
        if len(recent) == 1:  # improved Euler: the mean of the predictions at both ends of the step
            x_next, _ = self._update(x, eps, index, grid, **noise)
            mean = (eps + self._eps(x_next, c, t_next, **guidance)) / 2
        else:
            mean = torch.stack([weight * value for weight, value in zip(WEIGHTS[len(recent)], recent, strict=True)]).sum(0)
        return self._update(x, mean, index, grid, **noise)
