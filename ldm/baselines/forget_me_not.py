"""Forget-Me-Not (FMN, arXiv 2303.17591): minimizes the attention of image features to a name and to the end-of-text token after it.

Variants: with-ti (tokens for each person, learned first by textual inversion) and without-ti (the tokens of the name).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ldm.finetuning.samples import ImageLatents, noise_of, rng_of, timesteps_of
from ldm.finetuning.weights import Weights, cross_attentions
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import EmbeddingManager

PROMPT = "a photo of {}"


def attention_norm(probabilities: Sequence[Tensor], columns: Sequence[Sequence[int]]) -> Tensor:
    """Euclidean norm of the attention to some text positions, over all layers; mean over samples, scalar.

    Args:
        probabilities: attention of each layer from n pixels to text positions, (B, heads, n, 77).
        columns: the text positions of each sample.
    """
    squares = [cast(Tensor, sum(layer[sample][..., list(places)].square().sum() for layer in probabilities))
               for sample, places in enumerate(columns)]
    return torch.stack(squares).sqrt().mean()


@dataclass
class ForgetMeNot:
    """Forget-Me-Not as a `ldm.finetuning.trainer.Method`. A training sample is an image and the prompt "a photo of NAME"."""

    trained: Weights
    photos: ImageLatents                   # of all people
    of_name: Mapping[str, Sequence[int]]   # name -> indices of its images
    tokens: Mapping[str, EmbeddingManager]  # name -> vectors from textual inversion that replace it; empty for without-ti
    seed: int

    def __post_init__(self) -> None:
        self.model, self.names = self.trained.model, list(self.of_name)
        self._prompts: dict[str, tuple[Tensor, list[int]]] = {}

    def loss(self, numbers: range) -> Tensor:
        rngs = [rng_of(self.seed, number) for number in numbers]
        names = [self.names[number % len(self.names)] for number in numbers]
        latent = self.photos([rng.choice(self.of_name[name]) for name, rng in zip(names, rngs, strict=True)], rngs)
        timestep = timesteps_of(self.model, rngs)
        noisy_latent = self.model.q_sample(latent, timestep, noise_of(self.model, rngs))
        self._prompts |= {name: self.prompt_of(name) for name in names if name not in self._prompts}
        contexts, columns = zip(*(self._prompts[name] for name in names), strict=True)
        with attention_recorded(self.model) as probabilities:
            self.trained.eps(noisy_latent, timestep, torch.cat(contexts))
        return attention_norm(probabilities, columns)

    @torch.no_grad()
    def prompt_of(self, name: str) -> tuple[Tensor, list[int]]:
        """Context (1, 77, d) of "a photo of NAME", and its positions of the name and of the end-of-text tokens, which summarize it."""
        embedder, manager = self.model.cond_stage_model, self.tokens.get(name)
        word = name if manager is None else next(iter(manager.string_to_token_dict))
        before = len(embedder.tokenizer(PROMPT.format("").strip(), add_special_tokens=False)["input_ids"]) + 1  # plus begin of text
        context = self.model.get_learned_conditioning([PROMPT.format(word)], manager)
        return context, list(range(before, embedder.max_length))  # end-of-text tokens fill the rest


@contextmanager
def attention_recorded(model: LatentDiffusion) -> Iterator[list[Tensor]]:
    """Temporarily record the attention probabilities (B, heads, n, 77) of every cross-attention; yields the list that collects them."""
    recorded: list[Tensor] = []
    with ExitStack() as stack:
        for layer in cross_attentions(model).values():
            def attend(q: Tensor, k: Tensor, v: Tensor, own: Callable[..., Tensor] = layer.attend) -> Tensor:
                recorded.append(attention_probabilities(q, k))
                return own(q, k, v)

            layer.attend = attend  # type: ignore[method-assign]
            stack.callback(delattr, layer, "attend")  # the method of the class is back
        yield recorded


def attention_probabilities(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)), (B, heads, n, k) float32, of queries (B, heads, n, d) and keys (B, heads, k, d)."""
    return torch.softmax(q.float() @ k.float().transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
