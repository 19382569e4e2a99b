"""What a report consists of, whatever it is written as: html.py and markdown.py write these blocks."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image

from ldm.image_files import ImageSource, rgb_image
from ldm.paper.config import slug

WIDEST, QUALITY = 1200, 80  # pixels and WebP quality of a grid of pictures


@dataclass(frozen=True)
class Heading:
    """`anchor` is what links point to; `short` is its name among the links at the top, empty where it is not among them."""

    level: int
    text: str
    anchor: str
    short: str = ""


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Facts:
    """Words and what is to be said of each."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Commands:
    """Lines for a shell, and what they are for."""

    title: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Value:
    """A number as it is shown; all in words. `best`: of its column."""

    text: str
    spread: str = ""
    interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class Column:
    """`halves` are the columns under it, none where it is one itself."""

    title: str
    halves: Sequence[str] = ()


@dataclass(frozen=True)
class Numbers:
    """A table of numbers: of each row its name, and one value for each column or half of a column."""

    caption: str
    first: str  # what the rows are
    columns: Sequence[Column]
    rows: Sequence[tuple[str, Sequence[Value]]]


@dataclass(frozen=True)
class Picture:
    """`is_grid`: of pictures, which may be compressed; else of lines, which may not."""

    path: Path
    alt: str
    caption: str
    is_grid: bool

    @property
    def name(self) -> str:
        """Of its file beside report.md."""
        return f"{slug(self.path.stem)}{'.webp' if self.is_grid else self.path.suffix}"

    @cached_property
    def encoded(self) -> tuple[str, bytes, tuple[int, int]]:
        """Kind, bytes and size: a grid as WebP of at most WIDEST pixels, lines as they are; UserError if it cannot be read."""
        image = rgb_image(ImageSource(self.path).read, self.path)
        if not self.is_grid:
            return "png", self.path.read_bytes(), image.size
        image.thumbnail((WIDEST, 10 * WIDEST), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=QUALITY, method=6)
        return "webp", buffer.getvalue(), image.size


@dataclass(frozen=True)
class Claims:
    """Entries of claims.json, all in words."""

    claims: Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Folded:
    """Blocks that are shown on demand."""

    summary: str
    blocks: Sequence["Block"]


Block = Heading | Paragraph | Facts | Commands | Numbers | Picture | Claims | Folded


