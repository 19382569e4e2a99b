"""The context map: a linear map of the text encoder's output, learned in place of the prefix (`--train_method apl-map`).

This parametrisation is ours and not the paper's. It takes the place of tau_AP(c) in Eq. 5 to 7, with the same map at each of the 77
positions:

    tau_map(c) = tau(c) + tau(c) W^T + b

W is (d, d), or a product U V^T of rank r with U and V (d, r). W (or U) and b start at zero, so that training starts at the identity.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from args.paths import found
from ldm.containers import SAFETENSORS, container_of
from ldm.finite import is_finite
from ldm.modules.embedding_file import with_own, write_safetensors_file
from ldm.modules.file_kinds import CONTEXT_MAP, describe
from ldm.util import UserError, warn

TO_DO = "give a .safetensors file that train.py --train_method apl-map has written"


class ContextMap(nn.Module):
    """EmbeddingHook of FrozenCLIPEmbedder that leaves the token embeddings unchanged and maps the context.

    It has the methods of EmbeddingManager that training and generation use. There is no placeholder, so prompts keep all their tokens.
    """

    string_to_token_dict: dict[str, int] = {}
    num_vectors = 0

    def __init__(self, width: int, rank: int = 16, *, generator: torch.Generator | None = None):
        """Create the identity, in float32 on the CPU.

        Args:
            width: d, the width of the context.
            rank: r, from 1 to d; 0 for a full matrix.
            generator: random generator on the CPU, for V; None uses seed 0.

        Raises:
            UserError: the rank is out of range.
        """
        super().__init__()
        if not 0 <= rank <= width:
            raise UserError(f"a context map of rank {rank} was asked for, and the context is {width} wide; give 1 to {width}, or 0 for a "
                            "full matrix")
        if rank == 0:
            self.map = nn.Parameter(torch.zeros(width, width))  # W
        else:
            self.map_up = nn.Parameter(torch.zeros(width, rank))  # U
            generator = generator or torch.Generator().manual_seed(0)
            self.map_down = nn.Parameter(torch.randn(rank, width, generator=generator) / width ** 0.5)  # V^T
        self.bias = nn.Parameter(torch.zeros(width))
        self.width, self.rank = width, rank
        self.text_encoder: str | None = None  # `text_encoder_hash` of the encoder that it was learned with
        self.metadata: dict[str, Any] = {}  # of the file that it was read from

    def forward(self, token_ids: Tensor, token_embeddings: Tensor) -> Tensor:
        """The token embeddings, unchanged."""
        return token_embeddings

    def finish(self, context: Tensor) -> Tensor:
        """tau_map(c) of contexts tau(c), (..., d), on their device and in their dtype; computed in float32."""
        x, device = context.float(), context.device
        inner, outer = (F.linear(x, self.map_down.to(device)), self.map_up) if self.rank else (x, self.map)
        return (x + F.linear(inner, outer.to(device), self.bias.to(device))).to(context.dtype)

    def extra_length(self, token_ids: Tensor) -> Tensor:
        """No additional positions; for shapes see EmbeddingManager."""
        return torch.zeros_like(token_ids).sum(-1)

    def embedding_parameters(self) -> Iterator[nn.Parameter]:
        """W and b, or U, V^T and b, for an optimizer."""
        return self.parameters()

    @property
    def matrix(self) -> Tensor:
        """W, (d, d), detached."""
        return (self.map_up @ self.map_down if self.rank else self.map).detach()

    def interpolate(self, other: "ContextMap", weight: float) -> "ContextMap":
        """The full map whose W and b are (1 - weight) * self + weight * other, of equal widths."""
        return ContextMap.of({"map": torch.lerp(self.matrix, other.matrix, weight),
                              "bias": torch.lerp(self.bias.detach(), other.bias.detach(), weight)})

    def save(self, path: str | Path, *, step: int | None = None, **metadata: Any) -> None:
        """Write the tensors and `metadata` (JSON values), see `write_safetensors_file`."""
        write_safetensors_file(path, dict(self.named_parameters()), step=step, metadata={"text_encoder": self.text_encoder} | metadata,
                               what="context map")

    @classmethod
    def of_file(cls, path: str | Path) -> "ContextMap":
        """The map of a file, on the CPU; never runs code from the file.

        Raises:
            UserError: no such file, no context map, shapes that do not fit each other, or a number that is not finite.
        """
        path = found(path)
        container_of(path, "context map", TO_DO)
        if not is_map_file(path):
            raise UserError(f"{path} holds no context map; {TO_DO}")
        with safetensors.safe_open(path, framework="pt") as file:
            tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, with_own(dict(file.metadata() or {}))
        match shapes := {key: tuple(value.shape) for key, value in tensors.items()}:
            case {"map": (rows, columns), "bias": (width,)} if rows == columns == width > 0:
                pass
            case {"map_up": (rows, rank), "map_down": (inner, columns), "bias": (width,)} if rows == columns == width >= rank == inner > 0:
                pass
            case _:
                raise UserError(f"{path} holds a context map of shapes {', '.join(f'{key} {shape}' for key, shape in shapes.items())}, "
                                f"which do not fit each other; {TO_DO}")
        for key, value in tensors.items():
            if not value.is_floating_point():
                raise UserError(f"{path} holds '{key}' of type {value.dtype} instead of floating-point numbers; {TO_DO}")
            if not is_finite(value):
                raise UserError(f"'{key}' of the context map {path} holds NaN or infinity; take the file of an earlier step")
        own = cls.of(tensors)
        own.text_encoder, own.metadata = metadata.get("text_encoder"), metadata
        return own

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "ContextMap":
        """The map of tensors by name: map and bias, or map_up, map_down and bias."""
        own = cls(len(tensors["bias"]), 0 if "map" in tensors else len(tensors["map_down"]))
        own.load_state_dict(tensors)
        return own.requires_grad_(False)


def context_map_for(embedder: Any, path: str | Path) -> ContextMap:
    """The map of a file for a model's `cond_stage_model`, on its device; warns if it was learned with another text encoder.

    Raises:
        UserError: the file cannot be read, or is for a text encoder of another width, or the model has two text encoders.
    """
    context_map = ContextMap.of_file(path)
    if context_map.width != (width := context_width(embedder)):
        raise UserError(f"the context map {path} is for a context {context_map.width} wide and this text encoder's is {width} wide; give "
                        "a map learned for this text encoder")
    if context_map.text_encoder not in (None, text_encoder_hash(embedder)):
        warn(f"the context map {path} was learned with another text encoder than this model's; its effect may be weaker, or none")
    return context_map.to(next(embedder.parameters()).device)


def context_width(embedder: Any) -> int:
    """Width d of the context of a model with one text encoder; UserError for SDXL's two."""
    if hasattr(embedder, "embedders"):
        raise UserError("a context map is for a model with one text encoder, and this model has two, as SDXL; give a prefix, or a model "
                        "of Stable Diffusion v1")
    return embedder.context_shape[1]


def text_encoder_hash(embedder: Any) -> str:
    """Hash of the weights of a text encoder, 16 hexadecimal digits, the same for a float32 and a float16 checkpoint."""
    digest = hashlib.sha256()
    for name, value in sorted(embedder.named_parameters()):
        digest.update(name.encode() + value.detach().half().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def is_map_file(path: str | Path) -> bool:
    """Whether a file holds a context map, by the names of its tensors; False for a file that cannot be read."""
    with suppress(UserError, OSError, safetensors.SafetensorError):
        path = found(path)
        if container_of(path, "context map", "") == SAFETENSORS:
            with safetensors.safe_open(path, framework="pt") as file:
                return describe(dict.fromkeys(file.keys())) == CONTEXT_MAP
    return False
