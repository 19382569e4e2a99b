"""Reads files of learned vectors in every form in use, and writes one form that every client reads.

Read: textual inversion's .pt (ParameterDict or dict, zip or legacy container, fp32 or fp16), AUTOMATIC1111's, diffusers' .bin, and
.safetensors with emb_params, clip_l / clip_g or the token as key. No file can run code. Written: a plain dict in the legacy container;
.safetensors for SDXL's two text encoders and for exports.
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

OWN_KEY = "apl"  # our metadata in the file; other clients ignore it
NOT_WRITTEN = "it was not written; give a smaller learning rate"
SDXL_KEYS = ("clip_l", "clip_g")  # the vectors of SDXL's first and second text encoder, as every client calls them


@dataclass(frozen=True)
class EmbeddingFile:
    """Content of a file of learned vectors."""

    vectors: dict[str, Tensor]  # key in the file ("*", "alz", "<alz>", "emb_params", ...) -> (m, d) float32, CPU
    token_ids: dict[str, int] = field(default_factory=dict)  # key -> CLIP token that stands for the vectors, if the file gives it
    metadata: dict[str, Any] = field(default_factory=dict)  # of the writer: name, step, seed, arguments, ...

    @property
    def pair(self) -> tuple[Tensor, Tensor] | None:
        """The vectors of SDXL's first and second text encoder, (m, d_l) and (m, d_g); None in a file for one encoder."""
        return (self.vectors["clip_l"], self.vectors["clip_g"]) if set(self.vectors) == set(SDXL_KEYS) else None


def read_embedding_file(path: str | Path) -> EmbeddingFile:
    """Learned vectors in any form in use; never runs code from the file.

    Raises:
        UserError: no such file, not an embedding, damaged, or a pickle that asks for more than tensors.
    """
    path = found(path)
    container = container_of(path, "embedding file", "give a .pt, .bin or .safetensors file of learned vectors")
    try:
        if container == SAFETENSORS:
            with safetensors.safe_open(path, framework="pt") as file:
                _refuse_other_kinds(path, dict.fromkeys(file.keys()))  # before gigabytes of a checkpoint are read
                tensors = {key: file.get_tensor(key) for key in file.keys()}
                return _parse(path, tensors, with_own(dict(file.metadata() or {})))
        if container != ZIP:
            return _parse(path, read_legacy(path), {})
        with torch.serialization.safe_globals([nn.ParameterDict]), named_by_content(path, container) as file:
            content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)  # mmap: a checkpoint is refused before it is read
        return _parse(path, content, {})
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


def write_embedding_file(path: str | Path, vectors: dict[str, Tensor], token_ids: dict[str, int], *, step: int | None = None,
                         metadata: dict[str, Any] | None = None) -> None:
    """Write (m, d) `vectors` by placeholder, with the token of each; equal arguments give equal bytes.

    Args:
        vectors: a single placeholder is stored under the key "*", as clients expect; several under their own names.
        step: number of training steps.
        metadata: JSON values; TypeError otherwise.

    Raises:
        UserError: a vector is not finite.
    """
    check_finite(vectors, f"the prefix for {path}", NOT_WRITTEN)
    keys = {name: name if len(vectors) > 1 else "*" for name in vectors}
    content = {
        "string_to_token": {key: int(token_ids[name]) for name, key in keys.items()},
        "string_to_param": {key: vectors[name].float() for name, key in keys.items()}, "name": f"<{next(iter(keys))}>",
        "step": step, "sd_checkpoint": None, "sd_checkpoint_name": None,
        OWN_KEY: json.loads(json.dumps(metadata or {})),  # fresh objects: pickle writes shared ones differently
    }
    write_atomically(path, lambda temporary: write_legacy(content, temporary))


def write_safetensors_file(path: str | Path, vectors: dict[str, Tensor], *, step: int | None = None,
                           metadata: dict[str, Any] | None = None, what: str = "prefix") -> None:
    """Write (m, d) `vectors` by key as .safetensors, with `step` and `metadata` in its header; equal arguments give equal bytes.

    The file holds only tensors, because AUTOMATIC1111 reads every entry as a tensor. `what` is for the message.

    Raises:
        UserError: a vector is not finite.
    """
    check_finite(vectors, f"the {what} for {path}", NOT_WRITTEN)
    header = {OWN_KEY: json.dumps({"step": step} | (metadata or {}), sort_keys=True)}
    tensors = {key: value.detach().float().cpu().contiguous() for key, value in vectors.items()}
    # Not save_file, whose files are not readable by other users, such as that of a web UI.
    write_atomically(path, lambda temporary: temporary.write_bytes(save(tensors, metadata=header)))


def carried_metadata(path: Path, file: EmbeddingFile) -> dict[str, Any]:
    """Metadata of the file `path`, as arguments `step` and `metadata` of the writers here; values unknown to JSON become text.

    Raises:
        UserError: it cannot be written, because a hostile file can hold a dict that contains itself.
    """
    try:
        metadata = json.loads(json.dumps(file.metadata, default=str, skipkeys=True))
    except (ValueError, RecursionError) as error:
        raise UserError(f"the metadata of {path} cannot be written ({first_line(error)}); give another file of this prefix") from error
    metadata.pop("name", None)  # the new file has its own
    return {"step": metadata.pop("step", None), "metadata": metadata}


def with_own(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata of a .safetensors header, with our own entries added to the others."""
    try:
        own = json.loads(metadata.pop(OWN_KEY, "{}"))
    except (ValueError, RecursionError):  # an entry of another program with the same name
        own = {}
    return metadata | (own if isinstance(own, dict) else {})


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
    vectors = getattr(vectors, "_parameters", vectors)  # of an nn.ParameterDict, even of an older torch, without newer attributes
    if not isinstance(vectors, dict) or {str} != {type(key) for key in vectors} or \
            not all(isinstance(value, Tensor) for value in vectors.values()):
        given = f"the keys {list(content)[:5]}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise UserError(f"{path} holds {given} instead of learned vectors; give a textual-inversion file")
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
