"""Drawing: `ldm.generation.generate` beside diffusers' StableDiffusionPipeline, on equal weights, from equal noise, to equal pictures."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ldm.benchmark.diffusers_twin import diffusers_pipeline
from ldm.generation import generate, image_noise
from ldm.models.diffusion.ddpm import LatentDiffusion

DDIM_STEPS, SCALE, SEED = 20, 7.0, 0


def jobs_of(count: int) -> list[tuple[str, int]]:
    """So many pictures of different prompts."""
    return [(f"A close-up portrait of person number {number}", 0) for number in range(count)]


def draw_ours(model: LatentDiffusion, count: int) -> np.ndarray:
    """(count, H, W, 3) uint8 in one batch."""
    drawn = generate(model, jobs_of(count), ddim_steps=DDIM_STEPS, scale=SCALE, seed=SEED, batch_size=count)
    return np.stack([image for _, image in drawn])


@torch.no_grad()
def draw_theirs(pipeline: Any, model: LatentDiffusion, count: int) -> np.ndarray:
    """(count, H, W, 3) uint8 in one batch; `model` says which noise ours starts from."""
    side = model.image_size
    noise = torch.stack([image_noise(SEED, prompt, sample, (model.channels, side, side)) for prompt, sample in jobs_of(count)])
    images = pipeline([prompt for prompt, _ in jobs_of(count)], height=8 * side, width=8 * side, num_inference_steps=DDIM_STEPS,
                      guidance_scale=SCALE, latents=noise.to(model.device)).images
    return np.stack([np.asarray(image) for image in images])


def their_drawing(model: LatentDiffusion, config: Mapping[str, Any]) -> Callable[[int], np.ndarray]:
    """`draw_theirs` with a pipeline that shares the weights of `model`; ImportError where diffusers is not installed."""
    pipeline = diffusers_pipeline(model, config)
    return lambda count: draw_theirs(pipeline, model, count)
