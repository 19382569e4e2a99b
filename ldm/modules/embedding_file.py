"""Files of learned vectors: every form in use is read, one form that every client reads is written.

Read: textual inversion's .pt (ParameterDict or dict, zip or legacy container, fp32 or fp16), AUTOMATIC1111's,
diffusers' .bin, and .safetensors with emb_params, clip_l / clip_g or the token as key. No file can run code here.
Written: the form of DESIGN.md, a plain dict in the legacy container; .safetensors for SDXL's two text encoders and for exports.
"""

import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from args.paths import found
from ldm.containers import SAFETENSORS, ZIP, container_of, damaged, named_by_content
from ldm.finite import check_finite, is_finite
from ldm.modules.file_kinds import CONTEXT_MAP, PREFIX, describe
from ldm.modules.legacy_pickle import read_legacy, write_legacy
from ldm.util import UserError, first_line, write_atomically

OWN_KEY = "apl"  # our metadata in the file; other clients pass over it
NOT_WRITTEN = "it was not written; give a smaller learning rate"
SDXL_KEYS = ("clip_l", "clip_g")  # the vectors of SDXL's first and second text encoder, as every client calls them


@dataclass(frozen=True)
class EmbeddingFile:
    """Content of a file of learned vectors."""

    vectors: dict[str, Tensor]  # key in the file ("*", "alz", "<alz>", "emb_params", ...) -> (m, d) float32, CPU
    token_ids: dict[str, int] = field(default_factory=dict)  # key -> CLIP token that calls the vectors, where given
    metadata: dict[str, Any] = field(default_factory=dict)  # what the writer said: name, step, seed, arguments, ...

    @property
    def pair(self) -> tuple[Tensor, Tensor] | None:
        """The vectors of SDXL's first and second text encoder, (m, d_l) and (m, d_g); None in a file for one encoder."""
        first, second = SDXL_KEYS
        return (self.vectors[first], self.vectors[second]) if set(self.vectors) == set(SDXL_KEYS) else None


def read_embedding_file(path: str | Path) -> EmbeddingFile:
    """Learned vectors of any form in use; never runs code from the file.

    Raises:
        UserError: no such file, not an embedding, damaged, or a pickle that asks for more than tensors.
    """
    path = found(path)
    container = container_of(path, "embedding file", "give a .pt, .bin or .safetensors file of learned vectors")
    try:
        content, metadata = _read_safetensors(path) if container == SAFETENSORS else (_read_pickle(path, container), {})
        return _parse(path, content, metadata)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked is None:
            raise damaged(path, "embedding file") from error
        raise UserError(f"{path} asks for {asked[1]}, which is no part of an embedding and was not run; an embedding "
                        "holds only tensors, so take the file from a source that you trust") from error
    except (UserError, OSError):
        raise
    except Exception as error:  # the many ways in which zip, pickle, torch and safetensors report a damaged file
        raise damaged(path, "embedding file") from error


def write_embedding_file(path: str | Path, vectors: dict[str, Tensor], token_ids: dict[str, int], *,
                         step: int | None = None, metadata: dict[str, Any] | None = None) -> None:
    """Writes (m, d) `vectors` by placeholder, with the token that calls each; equal arguments give equal bytes.

    Args:
        vectors: a single placeholder is stored under the key "*", as clients expect; several under their own names.
        step: number of training steps.
        metadata: whatever JSON can hold; TypeError otherwise.

    Raises:
        UserError: a vector is not finite.
    """
    check_finite(vectors, f"the prefix for {path}", NOT_WRITTEN)
    keys = {name: name if len(vectors) > 1 else "*" for name in vectors}
    content = {
        "string_to_token": {key: int(token_ids[name]) for name, key in keys.items()},
        "string_to_param": {key: vectors[name].float() for name, key in keys.items()},
        "name": f"<{next(iter(keys))}>", "step": step, "sd_checkpoint": None, "sd_checkpoint_name": None,
        OWN_KEY: json.loads(json.dumps(metadata or {})),  # fresh objects: pickle writes shared ones differently
    }

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            write_legacy(content, file)

    write_atomically(path, write)


def write_sdxl_file(path: str | Path, clip_l: Tensor, clip_g: Tensor, *, step: int | None = None,
                    metadata: dict[str, Any] | None = None) -> None:
    """Writes the vectors of SDXL's two text encoders, (m, d_l) and (m, d_g), as `write_safetensors_file` does."""
    write_safetensors_file(path, dict(zip(SDXL_KEYS, (clip_l, clip_g), strict=True)), step=step, metadata=metadata)


