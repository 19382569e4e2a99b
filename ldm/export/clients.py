"""Instructions for using an exported prefix in each program that reads it."""

from pathlib import Path

from ldm.modules.embedding_file import SDXL_KEYS

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
    "a1111": (WEB_UI,),
    "comfyui": (COMFYUI,),
    "diffusers": (DIFFUSERS,),
    "invokeai": (INVOKEAI,),
    "sdxl": (WEB_UI, COMFYUI, INVOKEAI, DIFFUSERS_SDXL),
}


def instructions(path: Path, *, format: str, token: str, part: str | None = None) -> list[str]:
    """Instructions, one text per program that reads the file `path` of this format: where to put it, and how to use it in a prompt.

    Most programs refer to a prefix by its file name. diffusers refers to it by `token`, and only diffusers can load the `part` clip_g
    alone.
    """
    clients = (DIFFUSERS_SECOND,) if part == SDXL_KEYS[1] else READ_BY[format]
    return [client.format(path=path.as_posix(), stem=path.stem, token=token) for client in clients]
