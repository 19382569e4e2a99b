"""S_Reg: captioned images without people of S_ID, whose generation the prefix must preserve (paper section 3.5)."""

from dataclasses import dataclass
from pathlib import Path

from ldm.data.images import ImageSource, caption_of, read_collection
from ldm.left_out import Report
from ldm.util import UserError


@dataclass(frozen=True)
class CaptionImage:
    """An image of S_Reg and its caption, which serves as both c1 and c2."""

    source: ImageSource
    caption: str


def caption_images(folder: str | Path, report: Report | None = None) -> list[CaptionImage]:
    """Images of a folder with their captions, in the order of `read_collection`, which defines the layouts and `report`.

    Raises:
        UserError: the folder holds no image, or an image has no caption.
    """
    images = []
    for record in read_collection(folder, report):
        if (caption := caption_of(record.fields)) is None:
            raise UserError(no_caption(record.source))
        images.append(CaptionImage(record.source, caption))
    return images


def no_caption(where: object) -> str:
    """Message about an image without a caption."""
    return f"{where} has no caption; put one into a .txt of the same name, or into metadata.jsonl with file_name and text"
