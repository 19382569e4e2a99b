"""DPM-Solver++(2M) sampler (arXiv 2211.01095, algorithm 2), the solver of choice for 10 to 25 steps."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.models.diffusion.ddim import guided_eps
from ldm.util import UserError


class DPMSolverSampler:
    """Integrates the noise-free (probability flow) equation over the logarithm of the signal-to-noise ratio."""

    def __init__(self, model):
        self.model = model

    @torch.no_grad()
    def sample(self, S: int, batch_size: int, shape: Sequence[int], conditioning: Tensor, callback: Callable | None = None,
               img_callback: Callable | None = None, eta: float = 0.0, mask: Tensor | None = None, verbose: bool = True,
               x_T: Tensor | None = None, unconditional_guidance_scale: float = 1.0, unconditional_conditioning: Tensor | None = None,
               generator: torch.Generator | None = None, **without_effect: Any) -> tuple[Tensor, None]:
        """Generate latents (batch_size, *shape) for the contexts; arguments as in DDIMSampler.sample, whose others have no effect.

        Raises:
            UserError: eta or mask is given, which this solver does not support; the number of steps is out of range.
        """
        if eta != 0 or mask is not None:
            raise UserError("DPM-Solver was asked for eta > 0 or a mask but is deterministic and has none; use DDIM")
        total = self.model.num_timesteps
        if not 1 <= S <= total:
            raise UserError(f"{S} sampling steps were asked for; give 1 to {total}")
        timesteps = np.linspace(total - 1, 0, S + 1)  # in equal distances, not whole numbers
        log_alphas = 0.5 * np.log(self.model.alphas_cumprod.double().cpu().numpy())
        alpha = np.exp(np.interp(timesteps, np.arange(total), log_alphas))
        sigma = np.sqrt(1 - alpha**2)
        x = torch.randn(batch_size, *shape, generator=generator, device=self.model.device) if x_T is None else x_T
        log_snr = np.log(alpha / sigma)  # lambda in the paper
        previous, previous_step = None, None
        for i in tqdm(range(S), desc="sampling", disable=not verbose):
            t = torch.full((len(x),), float(timesteps[i]), device=x.device)
            eps = guided_eps(self.model, x, t, conditioning, unconditional_guidance_scale, unconditional_conditioning)
            pred_x0 = (x - float(sigma[i]) * eps) / float(alpha[i])
            step = log_snr[i + 1] - log_snr[i]  # h
            slope = pred_x0  # first order: at the beginning and, with few steps, at the end where h is large
            if previous is not None and not (i == S - 1 and S < 15):
                ratio = float(previous_step / step)  # r
                slope = (1 + 1 / (2 * ratio)) * pred_x0 - 1 / (2 * ratio) * previous
            x = float(sigma[i + 1] / sigma[i]) * x - float(alpha[i + 1] * np.expm1(-step)) * slope
            previous, previous_step = pred_x0, step
            if callback is not None:
                callback(i)
            if img_callback is not None:
                img_callback(pred_x0, i)
        return x, None
