"""S_Reg: pictures with captions, of anything but S_ID, which the prefix must leave as they are (paper section 3.5)."""

from dataclasses import dataclass
from pathlib import Path

from ldm.data.images import ImageSource, read_collection
from ldm.util import UserError

CAPTION_FIELDS = ("text", "caption", "prompt")  # whichever comes first


@dataclass(frozen=True)
class CaptionImage:
    """A picture of S_Reg and its caption, which is both c1 and c2."""

    source: ImageSource
    caption: str


def caption_images(folder: str | Path) -> list[CaptionImage]:
    """The pictures of a folder with their captions, in the order of their paths; layouts as `read_collection`.

    Raises:
        UserError: no picture, or a picture without a caption.
    """
    images = []
    for record in read_collection(folder):
        caption = next((record.fields[key] for key in CAPTION_FIELDS if record.fields.get(key)), None)
        if caption is None:
            raise UserError(f"{record.source} has no caption; put one into a .txt of the same name, or into "
                            "metadata.jsonl with file_name and text")
        images.append(CaptionImage(record.source, caption))
    return images
