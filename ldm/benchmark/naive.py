"""The work of the released training loop: the step as `ldm/apl/step.py` defines it, without any optimization.

Batch 1, float32. Each step encodes the image and three prompts again, calls the U-Net three times, one sample at a time, keeps the
attention probabilities in memory, and computes unused gradients of the U-Net's weights. Each waste can be switched off alone; none of
them changes the gradient of the prefix.

On a CPU up to half of its time is system time: memory for the probabilities is mapped and cleared again and again, because glibc keeps
no block above 32 MB. MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296 in the environment avoids it.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel

import ldm.cpu_bf16
import ldm.modules.attention
from ldm.apl.step import training_loss
from ldm.benchmark.subject import Example, draw_latent, method_of
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import Manager


@dataclass(frozen=True)
class Wastes:
    """Unnecessary work of the naive step; the table names each waste by its remedy, see `REMEDIES`."""

    encodes_images: bool = True
    encodes_texts: bool = True
    weight_gradients: bool = True
    eager_attention: bool = True
    convolves_pixels: bool = True  # 1 x 1 convolutions around the transformers, which are linear layers
    one_by_one: bool = True  # the frozen predictions in separate calls of the U-Net
    asks_twice: bool = True  # a second call for a known prediction: c1 = c2, or the prediction with the prefix in "apl-released"


REMEDIES = {"encodes_images": "cached latents", "encodes_texts": "cached text", "weight_gradients": "no weight gradients",
            "eager_attention": "fused attention", "convolves_pixels": "linear layers",
            "one_by_one": "frozen forwards batched", "asks_twice": "no redundant forward"}


def wastes_of(kind: str) -> tuple[str, ...]:
    """Fields of `Wastes` that a kind of step has: with different c1 and c2, no prediction is made twice."""
    return tuple(waste for waste in REMEDIES if waste != "asks_twice" or kind != "identity")


class NaiveSteps:
    """Steps of one kind: "identity" (Eq. 6), "regularising" (Eq. 7, c1 = c2) or "apl-released" (c1 predicted with the prefix)."""

    def __init__(self, model: LatentDiffusion, prefix: Manager, kind: str, wastes: Wastes):
        self.model, self.prefix, self.kind, self.wastes = model, prefix, kind, wastes
        self.seen = ModelWithout(model, wastes)
        self.optimizer = torch.optim.Adam(prefix.embedding_parameters(), lr=1e-3)

    def run(self, examples: Sequence[Example]) -> None:
        """Make a step on each example, which updates the prefix."""
        unet = self.model.model.requires_grad_(self.wastes.weight_gradients)
        with eager_attention(self.model, self.wastes.eager_attention), convolutions(self.wastes.convolves_pixels):
            for example in examples:
                self._step(example)
        unet.requires_grad_(False)

    def _step(self, example: Example) -> None:
        latent = example.latent
        if self.wastes.encodes_images:
            with torch.no_grad():
                latent = draw_latent(self.model, example.image, example.posterior_noise)
        self.seen.begin_step()
        losses = training_loss(cast(LatentDiffusion, self.seen), self.prefix, latent, example.noise, example.timestep,
                               [example.name_prompt], [example.attribute_prompt], train_method=method_of(self.kind))
        self.optimizer.zero_grad()  # of the prefix only
        losses.mean().backward()
        self.optimizer.step()


class ModelWithout:
    """The model for `training_loss` on one sample, with a remedy in place of every waste that is switched off.

    `training_loss` makes the prediction with the prefix first. Then it asks, without gradients, for two contexts and two predictions.
    A context is a pair (text, tau of it), so that contexts and predictions of the same text are recognised.
    """

    def __init__(self, model: LatentDiffusion, wastes: Wastes):
        self.model, self.wastes, self.q_sample = model, wastes, model.q_sample
        self._contexts: dict[str, Tensor] = {}   # of frozen texts
        self._token_ids: dict[str, Tensor] = {}  # of texts with the placeholder
        self.begin_step()

    def begin_step(self) -> None:
        """Forget the previous step."""
        self._prefixed: dict[str, Tensor] = {}       # contexts with the prefix
        self._asked: list[tuple[str, Tensor]] = []   # contexts without gradients
        self._together: list[Tensor] = []            # their predictions, in this order
        self._eps: dict[str, Tensor] = {}            # predictions by text

    def get_learned_conditioning(self, texts: Sequence[str], embedding_manager: Manager | None = None) -> tuple[str, Tensor]:
        text, = texts
        if self.wastes.encodes_texts:
            context = self.model.get_learned_conditioning(texts, embedding_manager)
        elif embedding_manager is None:
            if text not in self._contexts:
                self._contexts[text] = self.model.get_learned_conditioning(texts)
            context = self._contexts[text]
        else:
            context = self._prefixed_context(text, embedding_manager)
        if not torch.is_grad_enabled():
            self._asked.append((text, context))
        return text, context

    def apply_model(self, noisy_latent: Tensor, timestep: Tensor, context: tuple[str, Tensor]) -> Tensor:
        text, tau = context
        if not self.wastes.asks_twice and text in self._eps:
            return self._eps[text].detach()
        if torch.is_grad_enabled() or self.wastes.one_by_one:
            self._eps[text] = self.model.apply_model(noisy_latent, timestep, tau)
        else:
            self._together = self._together or self._frozen_predictions(noisy_latent, timestep)
            self._eps[text] = self._together.pop(0)
        return self._eps[text]

    def _frozen_predictions(self, noisy_latent: Tensor, timestep: Tensor) -> list[Tensor]:
        """(1, 4, h, w) for each context that was asked for; without `asks_twice` one per text without a prediction."""
        contexts = [tau for _, tau in self._asked]
        if not self.wastes.asks_twice:
            contexts = [tau for text, tau in dict(self._asked).items() if text not in self._eps]
        n = len(contexts)
        return list(self.model.apply_model(torch.cat([noisy_latent] * n), torch.cat([timestep] * n), torch.cat(contexts)).split(1))

    def _prefixed_context(self, text: str, prefix: Manager) -> Tensor:
        """tau_AP(c), (1, 77, d), once per step, from token ids that are made once; gradients reach the prefix."""
        if text not in self._token_ids:
            self._token_ids[text] = self.model.cond_stage_model.tokenize([text], prefix.extra_length).to(self.model.device)
        if text not in self._prefixed:
            self._prefixed[text] = self.model.cond_stage_model.context(self._token_ids[text], prefix)
        return self._prefixed[text]


@contextmanager
def eager_attention(model: LatentDiffusion, wanted: bool = True) -> Iterator[None]:
    """Temporarily compute attention in all three networks with its probabilities in memory, as in the backward pass."""
    if not wanted:
        yield
        return
    fused, ours = F.scaled_dot_product_attention, ldm.cpu_bf16.attention
    text_models = [module for module in model.cond_stage_model.modules() if isinstance(module, CLIPTextModel)]
    implementations = [text_model.config._attn_implementation for text_model in text_models]
    F.scaled_dot_product_attention = ldm.cpu_bf16.attention = _attention  # type: ignore[assignment]
    for text_model in text_models:
        text_model.set_attn_implementation("eager")
    try:
        yield
    finally:
        F.scaled_dot_product_attention, ldm.cpu_bf16.attention = fused, ours
        for text_model, implementation in zip(text_models, implementations, strict=True):
            text_model.set_attn_implementation(implementation)


@contextmanager
def convolutions(wanted: bool = True) -> Iterator[None]:
    """Temporarily use 1 x 1 convolutions at both ends of the U-Net's transformers, as v1's weights are stored."""
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
