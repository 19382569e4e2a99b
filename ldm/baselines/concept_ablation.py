"""Concept Ablation (CA, arXiv 2303.13516): maps the prediction for a name to the prediction for an anchor such as "a person".

Variants: model-based (the target is the model's own prediction for the anchor) and noise-based (the target is the noise).
"""

import random
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.data.frozen import Contexts
from ldm.finetuning.samples import noise_of, rng_of, timesteps_of
from ldm.finetuning.weights import Weights, cross_attentions
from ldm.models.diffusion.ddpm import LatentDiffusion

SMALLER, LARGER = (1 / 3, 1.0), (1.2, 1.4)  # ranges of the random scale factor
SMALL_WORDS, LARGE_WORDS = ("a far away ", "very small "), ("zoomed in ", "close up ")  # added to the prompt
SHARE_SMALLER, LEFT_WHOLE = 0.66, 0.6  # probability of SMALLER; a factor below 1 but at least LEFT_WHOLE keeps the size
BORDER = 8  # pixels of a smaller image masked at its border: one latent pixel


def ablation_loss(eps_edited: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Masked mean squared error: mean over the masked pixels and all channels of each sample, then over samples; scalar.

    Args:
        eps_edited: prediction for the name, (B, 4, h, w).
        target: prediction for the anchor (model-based) or the noise (noise-based), (B, 4, h, w); receives no gradient.
        mask: (B, 1, h, w), 1 where a pixel counts, else 0.
    """
    error = (eps_edited - target.detach()).square() * mask
    return (error.sum((1, 2, 3)) / (mask.sum((1, 2, 3)) * error.shape[1])).mean()


@dataclass
class ConceptAblation:
    """Concept Ablation as a `ldm.finetuning.trainer.Method`.

    A training sample is a generated image of the anchor, and its prompt with the anchor replaced by one of the names. The target is the
    current prediction of the edited model, detached.
    """

    trained: Weights
    names: Sequence[str]    # to erase
    anchor: str             # words in each prompt that the name replaces
    prompts: Sequence[str]  # of the anchor's images, N
    latents: Tensor         # of these images, (N, 4, h, w)
    noise_based: bool       # variant noise-based instead of model-based
    anchor_weight: float    # weight of the ordinary diffusion loss on the anchor's images with their own prompts; 0 omits it
    augment: bool           # scale the images randomly and describe the scale in the prompt
    seed: int

    def __post_init__(self) -> None:
        self.model, self.contexts = self.trained.model, Contexts(self.trained.model)

    def loss(self, numbers: range) -> Tensor:
        rngs = [rng_of(self.seed, number) for number in numbers]
        names = [self.names[number % len(self.names)] for number in numbers]
        indices = [rng.randrange(len(self.prompts)) for rng in rngs]
        latent, timestep = self.latents[indices].to(self.model.device), timesteps_of(self.model, rngs)
        words, mask = [""] * len(rngs), torch.ones_like(latent[:, :1])
        if self.augment:
            latent, mask, words = resized(self.model, latent, rngs)
        anchored = [self.prompts[number] for number in indices]
        place = re.compile(rf"\b{re.escape(self.anchor)}\b")
        named = [word + place.sub(name.replace("\\", r"\\"), prompt) for word, prompt, name in zip(words, anchored, names, strict=True)]
        noise = noise_of(self.model, rngs)
        noisy_latent = self.model.q_sample(latent, timestep, noise)
        with begin_of_text_detached(self.model):
            eps_named = self.trained.eps(noisy_latent, timestep, self.contexts(named))
            with torch.set_grad_enabled(self.anchor_weight > 0):
                needed = self.anchor_weight > 0 or not self.noise_based
                eps_anchor = self.trained.eps(noisy_latent, timestep, self.contexts(anchored)) if needed else noise
        loss = ablation_loss(eps_named, noise if self.noise_based else eps_anchor, mask)
        return loss + self.anchor_weight * ablation_loss(eps_anchor, noise, mask) if self.anchor_weight else loss


@contextmanager
def begin_of_text_detached(model: LatentDiffusion) -> Iterator[None]:
    """Temporarily stop gradients through the keys and values of the begin-of-text position, which all texts share."""
    def detached(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, :1].detach(), output[:, 1:]], dim=1)  # (B, 77, inner)

    with ExitStack() as stack:
        for layer in cross_attentions(model).values():
            for projection in (layer.to_k, layer.to_v):
                stack.callback(projection.register_forward_hook(detached).remove)
        yield


@torch.no_grad()
def resized(model: LatentDiffusion, latent: Tensor, rngs: Sequence[random.Random]) -> tuple[Tensor, Tensor, list[str]]:
    """Randomly flip and scale the images of latents (B, 4, h, w); smaller ones are padded with grey, larger ones cropped.

    Returns:
        New latents (B, 4, h, w), mask (B, 1, h, w) of the image without padding, and the words that describe the scale, one per image.
    """
    changed, masks, words = [], [], []
    side = 8 * latent.shape[-1]
    for image, rng in zip(model.decode_first_stage(latent).float().split(1), rngs, strict=True):
        smaller = rng.random() < SHARE_SMALLER
        size = rng.uniform(*(SMALLER if smaller else LARGER))
        pixels = side if smaller and size >= LEFT_WHOLE else round(side * size)
        image = image.flip(-1) if rng.random() < 0.5 else image
        scaled = F.interpolate(image, size=(pixels, pixels), mode="bilinear", antialias=True)
        room = side - pixels
        top, left = (rng.randint(0, abs(room)) * (1 if room > 0 else -1) for _ in range(2))
        edges, inner = [left, room - left, top, room - top], min(BORDER, pixels // 4) if room > 0 else 0
        changed.append(F.pad(scaled, edges))  # negative edges crop
        mask = F.pad(torch.ones_like(scaled[:, :1, 2 * inner:, 2 * inner:]), [edge + inner for edge in edges])
        words.append(rng.choice(SMALL_WORDS) if pixels < side else rng.choice(LARGE_WORDS) if pixels > side else "")
        masks.append(F.interpolate(mask, size=latent.shape[-2:], mode="area").ceil())
    posterior = model.encode_first_stage(torch.cat(changed).clamp(-1, 1).to(next(model.first_stage_model.parameters()).dtype))
    return model.get_first_stage_encoding(posterior.mean).to(latent), torch.cat(masks).to(latent), words