def write_safetensors_file(path: str | Path, vectors: dict[str, Tensor], *, step: int | None = None,
                           metadata: dict[str, Any] | None = None) -> None:
    """Writes (m, d) `vectors` by key as .safetensors, with `step` and `metadata` in its header.

    Tensors alone, for AUTOMATIC1111 takes everything else in such a file for a tensor too; equal arguments give equal bytes.

    Raises:
        UserError: a vector is not finite.
    """
    check_finite(vectors, f"the prefix for {path}", NOT_WRITTEN)
    header = {OWN_KEY: json.dumps({"step": step} | (metadata or {}), sort_keys=True)}
    tensors = {key: value.detach().float().cpu().contiguous() for key, value in vectors.items()}
    # Not save_file, whose files no other user, such as that of a web UI, can read.
    write_atomically(path, lambda temporary: temporary.write_bytes(save(tensors, metadata=header)))


def carried_metadata(path: Path, file: EmbeddingFile) -> dict[str, Any]:
    """What the file `path` says of itself, as `step` and `metadata` of the writers here; what JSON has no form for becomes text.

    Raises:
        UserError: it cannot be written, for a hostile file can hold a dict that holds itself.
    """
    try:
        metadata = json.loads(json.dumps(file.metadata, default=str, skipkeys=True))
    except (ValueError, RecursionError) as error:
        raise UserError(f"the metadata of {path} cannot be written ({first_line(error)}); give another file of this prefix") from error
    metadata.pop("name", None)  # the new file has its own
    return {"step": metadata.pop("step", None), "metadata": metadata}


def with_own(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata of a .safetensors header, with our own entries among the rest."""
    try:
        own = json.loads(metadata.pop(OWN_KEY, "{}"))
    except (ValueError, RecursionError):  # somebody else's, of the same name
        own = {}
    return metadata | (own if isinstance(own, dict) else {})


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata() or {})
        _refuse_other_kinds(path, dict.fromkeys(file.keys()))  # before gigabytes of a checkpoint are read
        return {key: file.get_tensor(key) for key in file.keys()}, with_own(metadata)


def _read_pickle(path: Path, container: str) -> object:
    if container != ZIP:
        return read_legacy(path)
    with torch.serialization.safe_globals([nn.ParameterDict]), named_by_content(path, container) as file:
        return torch.load(file, map_location="cpu", mmap=True, weights_only=True)  # a checkpoint is refused before it is read


def _parse(path: Path, content: object, metadata: dict[str, Any]) -> EmbeddingFile:
    token_ids: dict[str, int] = {}
    if isinstance(content, dict):
        inside = content.get("state_dict", content)
        _refuse_other_kinds(path, inside if isinstance(inside, dict) else content)
    vectors = content
    if isinstance(content, dict) and "string_to_param" in content:
        vectors = content["string_to_param"]
        token_ids = {key: int(torch.as_tensor(value).flatten()[0])  # LDM stored a tensor, A1111 an int
                     for key, value in content.get("string_to_token", {}).items()}
        metadata = {key: content[key] for key in ("name", "step") if content.get(key) is not None}
        metadata |= content.get(OWN_KEY) or {}
    if isinstance(vectors, nn.ParameterDict):
        vectors = vectors._parameters  # also where an older torch pickled it, without its newer attributes
    if not isinstance(vectors, dict) or {str} != {type(key) for key in vectors} or \
            not all(isinstance(value, Tensor) for value in vectors.values()):
        found = f"the keys {list(content)[:5]}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise UserError(f"{path} holds {found} instead of learned vectors; give a textual-inversion file")
    return EmbeddingFile({key: _matrix(path, key, value) for key, value in vectors.items()}, token_ids, metadata)


def _refuse_other_kinds(path: Path, content: Mapping[Any, Any]) -> None:
    kind = describe({str(key): value for key, value in content.items()})
    if kind == CONTEXT_MAP:
        raise UserError(f"{path} is {kind} and has no learned vectors, so that it cannot be exported, transferred or loaded as an "
                        "embedding; give it to --embedding or AnonymizationPrompt.load, or give a prefix here")
    if kind not in (None, PREFIX):
        raise UserError(f"{path} is {kind} instead of learned vectors; give a textual-inversion file, such as train.py writes")


def _matrix(path: Path, key: str, value: Tensor) -> Tensor:
    if value.dim() not in (1, 2) or not value.is_floating_point() or value.numel() == 0:
        raise UserError(f"{path} holds '{key}' of shape {tuple(value.shape)} and type {value.dtype} instead of an "
                        "(m, d) table of numbers; give a textual-inversion file")
    vectors = torch.atleast_2d(value.detach()).to(torch.float32, copy=True)
    if not is_finite(vectors):
        raise UserError(f"the vectors '{key}' of {path} hold NaN or infinity; take the file of an earlier step")
    return vectors
