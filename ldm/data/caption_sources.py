"""Sources of S_Reg (paper section 4.1): reads every public layout of captioned images as one stream of candidates.

Captions are stored next to the images (the layouts of `read_collection`, or parquet tables of img2dataset and Hugging Face), in a COCO
captions JSON, in a table with file names, or in a text file whose lines belong to numbered images (the layout of the released code).
"""

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ldm.contents import hashes_of
from ldm.data.images import CAPTION_FIELDS, UNREADABLE_METADATA, ImageSource, caption_of, captions_table, read_collection, with_one_caption
from ldm.image_files import files_below, image_suffixes
from ldm.left_out import FURTHER_CAPTIONS, LeftOut, Report
from ldm.text_files import HALF_CHARACTER, TABLES, is_header, is_table, json_list, read_text, refuse_rows
from ldm.util import UserError

if TYPE_CHECKING:
    from pyarrow import RecordBatch

IMAGE_COLUMNS = ("jpg", "png", "webp", "image")  # of parquet tables; img2dataset writes the first three, Hugging Face the last


@dataclass(frozen=True)
class Candidate:
    """An image that may enter S_Reg, not read yet."""

    origin: str  # location within the source, the same in every run
    caption: str | None
    read: Callable[[], bytes]
    stamp: str  # identifies the bytes, which may change at the same origin


def caption_candidates(folder: Path, captions: Path | None, report: Report, hashes: Path | None = None) -> tuple[int, Iterable[Candidate]]:
    """Number of candidates in a folder of images, tar shards or parquet tables, and the candidates in the order of the source.

    Args:
        captions: COCO captions JSON, a table with the columns file_name and text, or a text file with one caption per line; None if
            the captions are stored next to the images. UserError is raised if it cannot be read, or no image matches it.
        report: called for every flaw, see `read_collection`.
        hashes: cache file for `hashes_of`.
    """
    if captions is None and (tables := _tables(folder, report)):
        return _table_candidates(folder, tables, report, hashes)
    found = read_collection(folder, report)
    if captions is None:
        captioned = [(source, caption_of(fields)) for source, fields in found.items()]
    else:
        captioned = _captioned(folder, captions, found, report)
    stamps = hashes_of((source for source, _ in captioned), hashes)
    candidates = []
    for (source, caption), stamp in zip(captioned, stamps, strict=True):
        origin = f"{source.path.relative_to(folder).as_posix()}:{source.member}".rstrip(":")
        candidates.append(Candidate(origin, caption, source.read, stamp))
    return len(candidates), candidates


def _captioned(folder: Path, captions: Path, sources: Iterable[ImageSource], report: Report) -> list[tuple[ImageSource, str | None]]:
    """The images that a captions file describes, each with its caption; the content determines the format of the file."""
    text = read_text(captions)
    entries = json_list(text)
    if captions.suffix.lower() == ".json" and not entries or text.lstrip().startswith("{") and '"annotations"' in text:
        return _named(folder, captions, _coco(text, folder, captions, report), sources, report)
    if captions.suffix.lower() in TABLES or entries is not None or is_table(text, ("file_name",)):
        images: dict[Path, list[str]] = {}
        for row in captions_table(text, captions, report, some=CAPTION_FIELDS):
            images.setdefault(folder / row.fields.get("file_name", ""), []).extend(filter(None, [caption_of(row.fields)]))
        return _named(folder, captions, images, sources, report)
    return _numbered(text, captions, sources, report)


