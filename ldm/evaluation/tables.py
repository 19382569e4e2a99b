"""Writes rows of metrics as results.json, CSV and Markdown and formats them for the console, for every command that measures."""

import json
import math
from collections.abc import Collection, Sequence
from itertools import chain
from numbers import Number
from pathlib import Path
from typing import Any

from ldm.text_files import write_csv
from ldm.util import write_text

Row = dict[str, Any]  # of a table: value by column


def write_results(rows: Sequence[Row], out_dir: str | Path, *, name: str = "results") -> None:
    """Write `<name>.json` (a list of flat rows), `<name>.csv` and `<name>.md` with the same rows to `out_dir`."""
    rows = [{key: _plain(value) for key, value in row.items()} for row in rows]
    write_text(Path(out_dir) / f"{name}.json", json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    write_csv(rows, Path(out_dir) / f"{name}.csv")
    write_text(Path(out_dir) / f"{name}.md", markdown_table(rows))


def markdown_table(rows: Sequence[Row], numeric: Collection[str] | None = None) -> str:
    """The rows as a Markdown table: floats with four decimals, a dash for a missing value.

    `numeric` are the right-aligned columns; None selects those that hold only numbers.
    """
    columns = _columns(rows)
    right = [_numeric(rows, column) if numeric is None else column in numeric for column in columns]
    cells = [[" ".join(_cell(row.get(column)).replace("|", "\\|").split()) for column in columns] for row in rows]
    return markdown_lines(columns, right, cells) + "\n"


def markdown_lines(titles: Sequence[str], right: Sequence[bool], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells in Markdown; `right` marks the right-aligned columns."""
    rule = ["---:" if aligned else "---" for aligned in right]
    return "\n".join(f"| {' | '.join(line)} |" for line in (titles, rule, *rows))


def console_table(*tables: Sequence[Row]) -> str:
    """Tables as aligned text, separated by empty lines; tables without rows are skipped."""
    return "\n\n".join(_aligned(rows) for rows in tables if rows)


def _aligned(rows: Sequence[Row]) -> str:
    columns = []  # of equally wide cells, the first of which is the title
    for title in _columns(rows):
        cells = [title, *(_cell(row.get(title)) for row in rows)]
        width = max(map(len, cells))
        columns.append([cell.rjust(width) if _numeric(rows, title) else cell.ljust(width) for cell in cells])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def _columns(rows: Sequence[Row]) -> list[str]:
    """All keys, in the order in which they first appear."""
    return list(dict.fromkeys(chain.from_iterable(rows)))


def _plain(value: Any) -> Any:
    """Convert NumPy scalars to Python values, and numbers that are not finite to None, since JSON cannot represent them."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numeric(rows: Sequence[Row], column: str) -> bool:
    return all(isinstance(row.get(column), Number | None) for row in rows)


def _cell(value: Any) -> str:
    value = _plain(value)
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
