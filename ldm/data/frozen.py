"""What the frozen autoencoder and text encoder make of pictures and texts, each once and alone, so that no bit depends on another."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.data.images import ImageSource, load_image
from ldm.data.mixture import normal
from ldm.models.diffusion.ddpm import LatentDiffusion

TEXTS_KEPT = 4096  # contexts of 30 kB each for the miniature, 240 kB for Stable Diffusion v1, in the CPU's memory


@torch.no_grad()
def picture_moments(model: LatentDiffusion, source: ImageSource) -> Tensor:
    """Mean and log-variance of the posterior over a picture's latent, (8, h, w), on the CPU; UserError if it cannot be decoded."""
    image = load_image(source, 8 * model.image_size)[None].to(model.device)
    posterior = model.encode_first_stage(image)
    return torch.cat([posterior.mean, posterior.logvar], dim=1)[0].cpu()


def posterior_draw(model: LatentDiffusion, moments: Tensor, seed: int) -> Tensor:
    """Latent z_0 drawn from the posterior of `picture_moments`, (4, h, w), on the CPU."""
    mean, logvar = moments.chunk(2)  # (4, h, w) each
    return model.get_first_stage_encoding(mean + torch.exp(0.5 * logvar) * normal(seed, mean.shape))


class Contexts:
    """tau(c) of the frozen text encoder."""

    def __init__(self, model: LatentDiffusion):
        @torch.no_grad()
        def context(text: str) -> Tensor:
            return model.get_learned_conditioning([text])[0].cpu()

        self._device, self._context = model.device, functools.lru_cache(TEXTS_KEPT)(context)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(B, 77, d) of B texts, on the model's device."""
        return torch.stack([self._context(text) for text in texts]).to(self._device)
