"""Image collections on disk: lists the images of a folder with their metadata, and loads images as tensors.

Supported layouts: metadata.jsonl or metadata.csv next to the images (column file_name, as in Hugging Face's imagefolder), images with a
.txt or .json of the same stem (kohya, img2dataset's files), and .tar shards of those (img2dataset's webdataset).
An image has one caption: the first line of its .txt, the first of a list, or the first metadata entry. Further ones are reported.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.image_files import ImageSource, files_below, image_suffixes, is_hidden, is_image, rgb_image
from ldm.left_out import FURTHER_CAPTIONS, HIDDEN, NO_IMAGE, LeftOut, Report, besides
from ldm.text_files import TextRow, decoded, rows_of, texts_of
from ldm.util import UserError, write_text

Fields = dict[str, str]  # metadata of an image: "name", "text", ...

UNREADABLE_METADATA = "unreadable metadata"

CAPTION_FIELDS = ("text", "caption", "prompt")  # in order of precedence
FIELDS = ("name", *CAPTION_FIELDS)
SIDES = {".json": ".json", ".caption": ".txt", ".txt": ".txt"}  # suffixes of texts next to an image, and the kind of each
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv")
LONGEST_TEXT = 2**20  # bytes of a caption or of one image's metadata


def load_image(source: ImageSource, size: int) -> Tensor:
    """The center crop of an image, resized: (3, size, size) float32 in [-1, 1]; raises UserError as `rgb_image`."""
    image = rgb_image(source.read, source)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 127.5 - 1.0


def read_collection(folder: str | Path, report: Report | None = None) -> dict[ImageSource, Fields]:
    """Every image of a folder, its sub-folders and its shards, in the order of `files_below`, with its metadata.

    `report` is called with a reason and a sentence for everything that is left out; None uses a strict `LeftOut`. Raises UserError if
    the folder does not exist. A strict `LeftOut` also raises it if there is no image, a shard or a text cannot be read completely, one
    text could belong to two images, or metadata names a missing image.
    """
    folder, report = Path(folder), report or LeftOut(strict=True)
    if not folder.is_dir():
        raise UserError(f"the data folder {folder} does not exist; give a folder of images")
    found: dict[ImageSource, Fields | None] = {}  # None: left out
    stems: dict[Path, Path] = {}
    files = files_below(folder, report)
    sides = {path.with_suffix(path.suffix.lower()): path for path in files if path.suffix.lower() in SIDES}
    for path in files:
        if path.suffix.lower() == ".tar":
            found |= _read_shard(path, report)
        elif is_image(path, report):
            texts = {kind: _decoded(side.open("rb"), side, report, LONGEST_TEXT) for suffix, kind in SIDES.items()
                     if (side := sides.get(path.with_suffix(suffix)))}
            found[ImageSource(path)] = fields = _fields(texts, path, report)
            twin = stems.setdefault(path.with_suffix(""), path)
            if fields and twin != path:
                _report_twins(twin, path, report)
                found |= {ImageSource(twin): None, ImageSource(path): None}
    for side, path in sides.items():  # a .json may be another program's
        if side.suffix != ".json" and side.with_suffix("") not in stems:
            report(NO_IMAGE, f"{path} has the name of no image that is read, so it is ignored; rename it like its image, or remove it")
    named: dict[ImageSource, Fields] = {}
    for path in (path for path in files if path.name.casefold() in METADATA):
        for number, fields in enumerate(_metadata_of(path, report), start=1):
            source = ImageSource(path.parent / fields.get("file_name", ""))
            if (side_fields := found.get(source)) is not None:
                first = named.setdefault(source, fields)
                if any(first.get(key, fields[key]) != fields[key] for key in fields.keys() - {"file_name"}):
                    report(FURTHER_CAPTIONS, f"{path} describes '{fields['file_name']}' in its entry {number} differently from an earlier "
                                             "entry; the earlier one is used")
                if first is fields:
                    _report_differing(side_fields, fields, f"{path}, entry {number},", f"the text next to {source}", report)
                named[source] = fields | first
            elif source not in found:
                where = ("which exists but is hidden, of a format that Pillow does not open, or named through another folder; rename it, "
                         "convert it" if os.path.isfile(source.path) else f"which is not in {path.parent}; add the image")
                report("image missing", f"{path} names the image '{fields.get('file_name')}' in its entry {number}, {where} or "
                                        "remove the entry")
    if not found:
        report("no images", f"the data folder {folder} holds no images (such as .png and .jpg) and no .tar shards{besides(report)}; "
                            "put images into it or give another folder")
    return {source: fields | named.get(source, {}) for source, fields in found.items() if fields is not None}


def write_metadata(folder: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write metadata.jsonl of a folder, one row per image: file_name, relative to the folder, and further fields."""
    write_text(Path(folder) / "metadata.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def captions_table(text: str, where: Path, report: Report, *, some: tuple[str, ...] = (),
                   optional: tuple[str, ...] = ()) -> Iterator[TextRow]:
    """Rows of a table with the column file_name, see `rows_of`; flaws and further captions are reported."""
    return rows_of(text, where, ["file_name"], some, optional, multiline=True, on_error=partial(report, UNREADABLE_METADATA),
                   prepare=partial(with_one_caption, report=report))


