"""The rows of a table of configs/paper: how each of them is trained or which file it is, and what the paper published.

    rows:
      - {name: base}                                                          # the model as it is
      - {name: ESD, train: {train_method: esd, mini.iterations: 100}}         # "mini.": on the preset mini, in place of the other
      - {name: ours, result: embeddings/apl-mini.pt, only: [mini], figure4: true, published: {CLIP: 0.3}}
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from args.common import found
from ldm.util import UserError, first_line

KINDS = {"name": str, "train": dict, "result": str, "only": list, "figure4": bool, "published": dict}  # of the entries of a row


@dataclass(frozen=True)
class TableRow:
    """A row: what a training makes, or the file `result`; with neither, the model as it is."""

    name: str
    train: Mapping[str, Any] = field(default_factory=dict)  # flags of train.py
    result: Path | None = None
    figure4: bool = False  # whether its pictures are shown there
    published: Mapping[str, float] = field(default_factory=dict)  # the paper's values by column

    @property
    def slug(self) -> str:
        """The name as file names have it."""
        return re.sub(r"\W+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True)
class Table:
    """The rows of one preset, the model as it is before all others, and the flags by which they are drawn and scored."""

    methods: Sequence[TableRow]
    score: Mapping[str, Any]


def read_table(path: Path, preset: str, columns: Sequence[str]) -> Table:
    """The table of a YAML file, as it is on a preset.

    Args:
        preset: its name.
        columns: those that may have published values.

    Raises:
        UserError: the file is no such table.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML ({first_line(error)}); correct it") from None
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list) or not isinstance(content.get("score", {}), dict):
        raise UserError(f"{path} has no list 'rows', or 'score' is no mapping; give them as configs/paper/table2.yaml does")
    rows = [_checked(path, row, columns) for row in content["rows"]]
    methods = [_method(path, row, preset) for row in rows if preset in row.get("only", [preset])]
    if not methods or [method for method in methods if not method.train and not method.result] != methods[:1]:
        raise UserError(f"the first row of {path} for the preset {preset}, and it alone, must be the model as it is, without 'train' and "
                        "'result'; correct the rows")
    slugs = [method.slug for method in methods]
    if twice := [slug for slug in slugs if slugs.count(slug) > 1]:
        raise UserError(f"{path} has two rows '{twice[0]}', and their files would share a folder; rename one of them")
    return Table(methods, of_preset(content.get("score", {}), preset))


def of_preset(values: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """Flags as they are on a preset: "mini.lr" is for the preset mini alone, where it goes before "lr"; null takes a flag away."""
    own = {key.removeprefix(f"{preset}."): value for key, value in values.items() if str(key).startswith(f"{preset}.")}
    common = {key: value for key, value in values.items() if "." not in str(key)}
    return {key: value for key, value in (common | own).items() if value is not None}


def _checked(path: Path, row: Any, columns: Sequence[str]) -> Mapping[str, Any]:
    """One entry of `rows`, of the form that it should have."""
    if not isinstance(row, dict) or not isinstance(row.get("name"), str) or not re.search(r"\w", row["name"]):
        raise UserError(f"{path} has the row {row!r}, which has no name; give it one")
    wrong = [key for key, value in row.items() if key not in KINDS or not isinstance(value, KINDS[key])]
    if wrong:
        raise UserError(f"{path}, row '{row['name']}': '{wrong[0]}: {row[wrong[0]]}' is not understood; a row has {', '.join(KINDS)}, as "
                        "in configs/paper/table2.yaml")
    if "train" in row and "result" in row:
        raise UserError(f"{path}, row '{row['name']}', has both 'train' and 'result'; take one of them away")
    published = row.get("published", {})
    if unknown := [key for key, value in published.items() if key not in columns or not isinstance(value, int | float)]:
        raise UserError(f"{path}, row '{row['name']}': the published value '{unknown[0]}: {published[unknown[0]]}' has no place; give a "
                        f"number for one of {', '.join(columns)}")
    return row


def _method(path: Path, row: Mapping[str, Any], preset: str) -> TableRow:
    result = found(Path(row["result"])) if "result" in row else None
    if result and not result.is_file():
        raise UserError(f"{path}, row '{row['name']}': the result {row['result']} is not there; correct the path, or give 'train' in its "
                        "place")
    return TableRow(row["name"], of_preset(row.get("train", {}), preset), result, row.get("figure4", False),
                  row.get("published", {}))
