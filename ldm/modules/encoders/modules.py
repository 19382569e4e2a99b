"""Text encoder of Stable Diffusion v1: prompts -> context tau(c), CLIP's text transformer (paper section 3.2).

A learned prefix enters the frozen model only here: `embedding_manager` is called between the token look-up and the position
embeddings. Without it, the output is that of plain CLIP.
"""

import functools
import gzip
import importlib.util
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldm.public_names import absent_names
from ldm.util import UserError, refuse_other_architectures

__getattr__ = absent_names(__name__)

MERGES = 48_894  # lines of the BPE file that CLIP uses; with 2 x 256 byte symbols and 2 special tokens, the vocabulary has 49 408

EmbeddingHook = Callable[[Tensor, Tensor], Tensor]


class TextEncoder(nn.Module):
    """Prompts -> token ids -> context; subclasses set `tokenizer` and `max_length`, and implement `context`."""

    tokenizer: CLIPTokenizer
    max_length: int

    def forward(self, texts: str | Sequence[str], embedding_manager: Any = None) -> Tensor:
        """Context tau(c), (B, 77, hidden_size), or (B, 78, 2048) for SDXL.

        Args:
            texts: B prompts of any length; see the function `tokenize` for the truncation of long ones.
            embedding_manager: EmbeddingHook, (token_ids (B, 77), token_embeddings (B, 77, d)) -> (B, 77, d); for SDXL, an object with a
                pair `hooks`. If it has a method `extra_length(token_ids (n, 1)) -> (n,)`, the text is truncated to leave room for what it
                inserts. If it has a method `finish(context (B, 77, d)) -> (B, 77, d)`, that is applied to the result (not for SDXL).
        """
        token_ids = self.tokenize(texts, getattr(embedding_manager, "extra_length", None))
        return self.context(token_ids.to(next(self.parameters()).device), embedding_manager)

    encode = forward  # public name

    def context(self, token_ids: Tensor, embedding_hook: Any = None) -> Tensor:
        """Context of token ids (B, 77) on the model's device."""
        raise NotImplementedError

    def tokenize(self, texts: str | Sequence[str], extra_length: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """See the function `tokenize`."""
        return tokenize(self.tokenizer, texts, self.max_length, extra_length)


class FrozenCLIPEmbedder(TextEncoder):
    """CLIP's text encoder; the default sizes are those of ViT-L/14, which Stable Diffusion v1 uses.

    `transformer.text_model`, its name in public checkpoints, is a transformers CLIPTextModel. `layer` selects the context: "last", the
    last hidden state after the last layer norm, or "penultimate", the hidden state before the last layer (SDXL).
    """

    def __init__(self, *, hidden_size: int = 768, num_hidden_layers: int = 12, num_attention_heads: int = 12,
                 intermediate_size: int = 3072, max_length: int = 77, layer: str = "last", **other):
        super().__init__()
        refuse_other_architectures("FrozenCLIPEmbedder", other)
        if layer not in ("last", "penultimate"):
            raise UserError(f"FrozenCLIPEmbedder is asked for layer={layer!r}; give one of last, penultimate")
        self.max_length, self.layer = max_length, layer
        self.tokenizer = clip_tokenizer(max_length)
        text_model = CLIPTextModel(CLIPTextConfig(
            hidden_size=hidden_size, num_hidden_layers=num_hidden_layers, num_attention_heads=num_attention_heads,
            intermediate_size=intermediate_size, max_position_embeddings=max_length, vocab_size=len(self.tokenizer),
            bos_token_id=self.tokenizer.bos_token_id, eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id))
        # Not on the meta device even when the model is built there: checkpoints need not contain it.
        text_model.embeddings.position_ids = torch.arange(max_length, device="cpu")[None]
        self.transformer = nn.ModuleDict({"text_model": text_model})

    def context(self, token_ids: Tensor, embedding_hook: EmbeddingHook | None = None) -> Tensor:
        """Context, (B, 77, hidden_size), of token ids (B, 77) on the model's device."""
        with ExitStack() as stack:
            if embedding_hook is not None:
                stack.enter_context(self.get_input_embeddings().register_forward_hook(
                    lambda _table, _inputs, token_embeddings: embedding_hook(token_ids, token_embeddings)))
            output = self.transformer["text_model"](input_ids=token_ids, output_hidden_states=self.layer == "penultimate")
        context = output.hidden_states[-2] if self.layer == "penultimate" else output.last_hidden_state
        finish = getattr(embedding_hook, "finish", None)  # of a context map
        return context if finish is None else finish(context)

    @property
    def context_shape(self) -> tuple[int, int]:
        """Rows and width of a context, (77, 768) for Stable Diffusion v1."""
        return self.max_length, self.get_input_embeddings().embedding_dim

    def get_input_embeddings(self) -> nn.Embedding:
        return cast(nn.Embedding, self.get_submodule("transformer.text_model.embeddings.token_embedding"))


def tokenize(tokenizer: CLIPTokenizer, texts: str | Sequence[str], max_length: int = 77,
             extra_length: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Token ids (B, max_length) int64 on the CPU: begin of text, the text, end of text up to the end.

    Long texts are truncated before the end-of-text token. `extra_length` returns, for token ids (n, 1), the number of additional
    positions of each token; the text is truncated to leave room for them.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
        raise UserError("an empty list of prompts was given; give at least one prompt, which may be the empty text")
    room = max_length - 2  # begin and end of text
    rows = torch.full((len(texts), max_length), tokenizer.eos_token_id)
    rows[:, 0] = tokenizer.bos_token_id
    for row, token_ids in zip(rows, tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"], strict=True):
        kept = torch.tensor(token_ids[:room], dtype=torch.int64)
        if extra_length is not None and len(kept):
            taken = (1 + extra_length(kept[:, None]).cpu()).cumsum(0)  # positions up to and with each token
            kept = kept[taken <= room]
        row[1:1 + len(kept)] = kept
    return rows


def clip_tokenizer(max_length: int = 77, **special_tokens: str) -> CLIPTokenizer:
    """CLIP's tokenizer, built offline from the merges file of the package open_clip; pads with end of text, or `pad_token`."""
    vocabulary, merges = _vocabulary_and_merges()
    return CLIPTokenizer(vocab=dict(vocabulary), merges=list(merges), model_max_length=max_length, **special_tokens)


@functools.cache
def _vocabulary_and_merges() -> tuple[dict[str, int], list[tuple[str, ...]]]:
    package = importlib.util.find_spec("open_clip")  # not imported: only its data file is needed
    if package is None or not package.submodule_search_locations:
        raise UserError("the package open_clip is not installed but its tokenizer file is needed; run 'pip install open_clip_torch'")
    with gzip.open(Path(package.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
        merges = [tuple(line.split()) for line in file.read().split("\n")[1:1 + MERGES]]
    symbols = [chr(byte) for byte in range(33, 256) if chr(byte).isprintable()]  # 188 of the 256 bytes stand for themselves,
    symbols += map(chr, range(256, 512 - len(symbols)))  # the others are characters after them
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    return {word: number for number, word in enumerate(words)}, merges
