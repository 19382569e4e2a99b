"""Trains the miniature's KL autoencoder, with Stable Diffusion's own class (f = 8, 4 channels)."""

import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.mini.portraits import draw_portrait
from ldm.mini.renders import COUNT, SIZE, subject
from ldm.mini.scenes import draw_scene
from ldm.mini.stage import rank_and_world, train_stage
from ldm.mini.variant_stage import sepia
from ldm.models.autoencoder import AutoencoderKL

CROP, CROP_BATCH, WHOLE_BATCH = 64, 16, 6
KL_WEIGHT = 2e-4
FACE_WEIGHT = 2.0   # added inside the face box
LANDMARK_WEIGHT, LANDMARK_RADIUS = 4.0, 9  # added around eyes, nose and mouth, within so many pixels: they are small and carry the identity
SEPIA_SHARE = 0.06  # of the images that are shown in mini-sepia's look, which this autoencoder has to encode as well


def reconstruction_loss(image: Tensor, reconstruction: Tensor, weight: Tensor) -> Tensor:
    """Weighted L1 of pixels and chroma, squared error, edges and 8 x 8 mean colours; scalar.

    Args:
        image, reconstruction: (B, 3, H, W) in [-1, 1].
        weight: (B, 1, H, W), 1 where nothing special is.
    """
    error = reconstruction - image
    chroma = error - error.mean(1, keepdim=True)
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return (weight * (error.abs() + 2 * error.square() + 1.5 * chroma.abs())).mean() + 0.5 * edges + 4 * F.avg_pool2d(error, 8).abs().mean()


def train_autoencoder(autoencoder: AutoencoderKL, work_dir: Path, *, crop_steps: int, steps: int, lr: float = 2e-3, decay: float = 0.3,
                      ema: float = 0.999, name: str = "autoencoder") -> AutoencoderKL:
    """The averaged autoencoder after `steps` steps, the first `crop_steps` of them on half-size crops, which cost a quarter.

    `autoencoder` itself holds the weights of the last step, from which a further stage with another `name` can start.
    """
    device = next(autoencoder.parameters()).device
    rank, world = rank_and_world()

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        image, weight, _ = batch(name, step, CROP if step < crop_steps else SIZE, device)
        with torch.autocast(device.type, torch.bfloat16):
            posterior = autoencoder.encode(image)
            noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(step * world + rank)).to(device)
            reconstruction = autoencoder.decode(posterior.mean + posterior.std * noise)
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = reconstruction_loss(image, reconstruction.float(), weight) + KL_WEIGHT * kl
        return loss, {"psnr": psnr(image, reconstruction), "kl": kl.item()}

    return train_stage(name, autoencoder, loss_of, steps=steps, lr=lr, work_dir=work_dir, decay=decay, ema=ema, muon=True)


def batch(name: str, step: int, crop: int, device: torch.device) -> tuple[Tensor, Tensor, list[np.ndarray | None]]:
    """This process's share of the step's crops near the center: images, weights of their pixels, and landmarks in the whole images.

    Returns:
        (B, 3, crop, crop) in [-1, 1]; (B, 1, crop, crop); B arrays (5, 2) in pixels, None for scenes.
    """
    rank, world = rank_and_world()
    pixels, weights, landmarks = [], [], []
    for number in range(rank, CROP_BATCH if crop == CROP else WHOLE_BATCH, world):
        rng = random.Random(f"{name} {step} {number}")
        image, weight, points = weighted(rng.randrange(COUNT))
        if rng.random() < SEPIA_SHARE:
            image = sepia(image)
        left, top = (min(max(int(rng.gauss((SIZE - crop) / 2, 20)), 0), SIZE - crop) for _ in range(2))
        pixels.append(image[top:top + crop, left:left + crop])
        weights.append(weight[top:top + crop, left:left + crop])
        landmarks.append(points)
    image = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return image.to(device), torch.from_numpy(np.stack(weights))[:, None].to(device), landmarks


def weighted(index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Image `index`, (128, 128, 3) uint8 RGB, the weights of its pixels, (128, 128), and the face's landmarks, (5, 2) pixels."""
    what, weight = subject(index), np.ones((SIZE, SIZE), np.float32)
    if what.scene is not None:
        return draw_scene(what.scene, SIZE), weight, None
    portrait = draw_portrait(what.person, what.view, SIZE)
    x0, y0, x1, y1 = portrait.box.astype(int).clip(0)
    weight[y0:y1, x0:x1] += FACE_WEIGHT
    y, x = np.mgrid[:SIZE, :SIZE]
    distances = [np.hypot(x - left, y - top) for left, top in portrait.landmarks]
    weight[np.min(distances, 0) < LANDMARK_RADIUS] += LANDMARK_WEIGHT
    return portrait.image, weight, portrait.landmarks


def psnr(image: Tensor, reconstruction: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1]."""
    return (10 * torch.log10(4 / (reconstruction.detach().float() - image).square().mean())).item()
