"""The step that the released training loop makes, written anew from a description of its work, wastes and all.

Batch 1, float32. In each step it encodes the picture and three prompts again, asks the U-Net three times, one sample at a time,
holds the attention's probabilities in memory, and computes gradients of the U-Net's weights that nothing uses. Each waste can
be switched off alone; none of them changes the gradient of the prefix.

On a CPU up to half of its time is the system's, which maps and clears memory for the probabilities again and again: glibc keeps
no block above 32 MB. With MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296 in the environment it is not.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel

import ldm.modules.attention
from ldm.apl.losses import apl_loss
from ldm.benchmark.subject import Example, draw_latent
from ldm.generation import with_prefix
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import EmbeddingManager

ALPHA = 1.0


@dataclass(frozen=True)
class Wastes:
    """What the naive step does though it need not; named in the table by what replaces it, see `REMEDIES`."""

    encodes_images: bool = True
    encodes_texts: bool = True
    weight_gradients: bool = True
    eager_attention: bool = True
    convolves_pixels: bool = True  # 1 x 1 convolutions around the transformers, which are linear layers
    one_by_one: bool = True  # the frozen predictions in separate calls of the U-Net
    asks_twice: bool = True  # for a prediction that it has: c1 = c2, or the released objective's own


REMEDIES = {"encodes_images": "cached latents", "encodes_texts": "cached text", "weight_gradients": "no weight gradients",
            "eager_attention": "fused attention", "convolves_pixels": "linear layers",
            "one_by_one": "frozen forwards batched", "asks_twice": "no redundant forward"}


def wastes_of(kind: str) -> tuple[str, ...]:
    """Fields of `Wastes` that a kind of step has: in Eq. 5 with c1 and c2 apart, no prediction is asked for twice."""
    return tuple(waste for waste in REMEDIES if waste != "asks_twice" or kind != "identity")


class NaiveSteps:
    """Steps of one kind: "identity" (Eq. 6), "regularising" (Eq. 7, c1 = c2) or "apl-released" (c1 predicted with the prefix)."""

    def __init__(self, model: LatentDiffusion, prefix: EmbeddingManager, kind: str, wastes: Wastes):
        self.model, self.prefix, self.kind, self.wastes = model, prefix, kind, wastes
        self.optimizer = torch.optim.Adam(prefix.embedding_parameters(), lr=1e-3)
        self._token_ids: dict[str, Tensor] = {}
        self._contexts: dict[str, Tensor] = {}

    def run(self, examples: Sequence[Example]) -> None:
        """A step on each example; the prefix moves."""
        unet = self.model.model.requires_grad_(self.wastes.weight_gradients)
        with eager_attention(self.model, self.wastes.eager_attention), convolutions(self.wastes.convolves_pixels):
            for example in examples:
                self._step(example)
        unet.requires_grad_(False)

    def _step(self, example: Example) -> None:
        with torch.no_grad():
            latent = example.latent
            if self.wastes.encodes_images:
                latent = draw_latent(self.model, example.image, example.posterior_noise)
            noisy_latent = self.model.q_sample(latent, example.timestep, example.noise)

        context_prefixed = self._prefixed_context(example.name_prompt)
        with torch.no_grad():
            context_attributes = self._context(example.attribute_prompt)
            context_name = context_prefixed if self.kind == "apl-released" else self._context(example.name_prompt)
            if self.kind == "apl-released" and self.wastes.encodes_texts:
                self._prefixed_context(example.name_prompt)
            frozen = [context_attributes] + [context_name] * (self.wastes.asks_twice or self.kind == "identity")
            eps = self._frozen(noisy_latent, example.timestep, frozen)

        eps_prefixed = self.model.apply_model(noisy_latent, example.timestep, context_prefixed)
        known = eps_prefixed.detach() if self.kind == "apl-released" else eps[0]  # in place of the forward that is not made
        self.optimizer.zero_grad()  # of the prefix alone
        apl_loss(eps_prefixed, eps[1] if len(eps) == 2 else known, eps[0], ALPHA).backward()
        self.optimizer.step()

    def _frozen(self, noisy_latent: Tensor, timestep: Tensor, contexts: Sequence[Tensor]) -> Sequence[Tensor]:
        """Predictions (1, 4, h, w) under each context."""
        if self.wastes.one_by_one:
            return [self.model.apply_model(noisy_latent, timestep, context) for context in contexts]
        count = len(contexts)
        return self.model.apply_model(torch.cat([noisy_latent] * count), torch.cat([timestep] * count), torch.cat(contexts)).split(1)

    def _context(self, prompt: str) -> Tensor:
        """tau(c), (1, 77, d)."""
        if self.wastes.encodes_texts or prompt not in self._contexts:
            self._contexts[prompt] = self.model.get_learned_conditioning([prompt])
        return self._contexts[prompt]

    def _prefixed_context(self, prompt: str) -> Tensor:
        """tau_AP(c), (1, 77, d), from which gradients reach the prefix."""
        embedder = self.model.cond_stage_model
        if self.wastes.encodes_texts or prompt not in self._token_ids:
            token_ids = embedder.tokenize(with_prefix([prompt], self.prefix), self.prefix.extra_length)
            self._token_ids[prompt] = token_ids.to(self.model.device)
        return embedder.context(self._token_ids[prompt], self.prefix)


@contextmanager
def eager_attention(model: LatentDiffusion, wanted: bool = True) -> Iterator[None]:
    """In here all three networks hold the probabilities of every attention in memory, for the backward pass as well."""
    if not wanted:
        yield
        return
    fused, ours = F.scaled_dot_product_attention, ldm.modules.attention.attention
    text_models = [module for module in model.cond_stage_model.modules() if isinstance(module, CLIPTextModel)]
    implementations = [text_model.config._attn_implementation for text_model in text_models]
    F.scaled_dot_product_attention = ldm.modules.attention.attention = _attention
    for text_model in text_models:
        text_model.set_attn_implementation("eager")
    try:
        yield
    finally:
        F.scaled_dot_product_attention, ldm.modules.attention.attention = fused, ours
        for text_model, implementation in zip(text_models, implementations, strict=True):
            text_model.set_attn_implementation(implementation)


@contextmanager
def convolutions(wanted: bool = True) -> Iterator[None]:
    """In here the U-Net's transformers project in and out by convolutions, where v1's weights are those of one."""
    linear = ldm.modules.attention.over_pixels
    if wanted:
        ldm.modules.attention.over_pixels = _convolved
    try:
        yield
    finally:
        ldm.modules.attention.over_pixels = linear


def _convolved(projection: nn.Conv2d | nn.Linear, pixels: Tensor) -> Tensor:
    """(B, n, C) of a square feature map -> (B, n, C)."""
    side = math.isqrt(pixels.shape[1])
    if projection.weight.dim() == 2:
        return projection(pixels)
    return projection(pixels.transpose(1, 2).unflatten(-1, (side, side)).contiguous()).flatten(2).transpose(1, 2).contiguous()


def _attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_off: object) -> Tensor:
    """(B, heads, n, d) of queries (B, heads, n, d), keys and values (B, heads, k, d): products, softmax, product, one after the other."""
    similarity = torch.einsum("b h i d, b h j d -> b h i j", q, k) * q.shape[-1] ** -0.5
    similarity = similarity if attn_mask is None else similarity + attn_mask
    return torch.einsum("b h i j, b h j d -> b h i d", similarity.softmax(dim=-1), v)
