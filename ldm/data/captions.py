"""S_Reg: pictures with captions, of anything but S_ID, which the prefix must leave as they are (paper section 3.5)."""

from dataclasses import dataclass
from pathlib import Path

from ldm.data.images import CAPTION_FIELDS, Fields, ImageSource, read_collection
from ldm.left_out import Report
from ldm.util import UserError


@dataclass(frozen=True)
class CaptionImage:
    """A picture of S_Reg and its caption, which is both c1 and c2."""

    source: ImageSource
    caption: str


def caption_images(folder: str | Path, report: Report | None = None) -> list[CaptionImage]:
    """The pictures of a folder with their captions, in the order of their paths; layouts and report as `read_collection`.

    Raises:
        UserError: no picture, or a picture without a caption.
    """
    images = []
    for record in read_collection(folder, report):
        if (caption := caption_of(record.fields)) is None:
            raise UserError(no_caption(record.source))
        images.append(CaptionImage(record.source, caption))
    return images


def caption_of(fields: Fields) -> str | None:
    """What the fields of a picture say as its caption; None where they say nothing."""
    return next((fields[key].strip() for key in CAPTION_FIELDS if fields.get(key, "").strip()), None)


def no_caption(where: object) -> str:
    """What to do about a picture without a caption."""
    return f"{where} has no caption; put one into a .txt of the same name, or into metadata.jsonl with file_name and text"
