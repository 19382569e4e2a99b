"""Writes a prefix or a context map as a folder for the Hugging Face Hub, with a model card from the files of its training."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.export.formats import export_prefix, matrix_of
from ldm.images import read_image, write_image
from ldm.model_card import HUB_ID, Described, model_card
from ldm.modules.context_map import ContextMap, is_map_file
from ldm.modules.embedding_file import carried_metadata, read_embedding_file
from ldm.modules.prefix_folder import FILE, Content, form_of, write_prefix_folder
from ldm.util import UserError, first_line, write_text

IMAGE = "before-after.png"
RAIL = "creativeml-openrail-m"
# Public checkpoints by file name: the model's name on the Hub, and its licence.
PUBLIC: dict[str, tuple[str | None, str]] = {
    "v1-5-pruned-emaonly.safetensors": ("stable-diffusion-v1-5/stable-diffusion-v1-5", RAIL),
    "sd-v1-4.ckpt": ("CompVis/stable-diffusion-v1-4", RAIL),
    "Realistic_Vision_V5.1.safetensors": ("SG161222/Realistic_Vision_V5.1_noVAE", RAIL),
    "sd_xl_base_1.0.safetensors": ("stabilityai/stable-diffusion-xl-base-1.0", "openrail++"),
    "mini-sd.safetensors": (None, "mit"), "mini-xl.safetensors": (None, "mit")}
OTHERS = ("none", "none, other noise", "c2")  # prefixes of rows that compare


def export_for_hub(source: Path, folder: Path, *, token: str = "alz") -> list[str]:
    """Write the new folder, atomically; returns what its model card says of the training, for the console.

    The results are those of `source` in results.json, next to it or in the run folder that train.py made with it, `../runs/NAME`; the
    images are before-after.png there, or an image named like `source`; the base model is that in NAME.json.

    Raises:
        UserError: a file cannot be read, or the folder is there.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"DIR {folder} is there and was not overwritten; give a new folder")
    content, metadata = _content_of(source)
    name = re.sub(r"-\d+$", "", source.stem)
    rows, run = _results_of(source, [source.parent, source.parent.parent / "runs" / name])
    images = [path for path in (run and run / IMAGE, source.with_suffix(".png")) if path and path.is_file()]
    base, license = _base_model(source.parent / f"{name}.json")
    kind, form = form_of(content)
    file = {"prefix": f"{token}.pt", "pair": f"{token}.safetensors", "map": FILE}[kind]
    card = model_card(Described(kind=kind, form=form, file=file, title=source.stem, token=token, base_model=base, license=license,
                                image=IMAGE if images else None, results=rows, training=metadata))
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        write_prefix_folder(temporary, content, metadata)
        if kind != "map":
            export_prefix(source, temporary / file, format="universal" if kind == "prefix" else "sdxl", token=token)
        if images:
            write_image(temporary / IMAGE, read_image(images[0]))  # decoded, so that nothing but pixels is published
        write_text(temporary / "README.md", str(card))
        os.replace(temporary, folder)  # also onto an empty folder
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return [f"results: {run / 'results.json' if run else 'none were found'}", f"images: {images[0] if images else 'none were found'}",
            f"base model: {base or 'not known; add it to README.md'}", f"licence: {license or 'not known; add it to README.md'}"]


def _content_of(source: Path) -> tuple[Content, dict[str, Any]]:
    if is_map_file(source):
        context_map = ContextMap.of_file(source)
        return context_map, context_map.metadata
    file = read_embedding_file(source)
    carried = carried_metadata(source, file)
    return file.pair or (matrix_of(source, file, "hub", None),), carried["metadata"] | {"step": carried["step"]}


def _results_of(source: Path, folders: list[Path]) -> tuple[list[Mapping[str, Any]], Path | None]:
    """Rows of the first results.json with rows of this file, and of those that they are compared to; and its folder."""
    for folder in folders:
        rows = _read(folder / "results.json", list)
        if not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{folder / 'results.json'} holds no list of rows; remove it, or measure again")
        if any(_file_of(row) == source.name for row in rows):
            return [row | {"prefix": _file_of(row)} for row in rows if _file_of(row) in (source.name, *OTHERS)], folder
    return [], None


def _file_of(row: Mapping[str, Any]) -> str:
    return Path(str(row.get("prefix"))).name


def _base_model(settings: Path) -> tuple[str | None, str | None]:
    """Name on the Hub and licence of the model that a training's settings name, as far as they are known."""
    arguments = _read(settings, dict).get("arguments")
    path = str(arguments.get("ckpt_path")) if isinstance(arguments, dict) else ""
    if Path(path).name in PUBLIC:
        return PUBLIC[Path(path).name]
    repo = path.partition("@")[0]
    return (repo if re.fullmatch(HUB_ID, repo) and not Path(repo).suffix else None), None


def _read(path: Path, kind: type) -> Any:
    """Content of a JSON file, or an empty `kind` if there is none; UserError if it holds something else."""
    if not path.is_file():
        return kind()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({first_line(error)}); remove it, or measure again") from None
    if not isinstance(content, kind):
        raise UserError(f"{path} holds a {type(content).__name__} instead of a {kind.__name__}; remove it, or measure again")
    return content
