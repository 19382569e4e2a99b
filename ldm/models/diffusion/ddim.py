"""DDIM sampler (arXiv 2010.02502) with the public names and call signatures, and classifier-free guidance."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ldm.util import UserError


def guided_eps(model, x: Tensor, t: Tensor, context: Tensor, scale: float = 1.0, unconditional: Tensor | None = None) -> Tensor:
    """Classifier-free guidance, eps_u + scale (eps_c - eps_u), in one forward pass for both halves.

    Args:
        model: LatentDiffusion.
        x: noisy latent, (B, 4, h, w).
        t: timestep, (B,).
        context: tau(c), (B, 77, d), or (B, 78, d) with SDXL's pooled text.
        scale: 1 returns eps_c.
        unconditional: tau(""), (B or 1, 77, d); None returns eps_c.
    """
    if unconditional is None or scale == 1.0:
        return model.apply_model(x, t, context)
    contexts = torch.cat([unconditional.expand_as(context), context])  # (2B, 77, d)
    eps_unconditional, eps = model.apply_model(torch.cat([x, x]), torch.cat([t, t]), contexts).chunk(2)
    return eps_unconditional + scale * (eps - eps_unconditional)


class Grid(NamedTuple):
    """Timesteps of a sampling run, ascending, with alphabar there and one step further down; float64 arrays (S,)."""

    timesteps: np.ndarray
    alphas: np.ndarray
    alphas_prev: np.ndarray
    sigmas: np.ndarray

    @classmethod
    def of(cls, timesteps: np.ndarray, alphas_cumprod: np.ndarray, eta: float) -> "Grid":
        """sigma = eta times the standard deviation of the DDPM posterior (Eq. 16)."""
        alphas = alphas_cumprod[timesteps]
        alphas_prev = np.concatenate([alphas_cumprod[:1], alphas[:-1]])
        return cls(timesteps, alphas, alphas_prev, eta * np.sqrt((1 - alphas_prev) / (1 - alphas) * (1 - alphas / alphas_prev)))


def sampling_timesteps(method: str, steps: int, total: int) -> np.ndarray:
    """Training timesteps of a run, ascending from 1; "uniform" may give more than `steps`, if they do not divide T."""
    if not 1 <= steps <= total:
        raise UserError(f"{steps} sampling steps were asked for; give 1 to {total}")
    if method == "uniform":
        return np.arange(1, total, total // steps)
    if method == "quad":
        return (np.linspace(0, np.sqrt(0.8 * total), steps) ** 2).astype(int) + 1
    raise UserError(f"there is no spacing of timesteps called '{method}'; give 'uniform' or 'quad'")


class DDIMSampler:
    """`sample` generates latents; `stochastic_encode` and `decode` together vary a given one (image to image)."""

    def __init__(self, model, schedule: str = "linear"):
        """`model` is a LatentDiffusion and brings its schedule; the argument `schedule` is public and has no effect."""
        self.model = model
        self.ddpm_num_timesteps = model.num_timesteps

    def make_schedule(self, ddim_num_steps: int, ddim_discretize: str = "uniform", ddim_eta: float = 0.0, verbose: bool = True) -> None:
        """Set the timesteps (`ddim_timesteps`) and their coefficients for `decode` and `stochastic_encode`."""
        alphas_cumprod = self.model.alphas_cumprod.double().cpu().numpy()
        timesteps = sampling_timesteps(ddim_discretize, ddim_num_steps, self.ddpm_num_timesteps)
        self.grid = Grid.of(timesteps, alphas_cumprod, ddim_eta)
        self.original_grid = Grid.of(np.arange(self.ddpm_num_timesteps), alphas_cumprod, ddim_eta)
        self.ddim_timesteps, self.ddim_alphas, self.ddim_alphas_prev, self.ddim_sigmas = self.grid
        self.ddim_sqrt_one_minus_alphas = np.sqrt(1.0 - self.grid.alphas)
        if verbose:
            print(f"sampling at the timesteps {timesteps.tolist()} with eta = {ddim_eta}")

    @torch.no_grad()
    def sample(self, S: int, batch_size: int, shape: Sequence[int], conditioning: Tensor, callback: Callable | None = None,
               normals_sequence: Any = None, img_callback: Callable | None = None, quantize_x0: bool = False, eta: float = 0.0,
               mask: Tensor | None = None, x0: Tensor | None = None, temperature: float = 1.0, noise_dropout: float = 0.0,
               score_corrector: Any = None, corrector_kwargs: dict | None = None, verbose: bool = True, x_T: Tensor | None = None,
               log_every_t: int = 100, unconditional_guidance_scale: float = 1.0, unconditional_conditioning: Tensor | None = None,
               t_start: int | None = None, till_T: int | None = None, verbose_iter: bool = False,
               generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Generate latents (batch_size, *shape) for the contexts; returns them and intermediate ones.

        Args:
            S: number of steps.
            shape: (4, h, w) of a latent.
            conditioning: contexts, (batch_size, 77, d).
            callback, img_callback: called after each step with (i) and with (predicted z_0, i).
            normals_sequence, quantize_x0: public; without effect, and refused, because a KL autoencoder has no codebook.
            eta: 0 is deterministic, 1 as random as DDPM.
            mask, x0: where mask (1 or 4 channels) is 1, the latent x0 is kept (noised to the current timestep).
            temperature, noise_dropout: factor on, and dropout of, the noise of each step.
            score_corrector, corrector_kwargs: `modify_score(model, eps, x, t, context, **kwargs)` replaces eps.
            verbose, verbose_iter: print the schedule and show a progress bar; only show a progress bar.
            x_T: noise to start from; None: sampled.
            log_every_t: keep the intermediate latents of the first step and of every step whose index it divides.
            unconditional_guidance_scale, unconditional_conditioning: see `guided_eps`.
            t_start, till_T: of the S steps, numbered from the least noisy, sample steps t_start, ..., till_T; None samples all.
            generator: source of all noise, on the model's device; None is torch's global one.
        """
        if quantize_x0:
            raise UserError("quantize_x0 was asked for but a KL autoencoder has no codebook; leave it False")
        if len(conditioning) != batch_size:
            raise UserError(f"{len(conditioning)} contexts were given for a batch of {batch_size}; give one for each latent")
        self.make_schedule(S, ddim_eta=eta, verbose=verbose)
        total = len(self.grid.timesteps)
        steps = range(total)[max((till_T or 1) - 1, 0):t_start]
        if not steps:
            raise UserError(f"t_start={t_start} and till_T={till_T} leave none of {total} sampling steps; "
                            "give t_start as till_T or more, or leave both out")
        x_T = torch.randn(batch_size, *shape, generator=generator, device=self.model.device) if x_T is None else x_T
        noise = {"temperature": temperature, "noise_dropout": noise_dropout, "generator": generator}
        return self._loop(x_T, conditioning, self.grid, steps, callback=callback, img_callback=img_callback, mask=mask, x0=x0,
                          verbose=verbose or verbose_iter, log_every_t=log_every_t, noise=noise, score_corrector=score_corrector,
                          corrector_kwargs=corrector_kwargs, unconditional_guidance_scale=unconditional_guidance_scale,
                          unconditional_conditioning=unconditional_conditioning)

    @torch.no_grad()
    def p_sample_ddim(self, x: Tensor, c: Tensor, t: Tensor, index: int, repeat_noise: bool = False,
                      use_original_steps: bool = False, quantize_denoised: bool = False, temperature: float = 1.0,
                      noise_dropout: float = 0.0, score_corrector: Any = None, corrector_kwargs: dict | None = None,
                      unconditional_guidance_scale: float = 1.0,
                      unconditional_conditioning: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step from timestep t (B,), number `index` of the schedule: latent one step below, predicted z_0; arguments as in `sample`."""
        if quantize_denoised:
            raise UserError("quantize_denoised was asked for but a KL autoencoder has no codebook; leave it False")
        noise = {"repeat_noise": repeat_noise, "temperature": temperature, "noise_dropout": noise_dropout}
        grid = self.original_grid if use_original_steps else self.grid
        return self._step(x, c, t, index, grid, t_next=t, history=[], noise=noise, score_corrector=score_corrector,
                          corrector_kwargs=corrector_kwargs, unconditional_guidance_scale=unconditional_guidance_scale,
                          unconditional_conditioning=unconditional_conditioning)

    @torch.no_grad()
    def stochastic_encode(self, x0: Tensor, t: Tensor, use_original_steps: bool = False, noise: Tensor | None = None) -> Tensor:
        """Latent x0 (B, 4, h, w) noised to step number t (B,) int64 of the schedule, ready for `decode` from there."""
        grid = self.original_grid if use_original_steps else self.grid
        alpha = torch.from_numpy(grid.alphas).to(x0)[t][:, None, None, None]  # (B, 1, 1, 1)
        noise = torch.randn_like(x0) if noise is None else noise
        return alpha.sqrt() * x0 + (1.0 - alpha).sqrt() * noise

    @torch.no_grad()
    def decode(self, x_latent: Tensor, cond: Tensor, t_start: int, unconditional_guidance_scale: float = 1.0,
               unconditional_conditioning: Tensor | None = None, use_original_steps: bool = False,
               callback: Callable | None = None, verbose: bool = True) -> Tensor:
        """Latent z_0 from x_latent by the lowest `t_start` steps of the schedule, for the contexts `cond`."""
        grid = self.original_grid if use_original_steps else self.grid
        return self._loop(x_latent, cond, grid, range(len(grid.timesteps))[:t_start], callback=callback, verbose=verbose, noise={},
                          unconditional_guidance_scale=unconditional_guidance_scale,
                          unconditional_conditioning=unconditional_conditioning)[0]

    def _loop(self, x: Tensor, c: Tensor, grid: Grid, steps: range, *, verbose: bool, noise: Mapping[str, Any],
              callback: Callable | None = None, img_callback: Callable | None = None, mask: Tensor | None = None,
              x0: Tensor | None = None, log_every_t: int = 100, **guidance: Any) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Sample from x, at the last of these steps of the grid, down to the latent below the first; options as in `sample`."""
        history: list[Tensor] = []
        intermediates = {"x_inter": [x], "pred_x0": [x]}
        for i, index in enumerate(tqdm(steps[::-1], desc="sampling", disable=not verbose)):
            t, t_next = (torch.full((len(x),), int(grid.timesteps[j]), device=x.device) for j in (index, max(index - 1, 0)))
            if mask is not None:
                assert x0 is not None, "mask needs x0"
                noisy = self.model.q_sample(x0, t, torch.randn(x0.shape, generator=noise.get("generator"), device=x.device))
                x = noisy * mask + (1.0 - mask) * x
            x, pred_x0 = self._step(x, c, t, index, grid, t_next=t_next, history=history, noise=noise, **guidance)
            if callback is not None:
                callback(i)
            if img_callback is not None:
                img_callback(pred_x0, i)
            if index % log_every_t == 0 or i == 0:
                intermediates["x_inter"].append(x)
                intermediates["pred_x0"].append(pred_x0)
        return x, intermediates

    def _step(self, x: Tensor, c: Tensor, t: Tensor, index: int, grid: Grid, *, t_next: Tensor, history: list[Tensor],
              noise: Mapping[str, Any], **guidance: Any) -> tuple[Tensor, Tensor]:
        """The latent one step below, and the predicted z_0; `t_next` and `history` are for subclasses."""
        return self._update(x, self._eps(x, c, t, **guidance), index, grid, **noise)

    def _eps(self, x: Tensor, c: Tensor, t: Tensor, *, score_corrector: Any = None, corrector_kwargs: dict | None = None,
             unconditional_guidance_scale: float = 1.0, unconditional_conditioning: Tensor | None = None) -> Tensor:
        eps = guided_eps(self.model, x, t, c, unconditional_guidance_scale, unconditional_conditioning)
        if score_corrector is not None:
            eps = score_corrector.modify_score(self.model, eps, x, t, c, **(corrector_kwargs or {}))
        return eps

    @staticmethod
    def _update(x: Tensor, eps: Tensor, index: int, grid: Grid, *, temperature: float = 1.0, noise_dropout: float = 0.0,
                repeat_noise: bool = False, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """One DDIM update (Eq. 12): latent at the timestep below, and the predicted z_0.

        Noise is sampled even if sigma = 0, so that a seeded script gives the same images as with the public code.
        """
        alpha, alpha_prev, sigma = float(grid.alphas[index]), float(grid.alphas_prev[index]), float(grid.sigmas[index])
        pred_x0 = (x - (1.0 - alpha) ** 0.5 * eps) / alpha**0.5
        direction = max(1.0 - alpha_prev - sigma**2, 0.0) ** 0.5 * eps
        noise = torch.randn((1 if repeat_noise else len(x), *x.shape[1:]), generator=generator, device=x.device).to(x.dtype)
        noise = F.dropout(noise, noise_dropout) if noise_dropout > 0 else noise
        return alpha_prev**0.5 * pred_x0 + direction + sigma * temperature * noise, pred_x0
