"""S_Reg: captioned images without people of S_ID, whose generation the prefix must preserve (paper section 3.5).

`caption_images` reads it for training. `write_caption_set` builds it from other collections; left out, and counted per reason, are
images that cannot be decoded or are too small, missing and duplicate captions, and captions that name a person.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ldm.contents import digest
from ldm.data.caption_sources import Candidate
from ldm.data.identities import Person
from ldm.data.images import ImageSource, caption_of, read_collection, write_metadata
from ldm.image_files import open_image, rgb_image, suffix_of
from ldm.left_out import LeftOut, Report
from ldm.names import NamesInText, normal_form, words_of
from ldm.util import UserError, write_atomically

MOST_PIXELS = 2**26


@dataclass(frozen=True)
class CaptionImage:
    """An image of S_Reg and its caption, which serves as both c1 and c2."""

    source: ImageSource
    caption: str


def caption_images(folder: str | Path, report: Report | None = None) -> list[CaptionImage]:
    """Images of a folder with their captions, in the order of `read_collection`, which defines the layouts and `report`.

    Raises UserError if the folder holds no image, or an image has no caption.
    """
    captions = {source: caption_of(fields) for source, fields in read_collection(folder, report).items()}
    if None in captions.values():
        raise UserError(no_caption(next(source for source, caption in captions.items() if caption is None)))
    return [CaptionImage(source, caption) for source, caption in captions.items() if caption]


def no_caption(where: object) -> str:
    """Message about an image without a caption."""
    return f"{where} has no caption; put one into a .txt of the same name, or into metadata.jsonl with file_name and text"


def write_caption_set(candidates: Iterable[Candidate], folder: Path, people: Mapping[str, Person], *, min_size: int, max_images: int | None,
                      total: int, dropped: LeftOut) -> int:
    """Copy the images that pass the filters to `folder`/images; write metadata.jsonl and dropped.csv; return the number of images.

    Images copied by an earlier run are not read again. Those that no longer pass, or whose source has changed, are deleted. Raises
    UserError if no candidate passes, or the folder holds a set made from another source.

    Args:
        people: captions that name one of them are left out.
        min_size, max_images: minimum length of the shorter side, in pixels; maximum number of images (None takes all).
        total: number of candidates, for the progress bar.
        dropped: receives one row per candidate that is left out.
    """
    images, metadata = folder / "images", folder / "metadata.jsonl"
    images.mkdir(parents=True, exist_ok=True)
    there = {path.stem: path for path in images.iterdir()}
    lines = metadata.read_text(encoding="utf-8").split("\n") if there and metadata.exists() else []  # none if it was interrupted
    earlier = {json.loads(line)["source"] for line in lines if line}
    names = NamesInText(people)
    rows: list[dict[str, str]] = []
    keys: set[str] = set()
    for candidate in tqdm(candidates, "S_Reg", total, unit="image"):
        origin, caption = candidate.origin, candidate.caption
        if len(rows) == max_images:
            break
        if caption is None:
            dropped("no caption", no_caption(origin))
        elif named := people.get(names.find(caption) or ""):
            dropped(f"names a person of the {named.group} group", f"{origin} names {named.name}: '{caption}'")
        elif (key := caption_key(caption)) in keys:
            dropped("duplicate caption", f"{origin} has the caption of an earlier image: '{caption}'")
        elif path := there.get(stem := digest(origin, candidate.stamp)) or _copy(candidate, images / stem, min_size, dropped):
            keys.add(key)
            source = origin.encode(errors="backslashreplace").decode()  # a file name need not be valid text
            rows.append({"file_name": f"images/{path.name}", "text": caption, "source": source})
    if rows and earlier and earlier.isdisjoint(row["source"] for row in rows):
        for path in set(images.iterdir()) - set(there.values()):
            path.unlink()
        raise UserError(f"{folder} holds images of another source, such as {min(earlier)}, and none of this one; use another --out_dir, or "
                        "--no-resume to delete them")
    dropped.write(folder / "dropped.csv")
    if not rows:
        raise UserError(f"no image is left for S_Reg ({dropped}); give another --images or --captions, or a smaller --min_size")
    for path in set(there.values()) - {folder / row["file_name"] for row in rows}:
        path.unlink()
    write_metadata(folder, rows)
    return len(rows)


def _copy(candidate: Candidate, stem: Path, min_size: int, dropped: LeftOut) -> Path | None:
    """Copy the image unchanged to `stem` plus the suffix of its format; return the path, or None if the image is dropped."""
    try:
        content = candidate.read()
        image = open_image(lambda: content, candidate.origin)
        size = f"{candidate.origin} has {image.width} x {image.height} pixels"
        if min(image.size) < min_size:
            dropped("too small", f"{size}, less than --min_size {min_size}")
            return None
        if image.width * image.height > MOST_PIXELS:
            dropped("too large", f"{size}, more than {MOST_PIXELS} in all")
            return None
        rgb_image(lambda: content, candidate.origin)  # detects damaged files here instead of during training
    except (UserError, OSError) as error:
        too_large = isinstance(error.__cause__, Image.DecompressionBombError)
        dropped("too large" if too_large else "corrupt image", str(error))
        return None
    path = stem.with_suffix(suffix_of(image))
    write_atomically(path, lambda target: target.write_bytes(content))
    return path


def caption_key(caption: str) -> str:
    """Key that identifies duplicate captions: words with accents and symbols, or the punctuation if there is nothing else."""
    return words_of(caption, accents=True) or normal_form(caption)
