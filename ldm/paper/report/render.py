"""Render the report from its templates: report.jinja with as_html.jinja or as_markdown.jinja."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from ldm.evaluation.tables import markdown_lines
from ldm.image_files import ImageSource, rgb_image
from ldm.paper.config import slug
from ldm.paper.report.numbers import Numbers, Value

WIDEST, QUALITY = 1200, 80  # pixels and WebP quality of a grid of images


@dataclass(frozen=True)
class ReportImage:
    """An image of the report; a grid of images is compressed, a plot is not."""

    path: Path
    alt: str
    caption: str
    is_grid: bool

    @property
    def name(self) -> str:
        """File name next to report.md."""
        return f"{slug(self.path.stem)}{'.webp' if self.is_grid else self.path.suffix}"

    @cached_property
    def encoded(self) -> tuple[str, bytes, tuple[int, int]]:
        """Format, bytes and size: a grid as WebP of at most WIDEST pixels, a plot as it is; UserError if it cannot be read."""
        image = rgb_image(ImageSource(self.path).read, self.path)
        if not self.is_grid:
            return "png", self.path.read_bytes(), image.size
        image.thumbnail((WIDEST, 10 * WIDEST), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=QUALITY, method=6)
        return "webp", buffer.getvalue(), image.size


def render(form: str, report: Mapping[str, object]) -> str:
    """The report as "html" with escaped values, or as "markdown"; UserError if an image cannot be read."""
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=form == "html", undefined=StrictUndefined,
                            trim_blocks=True, lstrip_blocks=True)
    templates.filters |= {"md": _escaped, "table": markdown_numbers, "fence": _fence,
                          "base64": lambda data: base64.b64encode(data).decode()}
    return templates.get_template("report.jinja").render(report, form=templates.get_template(f"as_{form}.jinja")).strip() + "\n"


def markdown_numbers(table: Numbers) -> str:
    """A table of numbers as Markdown; a column with halves is two columns."""
    titles = [f"{column.title} {half}".strip() for column in table.columns for half in column.halves or ("",)]
    return markdown_lines([table.first, *titles], [False, *[True] * len(titles)],
                          [[_escaped(name), *map(_cell, values)] for name, values in table.rows])


def _escaped(value: object) -> str:
    """A value as one line of Markdown text, with special characters escaped."""
    return re.sub(r"([\\`*_\[\]|<>&#~$])", r"\\\1", " ".join(str(value).split()))


def _cell(value: Value) -> str:
    text = f"**{value.text}**" if value.best else value.text
    return " ".join(filter(None, [text, value.spread, _escaped(value.interval)]))


def _fence(lines: Sequence[str]) -> str:
    """A fence longer than any run of backticks in the lines."""
    return "`" * max(3, 1 + max(map(len, re.findall("`+", "\n".join(lines))), default=0))
