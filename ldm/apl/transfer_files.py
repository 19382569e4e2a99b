"""Inputs of a transfer: a prefix of one encoder, and the token tables of SDXL's two encoders, without the rest of the checkpoint."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor

from ldm.containers import SAFETENSORS, container_of, damaged
from ldm.diffusers_folder import is_model_folder, read_folder
from ldm.hub import local_model
from ldm.loading import read_state_dict
from ldm.modules.embedding_file import SDXL_KEYS, EmbeddingFile, read_embedding_file
from ldm.modules.file_kinds import describe
from ldm.util import UserError, first_line

TABLES = ("conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",  # CLIP-L, that of Stable Diffusion v1
          "conditioner.embedders.1.model.token_embedding.weight")  # OpenCLIP bigG
MARKS = 2  # last rows of a table: begin and end of text


def read_prefix(path: Path) -> tuple[Tensor, EmbeddingFile]:
    """The vectors of a prefix file, (m, d) float32, and the file; UserError unless it has one entry, for one text encoder."""
    file = read_embedding_file(path)
    if file.pair is not None:
        raise UserError(f"{path} has the parts of both encoders already ({' and '.join(SDXL_KEYS)}); give the prefix of one")
    if len(file.vectors) > 1:
        raise UserError(f"{path} holds vectors for {', '.join(file.vectors)}; give a file with one entry")
    vectors = next(iter(file.vectors.values()))
    if not vectors.any(dim=1).all():
        raise UserError(f"{path} holds a vector of zeros, which points nowhere; give a prefix that was learned")
    return vectors, file


def read_token_tables(path: Path) -> tuple[Tensor, Tensor]:
    """Token tables of an SDXL checkpoint, (N, d_s) and (N, d_t) float32 without begin and end of text; nothing else is read.

    Of a diffusers folder, here or on the Hub, the text encoders are read.

    Raises:
        UserError: the file is damaged, no SDXL checkpoint, or its tables do not share a vocabulary.
    """
    path = local_model(path)
    is_folder = is_model_folder(path)
    if not is_folder and container_of(path, "checkpoint file", "give an SDXL checkpoint in the original format") == SAFETENSORS:
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                _check_tables(path, {key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in file.keys()})
                source, target = (file.get_tensor(key) for key in TABLES)
        except SafetensorError as error:
            raise damaged(path, "safetensors file", first_line(error)) from None
    else:
        content = read_folder(path, read_state_dict, ("text_encoder", "text_encoder_2")) if is_folder else read_state_dict(path)
        _check_tables(path, content)
        source, target = (content[key] for key in TABLES)
    for table in (source, target):
        if table.dim() != 2 or len(table) <= MARKS or not table.is_floating_point():
            raise UserError(f"{path} has a token table of shape {tuple(table.shape)} and type {table.dtype}; give another copy")
    if len(source) != len(target):
        raise UserError(f"the token tables of {path} have {len(source)} and {len(target)} rows, so that their encoders do not share "
                        "a vocabulary; give an SDXL checkpoint")
    source, target = source[:-MARKS].float(), target[:-MARKS].float()
    if not (source.isfinite().all() and target.isfinite().all()):
        raise UserError(f"a token table of {path} holds NaN or infinity; give another copy")
    return source, target


def anchor_tokens(paths: Sequence[Path]) -> list[int]:
    """Ids of the distinct tokens in text files, ascending; UserError for a file that is not text, or if there is only one token."""
    from ldm.modules.encoders.modules import clip_tokenizer  # transformers takes seconds

    try:
        texts = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise UserError(f"--anchors {' '.join(map(str, paths))} holds a file that is no text; give texts or lists of words") from None
    tokenizer = clip_tokenizer()
    found = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
    ids = {token for tokens in found for token in tokens} - set(tokenizer.all_special_ids)
    if len(ids) < 2:
        raise UserError(f"--anchors {' '.join(map(str, paths))} has {len(ids)} tokens; give texts with more words")
    return sorted(ids)


def check_output(path: Path) -> None:
    """Raise UserError unless `path` is writable, and does not exist or holds vectors for SDXL."""
    if path.is_file() and not set(SDXL_KEYS) <= _keys(path):
        raise UserError(f"OUT {path} is there and holds no {' and '.join(SDXL_KEYS)}, and was not overwritten; give another OUT")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"OUT {path} cannot be written ({error.strerror}); give a file in another folder") from None


def _check_tables(path: Path, content: Mapping[str, Tensor]) -> None:
    for key in TABLES:
        if key not in content:
            raise UserError(f"{path} is {describe(content) or 'no SDXL checkpoint'}: it lacks {key}; "
                            "give a whole checkpoint of SDXL's base model in the original format")


def _keys(path: Path) -> set[str]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return set(file.keys())
    except SafetensorError:
        return set()
