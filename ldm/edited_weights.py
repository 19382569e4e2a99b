"""Edited weights: the tensors that a competing method or an attack changes, applied to a frozen model and removed again.

The file is a .safetensors of the changed tensors under their keys in the checkpoint. Its header records the hash of the checkpoint and the
training. Every command takes such a file as --edited_weights, see `ldm.loading`.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ldm.finite import check_finite
from ldm.loading import PARTS, safetensors_metadata
from ldm.modules.embedding_file import OWN_KEY
from ldm.util import write_atomically

NOT_WRITTEN = "it was not written; give a smaller --lr or other settings of the method"


@contextmanager
def edited(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Temporarily replace these parameters, by name and in their shapes, cast differentiably to the model's dtype and device."""
    owners: dict[str, Any] = {key: model.get_submodule(key.rpartition(".")[0])._parameters for key in weights}
    own = {key: parameters[key.rpartition(".")[2]] for key, parameters in owners.items()}
    try:
        for key, parameters in owners.items():
            parameters[key.rpartition(".")[2]] = like(weights[key], own[key])
        yield
    finally:
        for key, parameters in owners.items():
            parameters[key.rpartition(".")[2]] = own[key]


def like(value: Tensor, own: Tensor) -> Tensor:
    """`value` converted to the device, the type and the memory format of `own`."""
    value = value.to(device=own.device, dtype=own.dtype)
    last = own.dim() == 4 and own.is_contiguous(memory_format=torch.channels_last)
    return value.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def write_edited_weights(path: str | Path, weights: Mapping[str, Tensor], *, base_model: str, **record: Any) -> None:
    """Write the tensors in float32 by their keys in the checkpoint; equal arguments give equal bytes. UserError if one is not finite.

    `base_model` is the `file_hash` of the checkpoint; `record` holds the settings of the method (train_method, names, ...) as JSON values.
    """
    check_finite(weights, f"the result for {path}", NOT_WRITTEN)
    header = {OWN_KEY: json.dumps({"base_model": base_model} | record, sort_keys=True, default=str)}
    tensors = {key: value.detach().float().cpu().contiguous() for key, value in weights.items()}
    write_atomically(path, lambda temporary: temporary.write_bytes(save(tensors, metadata=header)))


def is_edited_weights(path: str | Path) -> bool:
    """Whether a file holds edited weights: it has tensors of a model, and its header names their checkpoint."""
    try:
        with safe_open(path, framework="pt") as file:
            return "base_model" in safetensors_metadata(path) and any(key.startswith(tuple(PARTS)) for key in file.keys())
    except (SafetensorError, OSError):  # not a .safetensors file, or damaged
        return False
