"""Trains the miniature's decoder further behind the finished encoder: sharper faces from the same latents."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.mini.autoencoder_stage import batch, psnr, reconstruction_loss
from ldm.mini.face_recogniser import FaceRecogniser
from ldm.mini.face_renders import CROP, similarity_to_template
from ldm.mini.renders import SIZE
from ldm.mini.stage import rank_and_world, train_stage
from ldm.models.autoencoder import AutoencoderKL

DECODER_NOISE = 0.05     # in standard deviations of the latents: what a U-Net gets wrong
IDENTITY_WEIGHT = 0.5


def train_decoder(autoencoder: AutoencoderKL, recogniser: FaceRecogniser, work_dir: Path, *, steps: int, lr: float = 1e-3) -> AutoencoderKL:
    """The averaged autoencoder after `steps` steps of its decoder; the encoder, and so the latents, stay as they are.

    The loss is the autoencoder's plus 1 - cos of the recogniser's embeddings of the faces in image and reconstruction.
    """
    device = next(autoencoder.parameters()).device
    rank, world = rank_and_world()
    recogniser = recogniser.to(device).requires_grad_(False)
    trained = [*autoencoder.decoder.parameters(), *autoencoder.post_quant_conv.parameters()]

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        image, weight, landmarks = batch("decoder", step, SIZE, device)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                latent = autoencoder.encode(image).mean
            noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(step * world + rank)).to(device)
            reconstruction = autoencoder.decode(latent + DECODER_NOISE * latent.std() * noise).float()
        loss, cosine = reconstruction_loss(image, reconstruction, weight), torch.ones(())
        if any(points is not None for points in landmarks):
            first, second = (F.normalize(recogniser(aligned_faces(images, landmarks))) for images in (image, reconstruction))
            cosine = (first * second).sum(1).mean()
        return loss + IDENTITY_WEIGHT * (1 - cosine), {"psnr": psnr(image, reconstruction), "cosine": cosine.item()}

    return train_stage("decoder", autoencoder, loss_of, steps=steps, lr=lr, work_dir=work_dir, parameters=trained, decay=0.6, ema=0.997,
                       muon=True)


def aligned_faces(images: Tensor, landmarks: list[np.ndarray | None]) -> Tensor:
    """Faces of the images that have landmarks in ArcFace's position, (F, 3, 112, 112), as `face_renders.aligned` but differentiable.

    Args:
        images: (B, 3, SIZE, SIZE); landmarks: B arrays (5, 2) in pixels, or None.
    """
    shown, grids = [], []
    y, x = np.mgrid[:CROP, :CROP]
    for number, points in enumerate(landmarks):
        if points is not None:
            matrix = similarity_to_template(points)
            source = np.linalg.solve(matrix[:, :2], np.stack([x.ravel() - matrix[0, 2], y.ravel() - matrix[1, 2]]))     # (2, CROP^2)
            shown.append(number)
            grids.append((2 * source / (SIZE - 1) - 1).T.reshape(CROP, CROP, 2))
    grid = torch.from_numpy(np.stack(grids)).to(images)
    return F.grid_sample(images[shown], grid, align_corners=True)
