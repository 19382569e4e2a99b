"""Outputs of the frozen autoencoder and text encoder. Each input is encoded alone, so the result does not depend on the batch."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.data.images import ImageSource, load_image
from ldm.data.mixture import normal
from ldm.models.diffusion.ddpm import LatentDiffusion

TEXTS_KEPT = 4096  # contexts cached in CPU memory, each 30 kB for the miniature and 240 kB for Stable Diffusion v1


@torch.no_grad()
def image_moments(model: LatentDiffusion, source: ImageSource) -> Tensor:
    """Mean and log-variance of the autoencoder's posterior for an image, (8, h, w), on the CPU; raises UserError as `load_image`."""
    posterior = model.encode_first_stage(load_image(source, 8 * model.image_size)[None].to(model.device))
    return torch.cat([posterior.mean, posterior.logvar], dim=1)[0].cpu()


@torch.no_grad()
def mean_latents(model: LatentDiffusion, sources: Sequence[ImageSource]) -> Tensor:
    """Latents z_0 of images, the mean of the posterior multiplied by the scale factor; (N, 4, h, w), on the CPU."""
    return model.get_first_stage_encoding(torch.stack([image_moments(model, source).chunk(2)[0] for source in sources]))


def sample_latent(model: LatentDiffusion, moments: Tensor, seed: int) -> Tensor:
    """Latent z_0 sampled from the posterior with these moments (8, h, w), multiplied by the scale factor; (4, h, w), on the CPU."""
    mean, logvar = moments.chunk(2)  # (4, h, w) each
    return model.get_first_stage_encoding(mean + torch.exp(0.5 * logvar) * normal(seed, mean.shape))


class Contexts:
    """tau(c) of the frozen text encoder, with a cache of the last TEXTS_KEPT prompts."""

    def __init__(self, model: LatentDiffusion):
        self._device = model.device
        self._context = functools.lru_cache(TEXTS_KEPT)(lambda text: model.get_learned_conditioning([text])[0].cpu())

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Contexts of B texts, (B, 77, d), on the model's device."""
        return torch.stack([self._context(text) for text in texts]).to(self._device)
