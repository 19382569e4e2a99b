"""S_Reg is made: candidates go through the filters, and pictures with captions lie in a folder that training reads.

Left out, and counted: what cannot be decoded, what is too small, captions that are missing or there already, and captions
that name somebody, for whom the prefix must do its work and not leave the picture as it is (paper section 3.5).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ldm.contents import digest
from ldm.data.caption_sources import Candidate
from ldm.data.captions import no_caption
from ldm.data.identities import Person
from ldm.data.images import write_metadata
from ldm.image_files import open_image, rgb_image, suffix_of
from ldm.left_out import LeftOut
from ldm.names import NamesInText, normal_form, words_of
from ldm.util import UserError, write_atomically

MOST_PIXELS = 2**26


@dataclass(frozen=True)
class Filters:
    """What enters S_Reg.

    Args:
        people: captions with a name of theirs are left out.
        min_size: of the shorter side, in pixels.
        max_images: stop at so many; None takes all.
    """

    people: Mapping[str, Person]
    min_size: int
    max_images: int | None = None


def write_caption_set(candidates: Iterable[Candidate], folder: Path, filters: Filters, *, total: int, dropped: LeftOut) -> int:
    """Copies what passes the filters to `folder`/images, with metadata.jsonl and dropped.csv; the number of pictures.

    Pictures that an earlier run copied are not read again; those that no longer pass, or whose source was replaced, are deleted.

    Args:
        total: how many candidates there are, for the progress bar.
        dropped: takes a row for each candidate that is left out.

    Raises:
        UserError: nothing passes, or the folder holds images of which the candidates have none.
    """
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    there = {path.stem: path for path in images.iterdir()}
    earlier = _sources_in(folder / "metadata.jsonl") if there else set()
    names = NamesInText(filters.people)
    rows: list[dict[str, str]] = []
    captions: set[str] = set()
    for candidate in tqdm(candidates, "S_Reg", total, unit="image"):
        if len(rows) == filters.max_images:
            break
        if not _caption_passes(candidate, filters.people, names, captions, dropped):
            continue
        key = digest(candidate.origin, candidate.stamp)
        path = there.get(key) or _copy(candidate, images / key, filters.min_size, dropped)
        if path is not None:
            captions.add(told_by(candidate.caption))
            source = candidate.origin.encode(errors="backslashreplace").decode()  # file names may be no text
            rows.append({"file_name": f"images/{path.name}", "text": candidate.caption, "source": source})
    if rows and earlier and earlier.isdisjoint(row["source"] for row in rows):
        for path in set(images.iterdir()) - set(there.values()):
            path.unlink()
        raise UserError(f"{folder} holds images of another source, such as {min(earlier)}, and of none of these; use another --out_dir, or "
                        "--no-resume to delete them")
    dropped.write(folder / "dropped.csv")
    if not rows:
        raise UserError(f"no picture is left for S_Reg ({dropped}); give another --images or --captions, or a smaller --min_size")
    kept = {row["file_name"] for row in rows}
    for path in there.values():
        if f"images/{path.name}" not in kept:
            path.unlink()
    write_metadata(folder, rows)
    return len(rows)


def _caption_passes(candidate: Candidate, people: Mapping[str, Person], names: NamesInText, captions: set[str], dropped: LeftOut) -> bool:
    if candidate.caption is None:
        dropped("no caption", no_caption(candidate.origin))
        return False
    told = told_by(candidate.caption)
    named = people.get(names.find(candidate.caption) or "")
    if named:
        dropped(f"names somebody of the {named.group} group", f"{candidate.origin} names {named.name}: '{candidate.caption}'")
    elif told in captions:
        dropped("duplicate caption", f"{candidate.origin} has the caption of an earlier picture: '{candidate.caption}'")
    return not named and told not in captions


def _copy(candidate: Candidate, stem: Path, min_size: int, dropped: LeftOut) -> Path | None:
    """The file of the picture, byte for byte, under a suffix that says its format; None where it is dropped."""
    try:
        content = candidate.read()
        picture = open_image(lambda: content, candidate.origin)
        if min(picture.size) < min_size:
            dropped("too small", f"{candidate.origin} has {picture.width} x {picture.height} pixels, less than --min_size {min_size}")
            return None
        if picture.width * picture.height > MOST_PIXELS:
            dropped("too large", f"{candidate.origin} has {picture.width} x {picture.height} pixels, more than {MOST_PIXELS} in all")
            return None
        rgb_image(lambda: content, candidate.origin)  # a damaged one is found here, not in training
    except (UserError, OSError) as error:
        too_large = isinstance(error.__cause__, Image.DecompressionBombError)
        dropped("too large" if too_large else "corrupt picture", str(error))
        return None
    path = stem.with_suffix(suffix_of(picture))
    write_atomically(path, lambda target: target.write_bytes(content))
    return path


def _sources_in(metadata: Path) -> set[str]:
    """Where the images of an earlier run come from; none if it was stopped before it wrote that down."""
    lines = metadata.read_text(encoding="utf-8").split("\n") if metadata.exists() else []
    return {json.loads(line)["source"] for line in lines if line}


def told_by(caption: str) -> str:
    """What tells a caption from others: words, accents and symbols, or the punctuation where there is nothing else."""
    return words_of(caption, accents=True) or normal_form(caption)
