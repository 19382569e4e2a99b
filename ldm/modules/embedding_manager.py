"""The anonymization prompt in the text encoder: a placeholder becomes m learned vectors (paper section 3.3, Eq. 2).

`EmbeddingManager` is the hook of FrozenCLIPEmbedder between the token look-up and the position embeddings. Its vectors are the only
trainable tensors of the method.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.context_map import ContextMap, context_map_for, is_map_file
from ldm.modules.embedding_file import SDXL_KEYS, EmbeddingFile, read_embedding_file, write_embedding_file, write_safetensors_file
from ldm.util import UserError, refuse_other_architectures

INITIALIZATIONS = ("uniform01", "vocab")
PROMPT_ROOM = 15  # tokens that a prefix must leave for the prompt: "A close-up portrait of" and nine for a name
ENCODERS = {768: "CLIP ViT-L/14, of Stable Diffusion v1 and SDXL", 1024: "OpenCLIP ViT-H/14, of Stable Diffusion 2",
            1280: "OpenCLIP ViT-bigG/14, the second of SDXL"}  # by the width of their token embeddings


class EmbeddingManager(nn.Module):
    """Learned vectors by placeholder, and their insertion into the token embeddings of a batch of prompts.

    The vectors replace a placeholder and shift what follows to the right, so "alz A portrait of ..." is [AP] in front of the prompt. If a
    text begins with the first placeholder, further occurrences in that text are ordinary words, as in a caption that contains it.
    Otherwise placeholders may occur anywhere and repeatedly, as in textual inversion.
    """

    finish: Callable[[Tensor], Tensor] | None = None  # applied to the context, such as ContextMap.finish for a token learned behind a map

    def __init__(self, embedder: Any, placeholder_strings: Sequence[str] = ("alz",), initializer_words: Sequence[str] | None = None,
                 num_vectors_per_token: int = 10, *, init: str = "uniform01", generator: torch.Generator | None = None, **other: Any):
        """Create vectors for each placeholder, in float32 on the device of the token table.

        Args:
            embedder: FrozenCLIPEmbedder or FrozenOpenCLIPEmbedder2 (`tokenizer`, `get_input_embeddings()`, `max_length`); not kept.
            placeholder_strings: words of one CLIP token each.
            initializer_words: one text for each placeholder, whose token embeddings are repeated in order up to m; overrides `init`.
            num_vectors_per_token: m, from 1 to `longest_prefix(max_length)`.
            init: "uniform01" samples U[0, 1) as the released code does; "vocab" samples normal numbers with the mean and standard
                deviation of each coordinate in the token table.
            generator: random generator on the CPU; None uses seed 0.

        Raises:
            UserError: a placeholder is no single token, or repeated; m or `init` or the words are out of range; two text encoders.
        """
        super().__init__()
        refuse_other_architectures("EmbeddingManager", other)
        if hasattr(embedder, "embedders"):
            raise UserError("EmbeddingManager is for one text encoder, and this model has two, as SDXL; "
                            "use manager_for(model.cond_stage_model)")
        tokenizer, table = embedder.tokenizer, embedder.get_input_embeddings().weight.detach()
        self.longest, m = longest_prefix(embedder.max_length), num_vectors_per_token
        self._check_length(m)
        if init not in INITIALIZATIONS:
            raise UserError(f"there is no initialisation '{init}'; give one of {', '.join(INITIALIZATIONS)}")
        if initializer_words is not None and len(initializer_words) != len(placeholder_strings):
            raise UserError(f"{len(initializer_words)} initializer words were given for {len(placeholder_strings)} "
                            "placeholders; give one text for each")
        generator = generator or torch.Generator().manual_seed(0)
        self.width = table.shape[1]
        self.end_of_text = tokenizer.eos_token_id
        self.string_to_token_dict: dict[str, int] = {}
        self.string_to_param_dict = nn.ParameterDict()
        for number, placeholder in enumerate(placeholder_strings):
            if initializer_words is not None:
                token_ids = tokenizer(initializer_words[number], add_special_tokens=False)["input_ids"]
                if not 1 <= len(token_ids) <= m:
                    raise UserError(f"the initializer words '{initializer_words[number]}' are {len(token_ids)} CLIP tokens; give 1 to {m}, "
                                    "as many as there are vectors")
                vectors = table[[token_ids[i % len(token_ids)] for i in range(m)]]  # (m, d)
            elif init == "uniform01":
                vectors = torch.rand(m, self.width, generator=generator)
            else:
                deviation, mean = torch.std_mean(table.float().cpu(), dim=0)
                vectors = mean + deviation * torch.randn(m, self.width, generator=generator)
            self._add(placeholder, single_token(tokenizer, placeholder), vectors.to(table.device))

    def forward(self, token_ids: Tensor, token_embeddings: Tensor) -> Tensor:
        """Replace the placeholders in token embeddings by the vectors.

        Args:
            token_ids: (B, L) int64; the first end-of-text token ends the text, with any padding.
            token_embeddings: (B, L, d), the look-up of `token_ids`.

        Returns:
            (B, L, d) on the device and in the dtype of `token_embeddings`; gradients reach the vectors. Tokens pushed past L are
            dropped, except that the end of the text then takes the last position.
        """
        lengths, first_rows = self._lengths_and_first_rows(token_ids)
        ends = lengths.cumsum(1)  # (B, L): position behind each token's vectors
        position = torch.arange(token_ids.shape[1], device=token_ids.device).expand_as(token_ids).contiguous()
        source = torch.searchsorted(ends, position, right=True)  # (B, L): the token that position j shows
        text_end = (token_ids == self.end_of_text).int().argmax(1)  # 0 without any
        source[:, -1] = torch.maximum(source[:, -1], text_end)

        row = first_rows.gather(1, source)  # (B, L): -1 where no placeholder stands
        row = torch.where(row < 0, row, row + position - (ends - lengths).gather(1, source))
        kept = token_embeddings[torch.arange(len(source), device=source.device)[:, None], source]
        vectors = torch.cat(list(self.string_to_param_dict.values())).to(token_embeddings)
        return torch.where((row < 0)[..., None], kept, vectors[row.clamp_min(0)])

    def extra_length(self, token_ids: Tensor) -> Tensor:
        """Number of positions that the vectors take in addition to the placeholders, int64.

        Args:
            token_ids: whole prompts, (B, L) -> (B,); or the tokens of one prompt without begin of text, (n, 1) -> (n,).
        """
        return (self._lengths_and_first_rows(token_ids)[0] - 1).sum(-1)

    @property
    def num_vectors(self) -> int:
        """m of the first placeholder."""
        return len(next(self.embedding_parameters()))

    def embedding_parameters(self) -> Iterator[nn.Parameter]:
        """The vectors, (m, d) each, for an optimizer; those of the first text encoder first."""
        return self.parameters()

    def save(self, path: str | Path, *, step: int | None = None, **metadata: Any) -> None:
        """Write the vectors in the format that every client reads; `metadata` (JSON values) is stored in the file."""
        write_embedding_file(path, dict(self.string_to_param_dict.items()), self.string_to_token_dict, step=step, metadata=metadata)

    def load(self, path: str | Path) -> EmbeddingFile:
        """Load the vectors of a file in any form, and return its content; after an error, the vectors are the earlier ones.

        Vectors are assigned to the placeholder of their name or token; the only entry of a file to the only placeholder, with any name;
        other entries add their own placeholder, if the file gives its token. A Parameter of the same shape stays the same object, so
        that optimizers stay valid.

        Raises:
            UserError: the file cannot be read, has another width, or does not determine the placeholder.
        """
        file = read_embedding_file(path)
        assigned = [manager._assign(path, part) for manager, part in zip(self.hooks, self._parts(path, file), strict=True)]
        for manager, vectors_of in zip(self.hooks, assigned, strict=True):
            for placeholder, (token_id, vectors) in vectors_of.items():
                own = manager.string_to_param_dict.get(placeholder)
                if own is not None and own.shape == vectors.shape:
                    with torch.no_grad():
                        own.copy_(vectors)
                else:
                    manager._add(placeholder, token_id, vectors.to(next(manager.parameters()).device), replace=True)
        return file

    @property
    def hooks(self) -> tuple["EmbeddingManager", ...]:
        """The manager of each text encoder."""
        return (self,)

    def _parts(self, path: str | Path, file: EmbeddingFile) -> list[EmbeddingFile]:
        """The content of a file for each of `hooks`."""
        if file.pair is not None:
            raise UserError(f"{path} is a prefix for the two text encoders of SDXL, and this model has one; if it was transferred from a "
                            f"prefix of this model, extract that: python -m ldm.export {path} OUT.pt --format universal --part clip_l")
        return [file]

    def _assign(self, path: str | Path, file: EmbeddingFile) -> dict[str, tuple[int, Tensor]]:
        """Placeholder -> (token id, vectors) for the entries of a file."""
        entries = file.vectors
        for vectors in entries.values():
            self._check_length(len(vectors), f" in {path}")
            if vectors.shape[1] != self.width:
                given, own = (f"{width} wide" + (f" ({ENCODERS[width]})" if width in ENCODERS else "")
                              for width in (vectors.shape[1], self.width))
                raise UserError(f"the vectors of {path} are {given} but this text encoder's are {own}; give a file made for this encoder")
        by_token: dict[int | None, str] = {token_id: placeholder for placeholder, token_id in self.string_to_token_dict.items()}
        assigned: dict[str, tuple[int, Tensor]] = {}
        for key, vectors in entries.items():
            name, token_id = key.strip("<>"), file.token_ids.get(key)
            placeholder = name if name in self.string_to_token_dict else by_token.get(token_id)
            if placeholder is None and len(entries) == 1 and len(by_token) == 1:
                placeholder = next(iter(by_token.values()))
            if placeholder is None and token_id not in (None, self.end_of_text):
                placeholder, by_token[token_id] = name, name
            if placeholder is None:
                raise UserError(f"{path} holds vectors for {', '.join(entries)}, and '{key}' names none of the "
                                f"placeholders {', '.join(by_token.values())}; give a file with one entry")
            if placeholder not in assigned or name == placeholder:
                token_id = self.string_to_token_dict.get(placeholder, token_id)
                assert token_id is not None  # a placeholder that is new here comes with its token
                assigned[placeholder] = token_id, vectors
        return assigned

    def _add(self, placeholder: str, token_id: int, vectors: Tensor, *, replace: bool = False) -> None:
        if token_id in self.string_to_token_dict.values() and not replace:
            raise UserError(f"the placeholder '{placeholder}' has the same token as another; give different words")
        try:
            self.string_to_param_dict[placeholder] = nn.Parameter(vectors.float())
        except KeyError:  # torch reserves a few words, such as "keys", and the full stop
            raise UserError(f"the placeholder '{placeholder}' is reserved; give another word") from None
        self.string_to_token_dict[placeholder] = token_id

    def _lengths_and_first_rows(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """For each token: number of positions, and first row in the stacked vectors (-1: none)."""
        lengths, first_rows = torch.ones_like(token_ids), torch.full_like(token_ids, -1)
        dim = 0 if token_ids.shape[1] == 1 else 1  # of the tokens of a text, see `extra_length`; for 1, token 0 is the begin of text
        row = 0
        for number, (placeholder, token_id) in enumerate(self.string_to_token_dict.items()):
            m, here = len(self.string_to_param_dict[placeholder]), token_ids == token_id
            if number == 0:  # no later occurrences in texts that begin with it
                here &= ~((here[:1] if dim == 0 else here[:, 1:2]) & (here.cumsum(dim) > 1))
            lengths, first_rows = lengths.masked_fill(here, m), first_rows.masked_fill(here, row)
            row += m
        return lengths, first_rows

    def _check_length(self, m: int, where: str = "") -> None:
        if not 1 <= m <= self.longest:
            raise UserError(f"a prefix of {m} vectors{where} leaves no room for the prompt that it stands in front of; "
                            f"give 1 to {self.longest}")


class DualEmbeddingManager(EmbeddingManager):
    """One placeholder for both text encoders of a GeneralConditioner: the manager of the first, with that of the second, `clip_g`."""

    def __init__(self, embedder: Any, placeholder_strings: Sequence[str] = ("alz",), *args: Any,
                 generator: torch.Generator | None = None, **options: Any):
        if len(placeholder_strings) != 1:
            raise UserError(f"{len(placeholder_strings)} placeholders were given where SDXL's files hold vectors for one; give one word")
        generator = generator or torch.Generator().manual_seed(0)
        super().__init__(embedder.embedders[0], placeholder_strings, *args, generator=generator, **options)
        self.clip_g = EmbeddingManager(embedder.embedders[1], placeholder_strings, *args, generator=generator, **options)

    @property
    def hooks(self) -> tuple[EmbeddingManager, ...]:
        return self, self.clip_g

    def save(self, path: str | Path, *, step: int | None = None, **metadata: Any) -> None:
        """Write the vectors of both encoders as .safetensors, in the form of SDXL clients."""
        write_safetensors_file(path, dict(zip(SDXL_KEYS, self.parameters(), strict=True)), step=step, metadata=metadata)

    def _parts(self, path: str | Path, file: EmbeddingFile) -> list[EmbeddingFile]:
        if file.pair is None:
            raise UserError(f"{path} holds vectors for one text encoder ({', '.join(file.vectors)}), and this model has two, as SDXL; "
                            f"make the second part with: python -m ldm.apl.transfer {path} OUT.safetensors --to PRESET, such as sdxl")
        first, second = map(len, file.pair)
        if first != second:
            raise UserError(f"{path} holds {first} vectors for the first text encoder and {second} for the second; give as many")
        return [EmbeddingFile({key: vectors}) for key, vectors in zip(SDXL_KEYS, file.pair, strict=True)]


Manager = EmbeddingManager | ContextMap  # the trainable tensors of the objective


def manager_for(embedder: Any, *args: Any, **options: Any) -> EmbeddingManager:
    """The manager for a model's `cond_stage_model`, with one text encoder or with two."""
    return (DualEmbeddingManager if hasattr(embedder, "embedders") else EmbeddingManager)(embedder, *args, **options)


def manager_of_file(embedder: Any, path: str | Path) -> Manager:
    """The prefix or context map of a file, for a model's `cond_stage_model`.

    Raises:
        UserError: the file cannot be read, or belongs to another text encoder.
    """
    if is_map_file(path):
        return context_map_for(embedder, path)
    manager = manager_for(embedder)
    manager.load(path)
    return manager


def longest_prefix(max_length: int) -> int:
    """Largest number of vectors that leaves PROMPT_ROOM tokens of `max_length` besides begin and end of text: 60 for CLIP's 77."""
    return max_length - 2 - PROMPT_ROOM


def single_token(tokenizer: Any, placeholder: str) -> int:
    """Token id of a placeholder; UserError unless it is one ordinary token."""
    token_ids = tokenizer(placeholder, add_special_tokens=False)["input_ids"]
    if len(token_ids) != 1 or token_ids[0] in tokenizer.all_special_ids:
        raise UserError(f"the placeholder '{placeholder}' is {len(token_ids)} CLIP tokens where one ordinary token is "
                        "needed; give a word such as 'alz'")
    return token_ids[0]
