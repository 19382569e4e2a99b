"""DDIM sampler (arXiv 2010.02502) with the public names and call signatures."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ldm.models.diffusion.sampler import Grid, Sampler
from ldm.util import UserError


class DDIMSampler(Sampler):
    """`sample` generates latents; `stochastic_encode` and `decode` together vary a given one (image to image)."""

    @torch.no_grad()
    def p_sample_ddim(self, x: Tensor, c: Tensor, t: Tensor, index: int, repeat_noise: bool = False,
                      use_original_steps: bool = False, quantize_denoised: bool = False, temperature: float = 1.0,
                      noise_dropout: float = 0.0, score_corrector: Any = None, corrector_kwargs: dict | None = None,
                      unconditional_guidance_scale: float = 1.0,
                      unconditional_conditioning: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step from timestep t (B,), number `index` of the schedule: latent one step below, predicted z_0."""
        if quantize_denoised:
            raise UserError("quantize_denoised was asked for but a KL autoencoder has no codebook; leave it False")
        return self._step(x, c, t, index, self.original_grid if use_original_steps else self.grid,
                          repeat_noise=repeat_noise, temperature=temperature, noise_dropout=noise_dropout,
                          score_corrector=score_corrector, corrector_kwargs=corrector_kwargs,
                          unconditional_guidance_scale=unconditional_guidance_scale,
                          unconditional_conditioning=unconditional_conditioning)

    @torch.no_grad()
    def stochastic_encode(self, x0: Tensor, t: Tensor, use_original_steps: bool = False,
                          noise: Tensor | None = None) -> Tensor:
        """Latent x0 (B, 4, h, w) noised to step number t (B,) int64 of the schedule, ready for `decode` from there."""
        grid = self.original_grid if use_original_steps else self.grid
        alpha = torch.from_numpy(grid.alphas).to(x0)[t][:, None, None, None]  # (B, 1, 1, 1)
        noise = torch.randn_like(x0) if noise is None else noise
        return alpha.sqrt() * x0 + (1.0 - alpha).sqrt() * noise

    @torch.no_grad()
    def decode(self, x_latent: Tensor, cond: Tensor, t_start: int, unconditional_guidance_scale: float = 1.0,
               unconditional_conditioning: Tensor | None = None, use_original_steps: bool = False,
               callback: Callable | None = None, verbose: bool = True) -> Tensor:
        """Latent z_0 from x_latent by the lowest `t_start` steps of the schedule, under the contexts `cond`."""
        grid = self.original_grid if use_original_steps else self.grid
        return self._loop(x_latent, cond, grid.lowest(t_start), callback=callback, verbose=verbose,
                          unconditional_guidance_scale=unconditional_guidance_scale,
                          unconditional_conditioning=unconditional_conditioning)[0]

    def _step(self, x: Tensor, c: Tensor, t: Tensor, index: int, grid: Grid, *, t_next: Tensor | None = None,
              history: list[Tensor] | None = None, temperature: float = 1.0, noise_dropout: float = 0.0,
              repeat_noise: bool = False, generator: torch.Generator | None = None,
              **guidance: Any) -> tuple[Tensor, Tensor]:
        return self._update(x, self._eps(x, c, t, **guidance), index, grid, temperature=temperature,
                            noise_dropout=noise_dropout, repeat_noise=repeat_noise, generator=generator)
