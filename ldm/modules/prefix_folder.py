"""The folder of a prefix or a context map, as the Hugging Face Hub keeps it: one .safetensors file, and config.json, which describes it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from torch import Tensor

from args.paths import found
from ldm.hub import asking_the_hub
from ldm.modules.context_map import ContextMap
from ldm.modules.embedding_file import SDXL_KEYS, write_safetensors_file
from ldm.util import UserError, write_text

FILE, CONFIG = "anonymization_prompt.safetensors", "config.json"


Content = tuple[Tensor, ...] | ContextMap  # vectors (m, d) of one text encoder, or of SDXL's two; or a map


def write_prefix_folder(folder: Path, content: Content, metadata: Mapping[str, Any]) -> None:
    """Write the tensors, with `metadata` in the file's header, and the config that describes them; other files are kept."""
    kind, form = form_of(content)
    tensors: dict[str, Tensor] = {}
    given = dict(metadata)
    if isinstance(content, ContextMap):
        tensors.update(content.named_parameters())
        given.setdefault("text_encoder", content.text_encoder)
    else:  # emb_params: the key that every client reads
        tensors.update(zip(SDXL_KEYS if kind == "pair" else ("emb_params",), content, strict=True))
    write_safetensors_file(folder / FILE, tensors, step=given.pop("step", None), metadata=given)
    write_text(folder / CONFIG, json.dumps({"library": "apl", "file": FILE, "kind": kind, "form": form}, indent=1) + "\n")


def form_of(content: Content) -> tuple[str, str]:
    """Kind ("prefix", "pair" or "map"), and a text about the sizes."""
    if isinstance(content, ContextMap):
        return "map", f"a {f'map of rank {content.rank}' if content.rank else 'full map'} of a context {content.width} wide"
    sizes = " and ".join(f"{len(vectors)} vectors of width {vectors.shape[1]}" for vectors in content)
    return "pair" if len(content) == 2 else "prefix", sizes


def prefix_file_of(name: str | Path, *, revision: str | None = None, **options: Any) -> Path:
    """The .safetensors file of a folder, or of a model `owner/name` of the Hub, which is downloaded if the local cache lacks it.

    `options` are those of HfApi.hf_hub_download: token, cache_dir, local_files_only, force_download.

    Raises:
        UserError: there is no such folder or model, or it holds no anonymization prompt.
    """
    folder = found(name)
    if folder.is_dir():
        if not (folder / FILE).is_file():
            raise UserError(f"the folder {name} holds no {FILE}; give a folder that save_pretrained or 'python -m ldm.export IN DIR "
                            "--format hub' has written, or load a file with AnonymizationPrompt.load")
        return folder / FILE
    if folder.is_file():
        raise UserError(f"{name} is a file and not a folder; load it with AnonymizationPrompt.load")
    with asking_the_hub(str(name), revision, lacks=f"holds no {FILE}, and so no anonymization prompt"):
        return Path(HfApi().hf_hub_download(str(name), FILE, revision=revision, **options))
