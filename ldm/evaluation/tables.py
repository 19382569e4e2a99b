"""Writes rows of metrics as results.json, CSV and Markdown and formats them for the console, for every command that measures."""

import json
import math
from collections.abc import Collection, Sequence
from numbers import Number
from pathlib import Path
from typing import Any

from ldm.text_files import write_csv
from ldm.util import write_text

Row = dict[str, Any]  # of a table: value by column


def write_results(rows: Sequence[Row], out_dir: str | Path, *, name: str = "results") -> None:
    """Write `<name>.json` (a list of flat rows), `<name>.csv` and `<name>.md` with the same rows to `out_dir`."""
    out_dir = Path(out_dir)
    rows = [{key: _plain(value) for key, value in row.items()} for row in rows]
    text = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    write_text(out_dir / f"{name}.json", text)
    write_csv(rows, out_dir / f"{name}.csv")
    write_text(out_dir / f"{name}.md", markdown_table(rows))


def markdown_table(rows: Sequence[Row], numeric: Collection[str] | None = None) -> str:
    """The rows as a Markdown table: floats with four decimals, a dash for a missing value.

    Args:
        rows: one dict per row.
        numeric: columns that are right-aligned; None selects those that hold only numbers.
    """
    columns = _columns(rows)
    numeric = [column for column in columns if _numeric(rows, column)] if numeric is None else numeric
    cells = [[" ".join(_cell(row.get(column)).replace("|", "\\|").split()) for column in columns] for row in rows]
    return markdown_lines(columns, [column in numeric for column in columns], cells) + "\n"


def markdown_lines(titles: Sequence[str], right: Sequence[bool], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells in Markdown; `right` marks the right-aligned columns."""
    rule = ["---:" if aligned else "---" for aligned in right]
    return "\n".join(f"| {' | '.join(line)} |" for line in (titles, rule, *rows))


def console_table(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """The rows as aligned text, with all columns or those given."""
    columns = _columns(rows) if columns is None else list(columns)
    lines = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    numeric = [_numeric(rows, column) for column in columns]
    return "\n".join("  ".join(cell.rjust(width) if right else cell.ljust(width)
                               for cell, width, right in zip(line, widths, numeric, strict=True)).rstrip()
                     for line in lines)


def console_tables(*tables: Sequence[Row]) -> str:
    """Several tables separated by empty lines; tables without rows are skipped."""
    return "\n\n".join(console_table(rows) for rows in tables if rows)


def _columns(rows: Sequence[Row]) -> list[str]:
    """All keys, in the order in which they first appear."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _plain(value: Any) -> Any:
    """Convert NumPy scalars to Python values, and numbers that are not finite to None, since JSON cannot represent them."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numeric(rows: Sequence[Row], column: str) -> bool:
    return all(row.get(column) is None or isinstance(row[column], Number) for row in rows)


def _cell(value: Any) -> str:
    value = _plain(value)
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
