"""Reads and writes image files, and arranges images in a labelled grid."""

import textwrap
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ldm.image_files import ImageSource, image_suffixes, is_hidden, natural_order, rgb_image
from ldm.util import write_atomically

LABEL = 90    # characters above a column of files
WAITING = 64  # maximum number of images in the writer's queue
INK = (30, 30, 30)


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file, (H, W, 3) uint8 RGB; see `rgb_image`."""
    return np.asarray(rgb_image(ImageSource(Path(path)).read, path))


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write an image (H, W, 3) uint8 RGB atomically; the suffix determines the format."""
    write_atomically(path, lambda target: Image.fromarray(image).save(target))


class ImageWriter:
    """Context manager that writes images in a thread until exit. `write` or the exit raises the errors of the thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future] = deque()

    def __enter__(self) -> "ImageWriter":
        return self

    def write(self, path: str | Path, image: np.ndarray) -> None:
        """Queue an image for `write_image`; images are written in the order of the calls."""
        self._waiting.append(self._thread.submit(write_image, path, image))
        while self._waiting and (len(self._waiting) > WAITING or self._waiting[0].done()):
            self._waiting.popleft().result()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        for written in self._waiting if kind is None else ():
            written.result()


def images_in(folder: str | Path) -> list[Path]:
    """Image files directly in a folder, in natural order (sample 2 before 10). `image_files` searches sub-folders and reports."""
    files = (path for path in Path(folder).iterdir() if path.suffix.lower() in image_suffixes() and not is_hidden(path.name))
    return sorted((path for path in files if path.is_file() or not path.exists()), key=natural_order)  # a link to nowhere is unreadable


def image_grid(images: Sequence[Sequence[np.ndarray | None]], row_labels: Sequence[str], column_labels: Sequence[str], *,
               cell: int = 128) -> Image.Image:
    """Grid of images with one label per row and per column of the longest row; ValueError if the numbers of labels differ.

    Each image is (H, W, 3) uint8 RGB and is scaled down to fit its cell of `cell` pixels; None leaves the cell empty.
    """
    columns = max((len(row) for row in images), default=0)
    if (len(images), columns) != (len(row_labels), len(column_labels)):
        raise ValueError(f"{len(images)} x {columns} images with {len(row_labels)} x {len(column_labels)} labels; give one label for each")
    font, gap = ImageFont.load_default(size=max(10, cell // 10)), max(2, cell // 32)
    row_texts = [_wrap(label, font, 1.25 * cell) for label in row_labels]
    column_texts = [_wrap(label, font, cell) for label in column_labels]
    size_of = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox
    left = 3 * gap + max((int(size_of((0, 0), text, font=font)[2]) for text in row_texts), default=0)
    top = 3 * gap + max((int(size_of((0, 0), text, font=font)[3]) for text in column_texts), default=0)
    sheet = Image.new("RGB", (left + columns * (cell + gap), top + len(images) * (cell + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(column_texts):
        draw.multiline_text((left + column * (cell + gap) + cell / 2, top - gap), text, INK, font, anchor="md", align="center")
    for row, text in enumerate(row_texts):
        y = top + row * (cell + gap)
        draw.multiline_text((left - 2 * gap, y + cell / 2), text, INK, font, anchor="rm", align="right")
        for column, image in enumerate(images[row]):
            if image is not None:
                thumbnail = Image.fromarray(image)
                thumbnail.thumbnail((cell, cell), Image.Resampling.LANCZOS)
                x = left + column * (cell + gap)
                sheet.paste(thumbnail, (x + (cell - thumbnail.width) // 2, y + (cell - thumbnail.height) // 2))
    return sheet


def sheet_of_files(rows: Mapping[str, Sequence[Path | None]], columns: Sequence[str], *, cell: int = 128) -> Image.Image:
    """`image_grid` of image files by row label, with shortened column labels; None leaves a cell empty.

    Raises:
        UserError: a file cannot be decoded.
    """
    images = [[None if path is None else read_image(path) for path in paths] for paths in rows.values()]
    return image_grid(images, list(rows), [textwrap.shorten(text, LABEL) for text in columns], cell=cell)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """Wrap the text at spaces so that no line is wider than `width` pixels, except for single longer words."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)