def _coco(text: str, folder: Path, captions: Path, report: Report) -> dict[Path, list[str]]:
    """Captions per image (COCO has about five), ordered by annotation id."""
    try:
        content = json.loads(text)
        own: dict[object, list[str]] = {}
        for annotation in sorted(content["annotations"], key=lambda annotation: annotation["id"]):
            if HALF_CHARACTER.search(annotation["caption"]):
                report(UNREADABLE_METADATA, f"{captions} has half a character (a lone surrogate) in the caption {annotation['caption']!a}")
            else:
                own.setdefault(annotation["image_id"], []).append(annotation["caption"].strip())
        return {folder / image["file_name"]: own.get(image["id"], []) for image in content["images"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{captions} is not a COCO captions file ({type(error).__name__}: {error}); give a JSON with images (id, "
                        "file_name) and annotations (id, image_id, caption), such as captions_val2014.json") from error


def _named(folder: Path, captions: Path, images: Mapping[Path, list[str]], sources: Iterable[ImageSource],
           report: Report) -> list[tuple[ImageSource, str | None]]:
    """The images that a captions file names, each with its first caption."""
    by_path = {source.path: source for source in sources if not source.member}
    for path in images.keys() - by_path.keys():
        report("image missing", f"{captions} names {path}, which does not exist; fetch it, or give the folder that holds it as --images")
    if not images.keys() & by_path.keys():
        raise UserError(f"none of the {len(images)} images that {captions} names is in {folder}; give the folder that holds them "
                        "as --images")
    for path in by_path.keys() - images.keys():
        report("not in the captions", f"{captions} does not name {path}; add it there, or give the captions that do")
    there = {path: texts for path, texts in images.items() if path in by_path}
    for path, texts in there.items():
        if len(texts) > 1:
            report(FURTHER_CAPTIONS, f"{captions} has {len(texts)} captions of {path}; the first is used, which in a COCO JSON is that "
                                     "with the smallest id")
    return [(by_path[path], texts[0] if texts else None) for path, texts in there.items()]


def _numbered(text: str, captions: Path, sources: Iterable[ImageSource], report: Report) -> list[tuple[ImageSource, str | None]]:
    """Images with captions, where the image with the number n in its name belongs to line n; numbers start at 0 or 1."""
    lines = [line.strip() for line in text.rstrip("\n").split("\n")]
    lines = lines[1:] if is_header(lines[0], CAPTION_FIELDS) else lines
    refuse_rows(lines, captions, ("file_name",))
    by_number: dict[int, list[ImageSource]] = {}
    for source in sources:
        digits = re.findall(r"\d{1,18}", PurePosixPath(source.member or source.path.name).stem)
        if digits:
            by_number.setdefault(int(digits[-1]), []).append(source)
        else:
            report("image without a number", f"{source} has no number in its name, so no line of {captions} belongs to it")
    for first, *others in by_number.values():
        for other in others:
            report("two images of one number", f"{other} and {first} have the same number; remove one")
    if not by_number:
        raise UserError(f"no image has a number in its name, and {captions} has one line per number; give images such as 000017.jpg")
    if (0 in by_number) == (len(lines) in by_number) or max(by_number) > len(lines):
        raise UserError(f"{captions} has {len(lines)} lines, but the images have the numbers {min(by_number)} to {max(by_number)}, so "
                        "the lines cannot be matched to images; number the images from 0 (image 0 must exist) or from 1 (image "
                        f"{len(lines)} must exist)")
    start = 0 if 0 in by_number else 1
    return [(own[0], lines[number - start] or None) for number, own in sorted(by_number.items()) if len(own) == 1]


def _tables(folder: Path, report: Report) -> list[Path]:
    """Parquet files of a folder without images and shards; next to those, img2dataset's tables hold metadata only."""
    ignored = LeftOut()
    paths = files_below(folder, ignored)
    tables = [path for path in paths if path.suffix.lower() == ".parquet"]
    if not tables or any(path.suffix.lower() in (*image_suffixes(), ".tar") for path in paths):
        return []
    for row in ignored.rows:
        report(row["reason"], row["what"])
    return tables


def _table_candidates(folder: Path, tables: list[Path], report: Report, hashes: Path | None) -> tuple[int, Iterator[Candidate]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise UserError(f"{tables[0]} is a parquet table, which needs pyarrow; pip install pyarrow, or let img2dataset write "
                        "--output_format webdataset") from error

    opened = []
    for path in tables:
        try:
            opened.append((path, parquet.ParquetFile(path)))
        except (ArrowException, OSError) as error:
            report("damaged table", f"{path} is not a complete parquet table ({error}); fetch it again or delete it")

    def candidates() -> Iterator[Candidate]:
        for path, table in opened:
            names = table.schema_arrow.names
            column = next((name for name in IMAGE_COLUMNS if name in names), None)
            if column is None:
                report("table without images", f"{path} has the columns {', '.join(names)} but no image bytes; "
                                               "fetch the images with img2dataset")
                continue
            columns = [column, *(name for name in (*CAPTION_FIELDS, "status") if name in names)]
            stamp, = hashes_of([ImageSource(path)], hashes)
            origins = (f"{path.relative_to(folder).as_posix()}:{number}" for number in itertools.count())
            try:
                for batch in table.iter_batches(batch_size=64, columns=columns):
                    for start in range(len(batch)):
                        yield from _row_candidate(next(origins), stamp, batch.slice(start, 1), column, report)
            except (ArrowException, OSError) as error:
                report("damaged table", f"{path} cannot be read to its end ({error}); fetch it again or delete it")

    return sum(table.metadata.num_rows for _, table in opened), candidates()


def _row_candidate(origin: str, stamp: str, row: "RecordBatch", column: str, report: Report) -> Iterator[Candidate]:
    """The candidate of one row of a table, with the image bytes in `column`; none if a flaw was reported."""
    try:
        fields, = row.to_pylist()
    except UnicodeDecodeError:
        report("text not UTF-8", f"the caption of {origin} is not UTF-8 text")
        return
    content = fields.pop(column)
    content = content.get("bytes") if isinstance(content, dict) else content
    texts = {name: text for name, text in with_one_caption(fields, origin, report).items() if isinstance(text, str)}
    if isinstance(content, bytes):
        yield Candidate(origin, caption_of(texts), lambda: content, stamp)
    else:
        report("image missing", f"{origin} has no image bytes (status {texts.get('status', 'unknown')}); fetch it again")
