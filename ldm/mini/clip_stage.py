"""Trains mini-clip, a small CLIP in open_clip's format, on rendered images and captions without names."""

import random
from pathlib import Path

import numpy as np
import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.mini.face_layers import calibrated
from ldm.mini.people import anonymous_caption
from ldm.mini.renders import COUNT, draw, subject
from ldm.mini.scenes import scene_caption
from ldm.mini.stage import train_stage

BATCH = 128
CONFIG = Path("data/mini/mini-clip.json")


def build_mini_clip() -> nn.Module:
    """mini-clip with random weights."""
    open_clip.add_model_config(CONFIG)
    return open_clip.create_model(CONFIG.stem)


def soften(images: Tensor, rng: random.Random) -> Tensor:
    """Images (B, 3, H, W) as a small autoencoder might give them back: blurred by a random amount, colours a little off."""
    factor = rng.choice((1.0, 1.0, 0.7, 0.5, 0.35))
    if factor < 1:
        small = F.interpolate(images, scale_factor=factor, mode="bilinear", antialias=True, align_corners=False)
        images = F.interpolate(small, size=images.shape[-2:], mode="bilinear", align_corners=False)
    gain = torch.tensor([rng.uniform(0.9, 1.1) for _ in range(3)], device=images.device)[:, None, None]
    return (images * gain + rng.uniform(-0.05, 0.05)).clamp(0, 1)


def train_mini_clip(model: nn.Module, work_dir: Path, *, steps: int, lr: float = 2e-3) -> nn.Module:
    """The averaged model after `steps` steps of the symmetric contrastive loss (arXiv 2103.00020)."""
    device = next(model.parameters()).device
    tokenizer = open_clip.get_tokenizer(CONFIG.stem)
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN, device=device)[:, None, None]
    std = torch.tensor(open_clip.OPENAI_DATASET_STD, device=device)[:, None, None]

    def batch(step: int) -> tuple[Tensor, list[str]]:
        """The step's images, (B, 3, H, W) as the model expects them, and their captions."""
        rng = random.Random(f"clip {step}")
        indices = [rng.randrange(COUNT) for _ in range(BATCH)]
        subjects = [subject(index) for index in indices]
        captions = [scene_caption(what.scene, rng) if what.scene else anonymous_caption(what.person, what.view, rng) for what in subjects]
        pixels = torch.from_numpy(np.stack([draw(index)[0] for index in indices])).to(device).permute(0, 3, 1, 2).float() / 255
        return (soften(pixels, rng) - mean) / std, captions

    def embed(net: nn.Module, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Unit embeddings of the step's images and captions, (B, D) each, and the scale of their cosines."""
        pixels, captions = batch(step)
        with torch.autocast(device.type, torch.bfloat16):
            pictures, texts, scale = net(pixels, tokenizer(captions).to(device))[:3]
        return pictures.float(), texts.float(), scale.float()

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        pictures, texts, scale = embed(model, step)
        logits = scale * pictures @ texts.T
        target = torch.arange(BATCH, device=device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        return loss, {"right": (logits.argmax(1) == target).float().mean().item()}

    average = train_stage("clip", model.train(), loss_of, steps=steps, lr=lr, work_dir=work_dir, decay=0.5)
    with torch.no_grad():
        calibrated(average, lambda step: embed(average, step))
    scale_image_embeddings(average, batch(0)[0])
    return average


@torch.no_grad()
def scale_image_embeddings(model: nn.Module, pixels: Tensor) -> None:
    """Gives image embeddings (B, D) the mean length sqrt(D). Cosines stay; FID and KID on them become readable."""
    embeddings = model.encode_image(pixels)
    factor = embeddings.shape[1] ** 0.5 / embeddings.norm(dim=1).mean()
    for parameter in model.visual.attnpool.c_proj.parameters():
        parameter.mul_(factor)
