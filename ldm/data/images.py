"""Image collections on disk: which pictures a folder holds, what is said about each, and the picture as a tensor.

Read: metadata.jsonl or metadata.csv beside the pictures (column file_name, as Hugging Face's imagefolder), pictures
with a .txt or .json of the same stem (kohya, img2dataset's files), and .tar shards of those (img2dataset's webdataset).
"""

import csv
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.pictures import PICTURE_SUFFIXES
from ldm.util import UserError

Fields = dict[str, str]


@dataclass(frozen=True)
class ImageSource:
    """Where a picture lies: a file, or `size` bytes at `offset` of a tar shard."""

    path: Path
    member: str = ""
    offset: int = 0
    size: int = -1

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass
class Record:
    """A picture, and what the folder says about it ("name", "text", ...)."""

    source: ImageSource
    fields: Fields = field(default_factory=dict)


def load_image(source: ImageSource, size: int) -> Tensor:
    """The centre square of a picture at size x size pixels: (3, size, size) float32 in [-1, 1].

    Raises:
        UserError: the picture cannot be decoded whole.
    """
    try:
        with Image.open(io.BytesIO(source.read())) as picture:
            picture = picture.convert("RGB")
            side = min(picture.size)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            square = picture.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{source} cannot be read as a picture ({error}); delete or replace the file") from error
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 127.5 - 1.0


def read_collection(folder: str | Path) -> list[Record]:
    """Every picture of a folder and of its sub-folders and shards, in the order of the paths.

    Raises:
        UserError: no such folder, no picture in it, a metadata file that cannot be read or names a missing picture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"the data folder {folder} does not exist; give a folder of pictures")
    found: dict[ImageSource, Record] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith("."):
            record = found.setdefault(ImageSource(path), Record(ImageSource(path)))
            record.fields = _side_files(path) | record.fields
        elif path.suffix == ".tar":
            found |= {record.source: record for record in _read_shard(path)}
    for path in sorted([*folder.rglob("metadata.jsonl"), *folder.rglob("metadata.csv")]):
        for number, fields in enumerate(_metadata_rows(path), start=1):
            source = ImageSource(path.parent / fields.get("file_name", ""))
            if source not in found:
                raise UserError(f"{path} names the picture '{fields.get('file_name')}' in its entry {number}, which is "
                                f"not in {path.parent}; add the picture or remove the entry")
            found[source].fields |= fields
    if not found:
        raise UserError(f"the data folder {folder} holds no pictures ({', '.join(PICTURE_SUFFIXES)}) and no .tar "
                        "shards; put pictures into it or give another folder")
    return list(found.values())


def _side_files(path: Path) -> Fields:
    """What the .json and the .txt of the same stem say; the .txt is the caption."""
    fields: Fields = {}
    if path.with_suffix(".json").is_file():
        fields |= _strings(_parse_json(path.with_suffix(".json"), path.with_suffix(".json").read_bytes()))
    if path.with_suffix(".txt").is_file():
        fields["text"] = path.with_suffix(".txt").read_text(encoding="utf-8", errors="replace").strip()
    return fields


def _read_shard(path: Path) -> list[Record]:
    """Records of a tar shard: members of one stem belong together. Nothing is unpacked; only places are noted."""
    sources: dict[str, ImageSource] = {}
    fields: dict[str, Fields] = {}
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                name = PurePosixPath(member.name)
                suffix, key = name.suffix.lower(), str(name.with_suffix(""))
                if not member.isfile():
                    continue
                if suffix in PICTURE_SUFFIXES:
                    sources[key] = ImageSource(path, member.name, member.offset_data, member.size)
                elif suffix == ".txt":
                    text = shard.extractfile(member).read().decode("utf-8", errors="replace").strip()
                    fields[key] = fields.get(key, {}) | {"text": text}
                elif suffix == ".json":
                    fields[key] = _strings(_parse_json(path, shard.extractfile(member).read())) | fields.get(key, {})
    except tarfile.TarError as error:
        raise UserError(f"the shard {path} is damaged ({error}); fetch it again or delete it") from error
    return [Record(source, fields.get(key, {})) for key, source in sources.items()]


def _metadata_rows(path: Path) -> Iterator[Fields]:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            yield from (_strings(row) for row in csv.DictReader(file))
    else:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                yield _strings(_parse_json(path, line))


def _parse_json(path: Path, text: str | bytes) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is no valid JSON ({error}); correct the file") from error


def _strings(content: object) -> Fields:
    return {key: value for key, value in content.items() if isinstance(value, str)} if isinstance(content, dict) else {}
