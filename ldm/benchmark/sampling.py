"""Sampling: `ldm.generation.generate` and diffusers' StableDiffusionPipeline on equal weights and noise, which give equal images."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ldm.benchmark.diffusers_twin import diffusers_pipeline
from ldm.generation import generate, image_noise
from ldm.models.diffusion.ddpm import LatentDiffusion

DDIM_STEPS, SCALE, SEED = 20, 7.0, 0


def jobs_of(count: int) -> list[tuple[str, int]]:
    """`count` images of different prompts."""
    return [(f"A close-up portrait of person number {number}", 0) for number in range(count)]


def draw_ours(model: LatentDiffusion, count: int) -> np.ndarray:
    """Images (count, H, W, 3) uint8, generated in one batch."""
    drawn = generate(model, jobs_of(count), ddim_steps=DDIM_STEPS, scale=SCALE, seed=SEED, batch_size=count)
    return np.stack([image for _, image in drawn])


@torch.no_grad()
def draw_theirs(pipeline: Any, model: LatentDiffusion, count: int) -> np.ndarray:
    """Images (count, H, W, 3) uint8, generated in one batch from the noise that `draw_ours` uses for `model`."""
    side = model.image_size
    noise = torch.stack([image_noise(SEED, prompt, sample, (model.channels, side, side)) for prompt, sample in jobs_of(count)])
    images = pipeline([prompt for prompt, _ in jobs_of(count)], height=8 * side, width=8 * side, num_inference_steps=DDIM_STEPS,
                      guidance_scale=SCALE, latents=noise.to(model.device)).images
    return np.stack([np.asarray(image) for image in images])


def their_drawing(model: LatentDiffusion, config: Mapping[str, Any]) -> Callable[[int], np.ndarray]:
    """`draw_theirs` with a pipeline that shares the weights of `model`; ImportError if diffusers is not installed."""
    pipeline = diffusers_pipeline(model, config)
    return lambda count: draw_theirs(pipeline, model, count)
