"""The work of the released training loop: the step as `ldm/apl/step.py` defines it, without any optimization, in float32 at batch 1.

Each step encodes the image and three prompts again, calls the U-Net three times, one sample at a time, keeps the
attention probabilities in memory, and computes unused gradients of the U-Net's weights. Each waste can be switched off alone; none
changes the gradient of the prefix.

On a CPU up to half of its time is system time, spent on mapping and clearing memory for the probabilities; see README.md.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel

import ldm.cpu_bf16
import ldm.modules.attention
from ldm.apl.step import training_loss
from ldm.benchmark.ours import METHODS, Example, latent_of
from ldm.data.frozen import Contexts
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import Manager

REMEDIES = {  # waste -> its remedy, by which the table names it
    "encodes_images": "cached latents",
    "encodes_texts": "cached text",
    "weight_gradients": "no weight gradients",
    "eager_attention": "fused attention",
    "convolves_pixels": "linear layers",      # 1 x 1 convolutions around the transformers
    "one_by_one": "frozen forwards batched",  # the frozen predictions in separate calls of the U-Net
    "asks_twice": "no redundant forward",     # a second call for a known prediction: c1 = c2, or the prefixed one in "apl-released"
}


def wastes_of(kind: str) -> list[str]:
    """The wastes of a kind of step: with different c1 and c2, no prediction is made twice."""
    return [waste for waste in REMEDIES if waste != "asks_twice" or kind != "identity"]


class NaiveSteps:
    """Steps with some wastes: "identity" (Eq. 6), "regularising" (Eq. 7, c1 = c2) or "apl-released" (c1 predicted with the prefix)."""

    def __init__(self, model: LatentDiffusion, prefix: Manager, kind: str, wastes: Collection[str]):
        self.model, self.prefix, self.kind, self.wastes = model, prefix, kind, wastes
        self.seen = ModelWithout(model, prefix, wastes)
        self.optimizer = torch.optim.Adam(prefix.embedding_parameters(), lr=1e-3)

    def run(self, examples: Sequence[Example]) -> None:
        """Make a step on each example, which updates the prefix."""
        unet = self.model.model.requires_grad_("weight_gradients" in self.wastes)
        with released_operators(self.model, self.wastes):
            for example in examples:
                self._step(example)
        unet.requires_grad_(False)

    def _step(self, example: Example) -> None:
        latent = example.latent
        if "encodes_images" in self.wastes:
            with torch.no_grad():
                latent = latent_of(self.model, example.image, example.posterior_noise)
        self.seen.begin_step()
        losses = training_loss(cast(LatentDiffusion, self.seen), self.prefix, latent, example.noise, example.timestep,
                               [example.name_prompt], [example.attribute_prompt], train_method=METHODS[self.kind])
        self.optimizer.zero_grad()  # of the prefix only
        losses.mean().backward()
        self.optimizer.step()


class ModelWithout:
    """The model for `training_loss` on one sample, with a remedy in place of every waste that is switched off.

    `training_loss` makes the prediction with the prefix first. Then it asks, without gradients, for two contexts and two predictions.
    A context is a pair (text, tau of it), so that contexts and predictions of the same text are recognized.
    """

    def __init__(self, model: LatentDiffusion, prefix: Manager, wastes: Collection[str]):
        def token_ids(text: str) -> Tensor:
            return model.cond_stage_model.tokenize([text], prefix.extra_length).to(model.device)

        self.model, self.wastes, self.q_sample = model, wastes, model.q_sample
        self._contexts, self._token_ids = Contexts(model), cache(token_ids)
        self.begin_step()

    def begin_step(self) -> None:
        """Forget the previous step."""
        self._prefixed: dict[str, Tensor] = {}       # contexts with the prefix
        self._asked: list[tuple[str, Tensor]] = []   # contexts without gradients
        self._together: list[Tensor] = []            # their predictions, in this order
        self._eps: dict[str, Tensor] = {}            # predictions by text

    def get_learned_conditioning(self, texts: Sequence[str], embedding_manager: Manager | None = None) -> tuple[str, Tensor]:
        text, = texts
        if "encodes_texts" in self.wastes:
            context = self.model.get_learned_conditioning(texts, embedding_manager)
        elif embedding_manager is None:
            context = self._contexts(texts)
        else:
            if text not in self._prefixed:
                self._prefixed[text] = self.model.cond_stage_model.context(self._token_ids(text), embedding_manager)
            context = self._prefixed[text]
        if not torch.is_grad_enabled():
            self._asked.append((text, context))
        return text, context

    def apply_model(self, noisy_latent: Tensor, timestep: Tensor, context: tuple[str, Tensor]) -> Tensor:
        text, tau = context
        if "asks_twice" not in self.wastes and text in self._eps:
            return self._eps[text].detach()
        if torch.is_grad_enabled() or "one_by_one" in self.wastes:
            self._eps[text] = self.model.apply_model(noisy_latent, timestep, tau)
            return self._eps[text]
        if not self._together:  # all contexts that were asked for; without `asks_twice` one per text without a prediction
            contexts = [tau for _, tau in self._asked]
            if "asks_twice" not in self.wastes:
                contexts = [tau for text, tau in dict(self._asked).items() if text not in self._eps]
            n = len(contexts)
            together = self.model.apply_model(noisy_latent.repeat(n, 1, 1, 1), timestep.repeat(n), torch.cat(contexts))
            self._together = list(together.split(1))
        self._eps[text] = self._together.pop(0)
        return self._eps[text]


@contextmanager
def released_operators(model: LatentDiffusion, wastes: Collection[str]) -> Iterator[None]:
    """Temporarily compute attention in all three networks with its probabilities in memory, as in the backward pass, and use 1 x 1
    convolutions at both ends of the U-Net's transformers, as v1's weights are stored; each if it is one of the wastes."""
    before = F.scaled_dot_product_attention, ldm.cpu_bf16.attention, ldm.modules.attention.over_pixels
    implementations = {module: module.config._attn_implementation for module in model.cond_stage_model.modules()
                       if isinstance(module, CLIPTextModel)}
    if "convolves_pixels" in wastes:
        ldm.modules.attention.over_pixels = _convolved
    if "eager_attention" in wastes:
        F.scaled_dot_product_attention = ldm.cpu_bf16.attention = _attention  # type: ignore[assignment]
        for text_model in implementations:
            text_model.set_attn_implementation("eager")
    try:
        yield
    finally:
        F.scaled_dot_product_attention, ldm.cpu_bf16.attention, ldm.modules.attention.over_pixels = before
        for text_model, implementation in implementations.items():
            text_model.set_attn_implementation(implementation)


def _convolved(projection: nn.Conv2d | nn.Linear, pixels: Tensor) -> Tensor:
    """(B, n, C) of a square feature map -> (B, n, C)."""
    if projection.weight.dim() == 2:
        return projection(pixels)
    side = math.isqrt(pixels.shape[1])
    return projection(pixels.transpose(1, 2).unflatten(-1, (side, side)).contiguous()).flatten(2).transpose(1, 2).contiguous()


def _attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_off: object) -> Tensor:
    """(B, heads, n, d) of queries (B, heads, n, d), keys and values (B, heads, k, d): products, softmax, product, one after the other."""
    similarity = torch.einsum("b h i d, b h j d -> b h i j", q, k) * q.shape[-1] ** -0.5
    similarity = similarity if attn_mask is None else similarity + attn_mask
    return torch.einsum("b h i j, b h j d -> b h i d", similarity.softmax(dim=-1), v)
