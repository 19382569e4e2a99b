"""Writes a prefix with the key and the container that another program expects (float32, atomically), and tells how to use it there."""

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

WEB_UI = "A1111, Forge: put it into the web UI's folder embeddings/ and start the prompt with: {stem}"
COMFYUI = "ComfyUI: put it into models/embeddings/ and start the prompt with: embedding:{stem}"
INVOKEAI = "InvokeAI: add it in the Model Manager, as {stem}, and start the prompt with: <{stem}>"
DIFFUSERS = "diffusers: start the prompt with: <{token}> after\n    pipe.load_textual_inversion({path!r})"
DIFFUSERS_TOKEN = 'diffusers: start the prompt with: <{token}> after\n    pipe.load_textual_inversion({path!r}, token="<{token}>")'
DIFFUSERS_SDXL = """diffusers: start the prompt with: <{token}> after
    state = safetensors.torch.load_file({path!r})
    pipe.load_textual_inversion(state["clip_l"], token="<{token}>", text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)
    pipe.load_textual_inversion(state["clip_g"], token="<{token}>", text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2)"""
DIFFUSERS_SECOND = """diffusers: the vectors of SDXL's second text encoder, in addition to those of the first under the same token:
    pipe.load_textual_inversion({path!r}, token="<{token}>", text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2)"""

READ_BY = {
    "universal": (WEB_UI, COMFYUI, INVOKEAI, DIFFUSERS),
    "safetensors": (WEB_UI, COMFYUI, INVOKEAI, DIFFUSERS_TOKEN),
    "sdxl": (WEB_UI, COMFYUI, INVOKEAI, DIFFUSERS_SDXL),
    "a1111": (WEB_UI,), "comfyui": (COMFYUI,), "diffusers": (DIFFUSERS,), "invokeai": (INVOKEAI,),
}


def export_prefix(source: Path, target: Path, *, format: str, token: str = "alz", part: str | None = None) -> None:
    """Convert the prefix file `source`, in any supported form, to `target`; equal vectors and metadata give equal bytes.

    Args:
        target: the new file, with the suffix of its format.
        format: a key of FORMATS in args/export_args.py.
        token: placeholder word of the prefix, for formats that store one; UserError if it is not a single CLIP token (universal only).
        part: entry to export from a file with several; UserError if `source` lacks it, or another that the format needs.
    """
    file = read_embedding_file(source)
    carried = carried_metadata(source, file)
    if format == "sdxl":
        if file.pair is None:
            raise UserError(f"{source} holds {_listed(file)}, but SDXL has two text encoders and needs clip_l and clip_g; make the second "
                            f"part with python -m ldm.apl.transfer {source} OUT --to sdxl")
        lengths = len(file.pair[0]), len(file.pair[1])
        if lengths[0] != lengths[1]:
            raise UserError(f"{source} holds {lengths[0]} vectors for clip_l but {lengths[1]} for clip_g; give a file with equal numbers")
        return write_safetensors_file(target, dict(zip(SDXL_KEYS, file.pair, strict=True)), **carried)
    vectors = matrix_of(source, file, format, part)
    match format:
        case "universal":  # imported here because transformers takes seconds
            from ldm.modules.embedding_manager import single_token
            from ldm.modules.encoders.modules import clip_tokenizer

            write_embedding_file(target, {token: vectors}, {token: single_token(clip_tokenizer(), token)}, **carried)
        case "a1111":
            write_embedding_file(target, {token: vectors}, {token: ASTERISK}, **carried)
        case "diffusers":
            write_safetensors_file(target, {f"<{token}>": vectors}, **carried)
        case _:  # with this key InvokeAI reads the width from the last axis
            write_safetensors_file(target, {"emb_params": vectors}, **carried)


def instructions(path: Path, *, format: str, token: str, part: str | None = None) -> list[str]:
    """Instructions, one text per program that reads the file `path` of this format: where to put it, and how to use it in a prompt.

    Most programs refer to a prefix by its file name; diffusers by `token`, and only diffusers can load the `part` clip_g alone.
    """
    clients = (DIFFUSERS_SECOND,) if part == SDXL_KEYS[1] else READ_BY[format]
    return [client.format(path=path.as_posix(), stem=path.stem, token=token) for client in clients]


def matrix_of(source: Path, file: EmbeddingFile, format: str, part: str | None) -> Tensor:
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


def _listed(file: EmbeddingFile) -> str:
    keys = [f"'{key}'" for key in file.vectors]
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
