"""What training samples are made of: pictures as latents, noise and timesteps; all a function of seed and number."""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.data.frozen import picture_moments, posterior_draw
from ldm.data.images import ImageSource
from ldm.data.mixture import normal
from ldm.generation import Job, batches_of, image_noise
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.dpm_solver import DPMSolverSampler
from ldm.sharing import Devices, in_rounds
from ldm.util import write_atomically

DRAWN_TOGETHER = 8


def rng_of(seed: int, number: int) -> random.Random:
    """The source of every choice about training sample `number`."""
    return random.Random(f"sample {seed} {number}")


def noise_of(model: LatentDiffusion, rngs: Sequence[random.Random]) -> Tensor:
    """Standard normal noise of some samples, (B, 4, h, w) on the model's device."""
    shape = (model.channels, model.image_size, model.image_size)
    return torch.stack([normal(rng.getrandbits(63), shape) for rng in rngs]).to(model.device)


def timesteps_of(model: LatentDiffusion, rngs: Sequence[random.Random]) -> Tensor:
    """t, uniform over the training schedule, (B,)."""
    return torch.tensor([rng.randrange(model.num_timesteps) for rng in rngs], device=model.device)


class PictureLatents:
    """Pictures in files as latents z_0, each encoded once, and alone."""

    def __init__(self, model: LatentDiffusion, sources: Sequence[ImageSource]):
        self.model, self.sources = model, sources
        self._moments: dict[int, Tensor] = {}  # mean and log-variance, (8, h, w), on the CPU

    def __call__(self, indices: Sequence[int], rngs: Sequence[random.Random]) -> Tensor:
        """A draw from the posterior of each of these pictures, (B, 4, h, w)."""
        for index in indices:
            if index not in self._moments:
                self._moments[index] = picture_moments(self.model, self.sources[index])
        return torch.stack([posterior_draw(self.model, self._moments[index], rng.getrandbits(63))
                            for index, rng in zip(indices, rngs, strict=True)]).to(self.model.device)


@dataclass(frozen=True)
class Work:
    """The devices that share what is made before a training, and what is called whenever some of it has been put into a file."""

    fabric: Devices
    kept: Callable[[], None] = lambda: None


@torch.no_grad()
def drawn_latents(work: Work, model: LatentDiffusion, jobs: Sequence[Job], folder: Path, *, model_hash: str, scale: float, seed: int,
                  steps: int = 25) -> Tensor:
    """Latents z_0 that the frozen model draws with DPM-Solver, (N, 4, h, w) on the CPU; all devices draw, and a file keeps them.

    Args:
        jobs: (prompt, number of the sample).
        folder: where the file is; what is there of the same jobs and settings is not drawn again.
        scale: guidance.
    """
    key = hashlib.sha256(json.dumps([list(jobs), model_hash, dtype_of(model), scale, seed, steps]).encode()).hexdigest()[:16]
    path = folder / f"drawn-{key}.pt"
    shape = (model.channels, model.image_size, model.image_size)
    sampler, unconditional = DPMSolverSampler(model), model.get_negative_conditioning("")

    def drawn(batch: Sequence[Job]) -> Tensor:
        noise = torch.stack([image_noise(seed, *job, shape) for job in batch]).to(model.device)
        context = model.get_learned_conditioning([prompt for prompt, _ in batch])
        latent, _ = sampler.sample(steps, len(batch), shape, context, verbose=False, x_T=noise, unconditional_guidance_scale=scale,
                                   unconditional_conditioning=unconditional)
        return latent.float().cpu()

    found = torch.load(path, weights_only=True) if path.exists() else torch.zeros(0, *shape)
    left = batches_of(jobs, DRAWN_TOGETHER)[-(-len(found) // DRAWN_TOGETHER):]
    for latent in tqdm(in_rounds(work.fabric, lambda: left, drawn), "drawing", len(left), unit="batch", leave=False,
                       disable=not work.fabric.is_global_zero):
        found = torch.cat([found, latent])
        if work.fabric.is_global_zero:
            write_atomically(path, partial(torch.save, found))
            work.kept()
    return found


def dtype_of(model: LatentDiffusion) -> str:
    """In which type the U-Net computes, on which the bits of what it draws depend."""
    return str(model.model.diffusion_model.dtype)
