"""Trains the miniature's KL autoencoder, with Stable Diffusion's own class (f = 8, 4 channels)."""

import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.mini.renders import COUNT, SIZE, render_all
from ldm.mini.stage import train_stage
from ldm.models.autoencoder import AutoencoderKL

CROP, CROP_BATCH, WHOLE_BATCH = 64, 32, 12
KL_WEIGHT = 2e-4
FACE_WEIGHT = 2.0   # added inside the face box: eyes and mouths are small and carry the identity


def reconstruction_loss(image: Tensor, reconstruction: Tensor, weight: Tensor) -> Tensor:
    """Weighted L1 of pixels and chroma, edges and 8 x 8 mean colours; scalar.

    Args:
        image, reconstruction: (B, 3, H, W) in [-1, 1].
        weight: (B, 1, H, W), 1 where nothing special is.
    """
    error = reconstruction - image
    chroma = error - error.mean(1, keepdim=True)
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return (weight * (error.abs() + 0.5 * chroma.abs())).mean() + 0.5 * edges + F.avg_pool2d(error, 8).abs().mean()


def train_autoencoder(autoencoder: AutoencoderKL, work_dir: Path, *, crop_steps: int, steps: int, lr: float = 2e-3) -> AutoencoderKL:
    """The averaged autoencoder after `steps` steps, the first `crop_steps` of them on half-size crops, which cost a quarter."""
    images, boxes = render_all(work_dir)
    device = next(autoencoder.parameters()).device

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(f"autoencoder {step}")
        crop = CROP if step < crop_steps else SIZE
        indices = [rng.randrange(COUNT) for _ in range(CROP_BATCH if crop == CROP else WHOLE_BATCH)]
        image, weight = (tensor.to(device) for tensor in _batch(images, boxes, indices, crop, rng))
        with torch.autocast(device.type, torch.bfloat16):
            posterior = autoencoder.encode(image)
            reconstruction = autoencoder.decode(posterior.sample(torch.Generator().manual_seed(step)))
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = reconstruction_loss(image, reconstruction.float(), weight) + KL_WEIGHT * kl
        return loss, {"psnr": _psnr(image, reconstruction), "kl": kl.item()}

    return train_stage("autoencoder", autoencoder, loss_of, steps=steps, lr=lr, work_dir=work_dir)


def train_decoder(autoencoder: AutoencoderKL, latents: Tensor, work_dir: Path, *, steps: int, lr: float = 1e-3) -> AutoencoderKL:
    """The autoencoder with its decoder trained further; the encoder, and so the latents, stay as they are.

    Args:
        latents: posterior means of all drawn pictures, (COUNT, 4, 16, 16), not scaled.
    """
    images, boxes = render_all(work_dir)
    device = next(autoencoder.parameters()).device
    trained = [*autoencoder.decoder.parameters(), *autoencoder.post_quant_conv.parameters()]

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(f"decoder {step}")
        indices = [rng.randrange(COUNT) for _ in range(WHOLE_BATCH)]
        image, weight = (tensor.to(device) for tensor in _batch(images, boxes, indices, SIZE, rng))
        noise = 0.02 * torch.randn(latents[indices].shape, generator=torch.Generator().manual_seed(step))
        latent = latents[indices].float()
        with torch.autocast(device.type, torch.bfloat16):
            reconstruction = autoencoder.decode((latent + noise * latent.std()).to(device))
        return reconstruction_loss(image, reconstruction.float(), weight), {"psnr": _psnr(image, reconstruction)}

    return train_stage("decoder", autoencoder, loss_of, steps=steps, lr=lr, work_dir=work_dir, parameters=trained)


def _batch(images: np.ndarray, boxes: np.ndarray, indices: list[int], crop: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Crops near the centre, (B, 3, crop, crop) in [-1, 1], and their weights, (B, 1, crop, crop)."""
    pixels, weights = [], []
    for index in indices:
        left, top = (min(max(int(rng.gauss((SIZE - crop) / 2, 20)), 0), SIZE - crop) for _ in range(2))
        weight = np.ones((SIZE, SIZE), np.float32)
        x0, y0, x1, y1 = boxes[index].astype(int).clip(0)
        weight[y0:y1, x0:x1] += FACE_WEIGHT
        pixels.append(images[index, top:top + crop, left:left + crop])
        weights.append(weight[top:top + crop, left:left + crop])
    image = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return image, torch.from_numpy(np.stack(weights))[:, None]


def _psnr(image: Tensor, reconstruction: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1]."""
    return (10 * torch.log10(4 / (reconstruction.detach().float() - image).square().mean())).item()
