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
DECODER_NOISE = 0.05  # in standard deviations of the latents
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


def train_autoencoder(autoencoder: AutoencoderKL, work_dir: Path, *, crop_steps: int, steps: int, lr: float = 2e-3,
                      decoder_only: bool = False) -> AutoencoderKL:
    """The averaged autoencoder after `steps` steps, the first `crop_steps` of them on half-size crops, which cost a quarter.

    Args:
        decoder_only: leaves the encoder, and so the latents, as they are; the decoder sees a U-Net's small errors as noise.
    """
    name, device = "decoder" if decoder_only else "autoencoder", next(autoencoder.parameters()).device
    rank, world = rank_and_world()
    trained = [*autoencoder.decoder.parameters(), *autoencoder.post_quant_conv.parameters()] if decoder_only else None

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        crop = CROP if step < crop_steps else SIZE
        image, weight = (tensor.to(device) for tensor in _batch(name, step, crop))
        with torch.autocast(device.type, torch.bfloat16):
            with torch.set_grad_enabled(not decoder_only):
                posterior = autoencoder.encode(image)
            noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(step * world + rank)).to(device)
            spread = DECODER_NOISE * posterior.mean.std() if decoder_only else posterior.std
            reconstruction = autoencoder.decode(posterior.mean + spread * noise)
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = reconstruction_loss(image, reconstruction.float(), weight) + KL_WEIGHT * kl
        return loss, {"psnr": _psnr(image, reconstruction), "kl": kl.item()}

    return train_stage(name, autoencoder, loss_of, steps=steps, lr=lr, work_dir=work_dir, parameters=trained, muon=True)


def _batch(name: str, step: int, crop: int) -> tuple[Tensor, Tensor]:
    """This process's share of the step's crops near the centre, (B, 3, crop, crop) in [-1, 1], and their weights, (B, 1, crop, crop)."""
    rank, world = rank_and_world()
    pixels, weights = [], []
    for number in range(rank, CROP_BATCH if crop == CROP else WHOLE_BATCH, world):
        rng = random.Random(f"{name} {step} {number}")
        image, weight = weighted(rng.randrange(COUNT))
        if rng.random() < SEPIA_SHARE:
            image = sepia(image)
        left, top = (min(max(int(rng.gauss((SIZE - crop) / 2, 20)), 0), SIZE - crop) for _ in range(2))
        pixels.append(image[top:top + crop, left:left + crop])
        weights.append(weight[top:top + crop, left:left + crop])
    image = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return image, torch.from_numpy(np.stack(weights))[:, None]


def weighted(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Image `index`, (128, 128, 3) uint8 RGB, and the weights of its pixels, (128, 128)."""
    what, weight = subject(index), np.ones((SIZE, SIZE), np.float32)
    if what.scene is not None:
        return draw_scene(what.scene, SIZE), weight
    portrait = draw_portrait(what.person, what.view, SIZE)
    x0, y0, x1, y1 = portrait.box.astype(int).clip(0)
    weight[y0:y1, x0:x1] += FACE_WEIGHT
    y, x = np.mgrid[:SIZE, :SIZE]
    distances = [np.hypot(x - left, y - top) for left, top in portrait.landmarks]
    weight[np.min(distances, 0) < LANDMARK_RADIUS] += LANDMARK_WEIGHT
    return portrait.image, weight


def _psnr(image: Tensor, reconstruction: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1]."""
    return (10 * torch.log10(4 / (reconstruction.detach().float() - image).square().mean())).item()
