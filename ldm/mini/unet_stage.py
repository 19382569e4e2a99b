"""Trains the miniature's U-Net on the latents of the rendered world, with the autoencoder and the text encoders frozen."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed, nn
from tqdm import tqdm

from ldm.cpu_bf16 import use_fast_bf16
from ldm.mini.renders import COUNT, NAMED, draw, subject
from ldm.mini.stage import rank_and_world, train_stage
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import write_atomically

BATCH = 32
SNR_CLIP = 5.0         # min-SNR weighting of the noise error (arXiv 2303.09556)
NO_CAPTION = 0.1       # share of samples that learn the empty prompt, for guidance
NAMED_SHARE = 0.45

Look = Callable[[np.ndarray], np.ndarray]  # image (H, W, 3) uint8 RGB -> the same image in another look
ENCODED_AT_ONCE = 32


def latents_of_renders(autoencoder: AutoencoderKL, work_dir: Path, look: Look | None = None, count: int = COUNT) -> Tensor:
    """Posterior means of the first `count` images, (count, 4, 16, 16) fp16, not scaled; computed on the first call for each look.

    Under torchrun each rank encodes a shard of the images.
    """
    path = work_dir / f"latents{f'-{look.__name__}' if look else ''}.pt"
    if not path.exists():
        rank, world = rank_and_world()
        shards = [encoded(autoencoder, range(rank, count, world), look)] * world
        if world > 1:
            distributed.all_gather_object(shards, shards[rank])
        if rank == 0:
            means = torch.empty((count, *shards[0].shape[1:]), dtype=shards[0].dtype)
            for first, shard in enumerate(shards):
                means[first::world] = shard
            write_atomically(path, lambda target: torch.save(means, target))
        if world > 1:
            distributed.barrier()
    return torch.load(path, weights_only=True)


@torch.no_grad()
def encoded(autoencoder: AutoencoderKL, indices: range, look: Look | None) -> Tensor:
    """Posterior means of the images with these indices, (len(indices), 4, 16, 16) fp16."""
    device, means = next(autoencoder.parameters()).device, []
    autoencoder.to(memory_format=torch.channels_last)  # a fifth faster on a CPU
    bar = tqdm(range(0, len(indices), ENCODED_AT_ONCE), desc="encoding the world", unit="batch", disable=rank_and_world()[0] > 0)
    for first in bar:
        images = [draw(index)[0] for index in indices[first:first + ENCODED_AT_ONCE]]
        pixels = torch.from_numpy(np.stack([look(image) if look else image for image in images])).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            means.append(autoencoder.encode(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).mean.half().cpu())
    return torch.cat(means)


def train_unet(model: LatentDiffusion, latents: Tensor, work_dir: Path, *, steps: int, lr: float = 1e-3, name: str = "unet",
               ema: float = 0.9995, decay: float = 0.25, snr_clip: float = SNR_CLIP,
               is_trained: Callable[[str], bool] | None = None) -> nn.Module:
    """The averaged `model.model` (the U-Net with its wrapper) after `steps` steps of eps-prediction.

    Args:
        latents: (COUNT, 4, 16, 16), not scaled.
        name: of the stage's files; other names sample other batches.
        ema: decay of the average per step; lower for fewer steps, such as those that start from trained weights.
        decay: share of the steps over which the learning rate decreases to zero.
        snr_clip: of the min-SNR weighting; infinity weights every timestep alike.
        is_trained: which tensors of the U-Net, by key, are trained; None: all.
    """
    device = next(model.model.parameters()).device
    rank, world = rank_and_world()
    model.requires_grad_(False)
    model.model.train()
    if device.type == "cpu":
        use_fast_bf16(model.model)
    trained = [parameter for key, parameter in model.model.named_parameters() if is_trained is None or is_trained(key)]
    for parameter in trained:
        parameter.requires_grad_(True)
    snr = (model.alphas_cumprod / (1 - model.alphas_cumprod)).to(device)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(f"{name} {step * world + rank}")
        indices = [rng.randrange(NAMED) if rng.random() < NAMED_SHARE else rng.randrange(NAMED, COUNT) for _ in range(BATCH)]
        captions = ["" if rng.random() < NO_CAPTION else subject(index).caption(rng) for index in indices]
        latent = latents[indices].float().to(device) * model.scale_factor                       # (B, 4, 16, 16)
        generator = torch.Generator().manual_seed(step * world + rank)
        timestep = torch.randint(model.num_timesteps, (BATCH,), generator=generator).to(device)
        noise = torch.randn(latent.shape, generator=generator).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                context = model.get_negative_conditioning(captions)        # SDXL's form reads zeros for the empty caption
            eps = model.apply_model(model.q_sample(latent, timestep, noise), timestep, context)
        error = (eps.float() - noise).square().mean((1, 2, 3))                                  # (B,)
        weight = (snr_clip / snr[timestep]).clamp(max=1.0)
        return (weight * error).mean(), {"mse": error.mean().item()}

    return train_stage(name, model.model, loss_of, steps=steps, lr=lr, work_dir=work_dir, ema=ema, decay=decay, parameters=trained,
                       muon=True)
