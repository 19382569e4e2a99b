"""Edited weights: the few tensors that a competing method changes, or an attack; put into a frozen model and taken out again.

The file is a .safetensors of the changed tensors under their keys in the checkpoint, with the checkpoint's hash and how they came about
in its header. Every command takes it as --edited_weights, see `ldm.loading`.
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
    """While it lasts, the model computes with `weights` in place of its own parameters of these names; afterwards it is what it was.

    Args:
        weights: by name, of the parameters' shapes; taken in the model's type, on its device, and gradients reach them.
    """
    places = {key: (model.get_submodule(key.rpartition(".")[0])._parameters, key.rpartition(".")[2]) for key in weights}
    own = {key: parameters[name] for key, (parameters, name) in places.items()}
    try:
        for key, (parameters, name) in places.items():
            parameters[name] = like(weights[key], own[key])
        yield
    finally:
        for key, (parameters, name) in places.items():
            parameters[name] = own[key]


def like(value: Tensor, own: Tensor) -> Tensor:
    """`value` on the device, in the type and in the memory format of `own`."""
    value = value.to(device=own.device, dtype=own.dtype)
    last = own.dim() == 4 and own.is_contiguous(memory_format=torch.channels_last)
    return value.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def write_edited_weights(path: str | Path, weights: Mapping[str, Tensor], *, base_model: str, **record: Any) -> None:
    """Writes the tensors in float32, by their keys in the checkpoint; equal arguments give equal bytes. UserError if one is not finite.

    Args:
        base_model: `file_hash` of the checkpoint that they belong to.
        record: how they came about (train_method, names, seed, ...), JSON values.
    """
    check_finite(weights, f"the result for {path}", NOT_WRITTEN)
    header = {OWN_KEY: json.dumps({"base_model": base_model} | record, sort_keys=True, default=str)}
    tensors = {key: value.detach().float().cpu().contiguous() for key, value in weights.items()}
    write_atomically(path, lambda temporary: temporary.write_bytes(save(tensors, metadata=header)))


def is_edited_weights(path: str | Path) -> bool:
    """Whether a file says that it holds edited weights: it has tensors of a model and names their checkpoint, as prefixes may too."""
    try:
        with safe_open(path, framework="pt") as file:
            return "base_model" in safetensors_metadata(path) and any(key.startswith(tuple(PARTS)) for key in file.keys())
    except (SafetensorError, OSError):  # no .safetensors, or damaged
        return False
