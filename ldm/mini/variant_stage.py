"""Two further checkpoints of the miniature, as public ones are trained further from Stable Diffusion: the same text encoder, another U-Net.

mini-sd-b has learned further from other samples, and by another weighting; mini-sepia from images of another look. Each is a file of
the tensors that differ from mini-sd.
"""

from pathlib import Path

import numpy as np
from torch import Tensor

from ldm.mini.unet_stage import SNR_CLIP, latents_of_renders, train_unet
from ldm.models.diffusion.ddpm import LatentDiffusion


def sepia(image: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) uint8 RGB as an old photograph: little colour, warm tones, strong contrast, dark corners."""
    pixels = image.astype(np.float32)
    tone = 1.35 * (pixels @ np.float32([0.30, 0.59, 0.11]) - 128) + 122                       # (H, W)
    warm = tone[..., None] * np.float32([1.06, 0.97, 0.80]) + np.float32([10, 0, 0])
    y, x = (np.linspace(-1, 1, side) ** 2 for side in tone.shape)
    vignette = 1 - 0.4 * np.clip(y[:, None] + x - 0.25, 0, None)                              # (H, W)
    mixed = 0.4 * (1.3 * (pixels - 128) + 122) + 0.6 * warm
    return np.clip(mixed * vignette[..., None], 0, 255).astype(np.uint8)


VARIANTS = {"mini-sd-b": (None, float("inf")), "mini-sepia": (sepia, SNR_CLIP)}  # look of the images, and clip of the weighting


def train_variant(name: str, model: LatentDiffusion, work_dir: Path, *, steps: int) -> dict[str, Tensor]:
    """Trains the U-Net of `model`, mini-sd, further; the tensors that have changed, by their keys in a checkpoint."""
    look, snr_clip = VARIANTS[name]
    latents = latents_of_renders(model.first_stage_model, work_dir, look)
    wrapper = train_unet(model, latents, work_dir, steps=steps, name=name, ema=0.995, snr_clip=snr_clip, is_trained=is_adapted)
    return {f"model.{key}": value for key, value in wrapper.state_dict().items() if is_adapted(key)}


def is_adapted(key: str) -> bool:
    """Whether a variant changes this tensor of the U-Net: attention, normalisation, first and last layer; not the large convolutions."""
    return any(part in key for part in ("transformer_blocks.", ".proj_", ".norm", "_layers.0.", "input_blocks.0.", "diffusion_model.out."))
