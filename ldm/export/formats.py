"""Writes a prefix with the key and the container that another program expects; always float32, atomically."""

from pathlib import Path

from torch import Tensor

from ldm.modules.embedding_file import (
    SDXL_KEYS,
    EmbeddingFile,
    carried_metadata,
    read_embedding_file,
    write_embedding_file,
    write_safetensors_file,
)
from ldm.util import UserError

ASTERISK = 265  # CLIP's token id of "*", which AUTOMATIC1111 writes into each of its files but never reads


def export_prefix(source: Path, target: Path, *, format: str, token: str = "alz", part: str | None = None) -> None:
    """Convert the prefix file `source`, in any supported form, to `target`; equal vectors and metadata give equal bytes.

    Args:
        source: a prefix file.
        target: the new file, with the suffix of its format.
        format: a key of FORMATS in args/export_args.py.
        token: placeholder word of the prefix, for formats that store one.
        part: entry to export from a file with several.

    Raises:
        UserError: `source` cannot be read or lacks what the format needs, or `token` is not a single CLIP token (universal only).
    """
    file = read_embedding_file(source)
    carried = carried_metadata(source, file)
    if format == "sdxl":
        write_safetensors_file(target, dict(zip(SDXL_KEYS, _pair(source, file), strict=True)), **carried)
        return
    vectors = _matrix(source, file, format, part)
    match format:
        case "universal":
            write_embedding_file(target, {token: vectors}, {token: _token_id(token)}, **carried)
        case "a1111":
            write_embedding_file(target, {token: vectors}, {token: ASTERISK}, **carried)
        case "diffusers":
            write_safetensors_file(target, {f"<{token}>": vectors}, **carried)
        case _:  # with this key InvokeAI reads the width from the last axis
            write_safetensors_file(target, {"emb_params": vectors}, **carried)


def _pair(source: Path, file: EmbeddingFile) -> tuple[Tensor, Tensor]:
    """Vectors for SDXL's two text encoders, (m, d_l) and (m, d_g)."""
    if file.pair is None:
        raise UserError(f"{source} holds {_listed(file)}, but SDXL has two text encoders and needs clip_l and clip_g; make the second part "
                        f"with python -m ldm.apl.transfer {source} OUT --to sdxl")
    clip_l, clip_g = file.pair
    if len(clip_l) != len(clip_g):
        raise UserError(f"{source} holds {len(clip_l)} vectors for clip_l but {len(clip_g)} for clip_g; give a file with equal numbers")
    return clip_l, clip_g


def _matrix(source: Path, file: EmbeddingFile, format: str, part: str | None) -> Tensor:
    """The entry to export, (m, d)."""
    if part in file.vectors:
        return file.vectors[part]
    if part is not None:
        raise UserError(f"{source} holds {_listed(file)} but no part '{part}'; give one of these")
    if file.pair is not None:
        raise UserError(f"{source} is for SDXL, with clip_l and clip_g, but --format {format} holds one of them; "
                        "give --format sdxl, or choose with --part clip_l or --part clip_g")
    if len(file.vectors) > 1:
        raise UserError(f"{source} holds {_listed(file)} where a prefix is one entry; choose with --part, "
                        "or give a prefix file if this is a LoRA or a checkpoint")
    return next(iter(file.vectors.values()))


def _token_id(token: str) -> int:
    # Imported here because transformers takes seconds and no other format needs it.
    from ldm.modules.embedding_manager import single_token
    from ldm.modules.encoders.modules import clip_tokenizer

    return single_token(clip_tokenizer(), token)


def _listed(file: EmbeddingFile) -> str:
    keys = [f"'{key}'" for key in file.vectors]
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