def _metadata_of(path: Path, report: Report) -> Iterator[Fields]:
    text = _decoded(path.open("rb"), path, report) or ""
    try:
        yield from (row.fields for row in (captions_table(text, path, report, optional=FIELDS) if text.strip() else ()))
    except UserError as error:  # an invalid header
        report(UNREADABLE_METADATA, str(error))


def _report_twins(first: object, second: object, report: Report) -> None:
    report("two images of one stem", f"{first} and {second} have the same stem, and their text could belong to either; rename one image "
                                     "and its text")


def _report_differing(there: Fields, further: Fields, who: str, what: str, report: Report) -> None:
    """Report two different captions of one image."""
    captions = {" ".join(caption.split()) for caption in map(caption_of, (there, further)) if caption}
    if len(captions) > 1:
        report(FURTHER_CAPTIONS, f"{who} and {what} give two captions; one of them is used")


def _read_shard(path: Path, report: Report) -> dict[ImageSource, Fields | None]:
    """Fields of the images of a tar shard, from texts of the same stem; None if one was reported. Stores offsets; unpacks nothing."""
    images: dict[str, list[ImageSource]] = {}  # by stem
    texts: dict[str, dict[str, str | None]] = {}
    end = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                if member.size < 0 or (member.isfile() and member.offset_data + member.size > end):
                    raise tarfile.ReadError(f"a member of {member.size} bytes does not fit into it")
                name = PurePosixPath(member.name)
                suffix, stem = name.suffix.lower(), str(name.with_suffix(""))
                source = ImageSource(path, member.name, member.offset_data, member.size)
                if any(map(is_hidden, name.parts)):
                    if member.isfile() and suffix in image_suffixes():
                        report(HIDDEN, f"{source} is hidden and ignored; rename it to use it")
                elif not member.isfile():
                    if not member.isdir() and suffix in image_suffixes():
                        report("link in a shard", f"{source} is a link, which is not followed in a shard; store the file itself")
                elif is_image(PurePosixPath(str(source)), report):
                    images.setdefault(stem, []).append(source)
                elif suffix in (".txt", ".json"):
                    file = cast(IO[bytes], shard.extractfile(member))  # None only for what is no file
                    texts.setdefault(stem, {})[suffix] = _decoded(file, source, report, LONGEST_TEXT)
            shard.fileobj.seek(shard.offset)
            if shard.fileobj.read(512) != bytes(512):  # a complete tar ends with empty blocks
                raise tarfile.ReadError("its end is missing")
    except UserError:
        raise
    except (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError) as error:  # the last three for impossible sizes
        report("damaged shard", f"the shard {path} is damaged ({error}); fetch it again or delete it")
    found = {}
    for stem, sources in images.items():
        for twin in sources[1:]:
            _report_twins(sources[0], twin, report)
        found[sources[0]] = _fields(texts.get(stem, {}), sources[0], report) if len(sources) == 1 else None
    return found


def _fields(texts: Mapping[str, str | None], where: object, report: Report) -> Fields | None:
    """Fields of an image from the texts of its .json and its .txt (or kohya's .caption); None if one of them was reported."""
    if None in texts.values():
        return None
    fields: Fields | None = {}
    if (text := texts.get(".json")) is not None:
        flaw, place = partial(report, UNREADABLE_METADATA), f"the .json of {where}"
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            flaw(f"{place} is not valid JSON ({error}); correct the file")
            return None
        fields = texts_of(with_one_caption(content, place, report), place, FIELDS, flaw)
    if fields is None or (text := texts.get(".txt")) is None:
        return fields
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()] or [""]
    if len(lines) > 1:
        report(FURTHER_CAPTIONS, f"the .txt of {where} has {len(lines)} lines; the first is the caption")
    _report_differing(fields, {"text": lines[0]}, f"the .txt of {where}", "its .json", report)
    return fields | {"text": lines[0]}


def _decoded(file: IO[bytes], where: object, report: Report, longest: int | None = None) -> str | None:
    """The text of an open file, which is closed; None if it was reported as not UTF-8 or longer than `longest` bytes."""
    with file:
        content = file.read(longest + 1 if longest else -1)
    if longest and len(content) > longest:
        report("text too long", f"{where} has more than {longest} bytes, too many for a caption; delete it")
        return None
    try:
        return decoded(content, where)
    except UserError as error:
        report("text not UTF-8", str(error))
        return None


def caption_of(fields: Fields) -> str | None:
    """Caption in the fields of an image: the first non-empty field of CAPTION_FIELDS, or None."""
    return next((fields[key].strip() for key in CAPTION_FIELDS if fields.get(key, "").strip()), None)


def with_one_caption(content: Any, where: str, report: Report) -> Any:
    """The JSON value, with each list of captions of an object replaced by its first caption."""
    if not isinstance(content, dict):
        return content
    lists = {key: content[key] for key in CAPTION_FIELDS if isinstance(content.get(key), list) and content[key]}
    for key, captions in lists.items():
        if len(captions) > 1:
            report(FURTHER_CAPTIONS, f"{where} has {len(captions)} texts as '{key}' of {content.get('file_name', 'its image')}; the first "
                                     "is the caption")
    return content | {key: captions[0] for key, captions in lists.items()}
