"""Image grids from files, with images of the same noise (Figures 1, 3, 4 and 7)."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from ldm.images import image_grid, read_image

CELL = 128  # side of an image in pixels
LABEL = 90  # characters above a column


def sheet_of_files(rows: Mapping[str, Sequence[Path | None]], columns: Sequence[str], cell: int = CELL) -> Image.Image:
    """Image grid with one row per label and one column per person or prompt; None leaves a cell empty.

    Raises:
        UserError: a file cannot be decoded.
    """
    images = [[None if path is None else read_image(path) for path in paths] for paths in rows.values()]
    return image_grid(images, list(rows), [textwrap.shorten(text, LABEL) for text in columns], cell=cell)
