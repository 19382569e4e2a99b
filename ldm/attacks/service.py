"""The hosted service under attack: a frozen model that puts the prefix in front of every prompt, at the level of embeddings.

The prefix is out of an attacker's reach. Every attack is a search over what stands between the prefix and the end of the text: words, an
uploaded embedding, or several prompts with weights. The threat model is in README.md.
"""

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.generation import WeightedPrompts, to_uint8
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import Manager
from ldm.util import UserError

UPLOAD = "sks"  # word that stands for uploaded vectors
FREE = -1       #  in token ids: a place for a vector that an attack chooses
WORD = re.compile("[a-z]{2,}</w>")


@dataclass(frozen=True)
class Submission:
    """What an attacker sends to the service: eps = eps_n + scale * sum_i w_i (eps(p_i) - eps_n), with eps_n of the negative prompt."""

    prompt: str
    label: str = ""                             # distinguishes the submissions of one attack
    vectors: Tensor | None = None               # (k, d), uploaded embedding; UPLOAD stands for it in the prompt
    weight: float = 1.0                         # of `prompt`
    others: tuple[tuple[str, float], ...] = ()  # further prompts with their weights
    negative: str = ""
    negative_prefixed: bool = False             # the service puts the prefix in front of negative prompts too


class Service:
    """Text encoder and U-Net behind a prefix; without a manager, the base model.

    Args:
        model: LatentDiffusion with one text encoder; UserError for two.
        manager: holds the prefix, (m, d), or a context map.
    """

    def __init__(self, model: LatentDiffusion, manager: Manager | None = None):
        embedder = model.cond_stage_model
        if hasattr(embedder, "embedders"):
            raise UserError("attacks search the tokens of one text encoder, and this model has two, as SDXL; give another model")
        self.model, self.embedder, self.tokenizer = model, embedder, embedder.tokenizer
        placeholders = manager.string_to_token_dict if manager else ()
        self.prefix = next(manager.embedding_parameters()).detach() if manager and placeholders else self._weight[:0].float()
        self.finish: Callable[[Tensor], Tensor] | None = getattr(manager, "finish", None)

    @functools.cached_property
    def table(self) -> Tensor:
        """Token embeddings, (V, d) float32; a copy where the model has another dtype, so only attacks that read it pay for it."""
        return self._weight.float()

    @property
    def _weight(self) -> Tensor:
        return self.embedder.get_input_embeddings().weight.detach()

    @property
    def words(self) -> Tensor:
        """Token ids of whole words of plain letters, (V',) on the CPU. Attacks build prompts only of these, which survive as text."""
        return _words_of(self.tokenizer)

    def random_words(self, count: int, generator: torch.Generator) -> Tensor:
        """Token ids of random words, (count,), for controls and for the start of a search."""
        return self.words[torch.randint(len(self.words), (count,), generator=generator)]

    def row(self, text: str, vectors: Tensor | None = None) -> list[int]:
        """Token ids of a prompt, with k times FREE in place of UPLOAD if there are k vectors."""
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        upload = self.tokenizer(UPLOAD, add_special_tokens=False)["input_ids"]
        count = 0 if vectors is None else len(vectors)
        return [place for token in ids for place in ([FREE] * count if count and [token] == upload else [token])]

    def text(self, token_ids: Sequence[int]) -> str:
        """Prompt of token ids."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()

    def context(self, rows: Sequence[Sequence[int]], vectors: Tensor | None = None) -> Tensor:
        """tau_AP of token ids, (B, 77, d); gradients reach `vectors`.

        Args:
            rows: token ids of B prompts; what does not fit behind the prefix is dropped.
            vectors: (k, d) in the places FREE of each row, in order and repeatedly.
        """
        count = len(self.prefix)
        token_ids = torch.full((len(rows), self.embedder.max_length), self.tokenizer.eos_token_id)
        token_ids[:, 0] = self.tokenizer.bos_token_id
        sources = torch.full_like(token_ids, -1)  # row of the inserted vectors; -1: the look-up
        sources[:, 1:1 + count] = torch.arange(count)
        for number, row in enumerate(rows):
            for place, token in zip(range(1 + count, self.embedder.max_length - 1), row, strict=False):
                token_ids[number, place] = max(token, 0)
                if token == FREE:
                    assert vectors is not None, "a free place without vectors"
                    sources[number, place] = count + int((sources[number, 1 + count:] >= 0).sum()) % len(vectors)
        token_ids[:, 1:1 + count] = 0  # any word
        inserted = self.prefix if vectors is None else torch.cat([self.prefix, vectors])
        hook = _Insert(sources.to(inserted.device), inserted, self.finish)
        return self.embedder.context(token_ids.to(inserted.device), hook)

    def context_of(self, text: str, vectors: Tensor | None = None) -> Tensor:
        """tau_AP of a prompt, (1, 77, d)."""
        return self.context([self.row(text, vectors)], vectors)

    @torch.no_grad()
    def generate(self, submission: Submission, noise: Tensor, *, ddim_steps: int, scale: float) -> list[np.ndarray]:
        """Images (H, W, 3) uint8 RGB of a submission by DDIM, one for each z_T of `noise` (B, 4, h, w)."""
        model, vectors = self.model, submission.vectors
        context = self.context_of(submission.prompt, vectors).expand(len(noise), -1, -1)
        negative = (self if submission.negative_prefixed else Service(model)).context_of(submission.negative)
        if submission.others:
            others = torch.cat([self.context_of(text, vectors) for text, _ in submission.others])
            weights = [scale * weight for weight in (submission.weight, *(weight for _, weight in submission.others))]
            guidance: dict[str, Any] = {"score_corrector": WeightedPrompts(torch.cat([negative, others])[:, None], weights)}
        else:
            guidance = {"unconditional_guidance_scale": scale * submission.weight, "unconditional_conditioning": negative}
        latent, _ = DDIMSampler(model).sample(ddim_steps, len(noise), noise.shape[1:], context, verbose=False,
                                              x_T=noise.to(model.device), **guidance)
        return list(to_uint8(model.decode_first_stage(latent)))


@functools.cache
def _words_of(tokenizer: Any) -> Tensor:
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return torch.tensor([number for number, token in enumerate(tokens) if WORD.fullmatch(token)])


@dataclass
class Calls:
    """U-Net evaluations, counted in samples; a backward pass counts as one more."""

    forward: int = 0
    backward: int = 0

    @property
    def total(self) -> int:
        return self.forward + self.backward


@contextmanager
def counted_calls(model: LatentDiffusion) -> Iterator[Calls]:
    """Count the U-Net evaluations until the context exits."""
    calls = Calls()

    def count(_module: Any, _inputs: Any, output: Tensor) -> None:
        calls.forward += len(output)
        calls.backward += len(output) * output.requires_grad

    handle = model.model.register_forward_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


class _Insert:
    """EmbeddingHook that puts vectors in given places: `sources` (B, 77) are their rows, -1 keeps the look-up."""

    def __init__(self, sources: Tensor, vectors: Tensor, finish: Callable[[Tensor], Tensor] | None):
        self.sources, self.finish = sources, finish
        self.vectors = torch.cat([vectors, vectors.new_zeros(1, vectors.shape[1])])  # the last row is never shown

    def __call__(self, _token_ids: Tensor, token_embeddings: Tensor) -> Tensor:
        return torch.where((self.sources < 0)[..., None], token_embeddings, self.vectors.to(token_embeddings)[self.sources])
