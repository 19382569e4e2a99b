"""A table or figure of configs/paper: its rows, the training or file of each, and the paper's values.

    title: "ID-ACC by prompt length m"
    section: "4.5"                  # of the paper
    columns: [ID-ACC, CLIP]         # shown; others of the same images are measured as well
    rows:
      - {name: base}                                                          # the base model
      - {name: ESD, train: {train_method: esd, mini.iterations: 100}}         # "mini.": overrides on the preset mini
      - {name: ours, train: {}, step: 2000, mini.step: 70, published: {CLIP: 0.3}}
      - {name: ours, result: embeddings/apl-mini.pt, only: [mini], model: sd-v1-4, mini.model: mini-sd-b}
      - {name: target, target: 1}                                             # Eq. 5's prediction with this alpha, without a prefix
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any

import yaml

from args.paths import found
from args.transfer_args import ROUTES
from ldm.util import UserError, first_line

PARTS = ("S_ID", "S_test", "prompts")  # of a row's images: portraits of both groups, and prompts that name nobody
OF_PEOPLE = {"ID-ACC": "id_acc_mean", "max": "id_acc_max", "faces": "detection_rate", "Attr-ACC": "attr_acc", "FID (id)": "fid"}
COLUMNS = {**{f"{column}, S_test": ("S_test", key) for column, key in OF_PEOPLE.items()},
           **{column: ("S_ID", key) for column, key in OF_PEOPLE.items()},
           "FID (non-id)": ("prompts", "fid"), "CLIP": ("prompts", "clip"), "faces, prompts": ("prompts", "detection_rate")}
COSTS = {"seconds": ("seconds", 1.0), "memory MB": ("peak_memory_bytes", 1e6), "result kB": ("result_bytes", 1e3)}  # column: key, unit
KINDS = {"name": str, "train": dict, "result": str, "step": int, "transfer": str, "model": str, "score": dict, "seeds": int,
         "target": int | float, "x": int | float, "shown": bool, "only": list, "published": dict}  # of a row's keys
OWN_SCORE = ("seed", "scale", "ddim_steps")  # keys of a row's `score`: all rows of a table have the same prompts
HEAD = {"title": str, "section": str, "columns": list, "score": dict, "figure": dict, "remark": str, "rows": list}


def kind_of(path: Path) -> str | None:
    """The key "kind" of a YAML file that is no table of rows, such as "attacks"; None for a table, and for what is not YAML."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
    return content.get("kind") if isinstance(content, dict) else None


@dataclass(frozen=True)
class TableRow:
    """A row: the result of a training, the file `result`, or Eq. 5's `target`; with none of them, the base model."""

    name: str
    train: Mapping[str, Any] | None = None  # flags of train.py; {} is APL with the preset's values
    result: Path | None = None
    step: int | None = None      # of the training; None is the last
    target: float | None = None  # alpha of Eq. 5, whose prediction is sampled for people; it is the base model's for other prompts
    transfer: str | None = None  # route by which the prefix is transferred to the second text encoder of `model`
    model: str | None = None     # preset of the generating model; None: the command's
    score: Mapping[str, object] = field(default_factory=dict)  # flags of test_fid_clip_score.py, added to the table's
    seeds: int | None = None     # maximum number of trainings
    x: float | None = None       # position in a curve
    shown: bool = True           # in a figure of images
    published: Mapping[str, float] = field(default_factory=dict)  # the paper's values by column


@dataclass(frozen=True)
class Table:
    """The rows of one table or figure on a preset."""

    name: str
    title: str
    section: str
    columns: Sequence[str]
    rows: Sequence[TableRow]
    score: Mapping[str, object] = field(default_factory=dict)   # flags of test_fid_clip_score.py
    figure: Mapping[str, Any] = field(default_factory=dict)  # kind `curve` (with x: label, log) or `pictures` (with columns per part)
    remark: str = ""


def read_table(path: Path, preset: str) -> Table:
    """The table of a YAML file on a preset; UserError if the file is not a valid table."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML ({first_line(error)}); correct it") from None
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        raise UserError(f"{path} has no list 'rows'; give them as configs/paper/table2.yaml does")
    _check(f"{path}", content, HEAD)
    figure = content.get("figure", {})
    if not _is_figure(figure):
        raise UserError(f"{path} has the figure {figure}, which is not understood; give kind curve with x and y, or kind "
                        f"`pictures` with a number of columns for some of {', '.join(PARTS)}")
    rows = [row for values in content["rows"] if (row := _row(path, values, preset))]
    names = [row.name for row in rows]
    if not rows or len(set(names)) < len(names):
        twice = next((f"two rows '{name}'" for name in names if names.count(name) > 1), f"no row for the preset {preset}")
        raise UserError(f"{path} has {twice}; correct the rows")
    if figure.get("kind") == "pictures" and not any(row.shown for row in rows):
        raise UserError(f"{path} has a figure of images and shows no row in it; remove 'shown: false' from one")
    columns = content.get("columns") or [*COLUMNS]
    if unknown := [column for column in columns if column not in (*COLUMNS, *COSTS)]:
        raise UserError(f"{path} asks for the column '{unknown[0]}'; give some of {_quoted((*COLUMNS, *COSTS))}")
    return Table(path.stem, content.get("title", path.stem), content.get("section", ""), columns, rows,
                 of_preset(content.get("score", {}), preset), figure, content.get("remark", ""))


def of_preset(values: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """Values on a preset: "mini.lr" replaces "lr" on the preset mini and is ignored on others; null removes a value."""
    own = {key.removeprefix(f"{preset}."): value for key, value in values.items() if str(key).startswith(f"{preset}.")}
    common = {key: value for key, value in values.items() if "." not in str(key)}
    return {key: value for key, value in (common | own).items() if value is not None}


def slug(name: str) -> str:
    """A name in lower case, with hyphens in place of all characters but letters, digits and underscores."""
    return re.sub(r"\W+", "-", name.lower()).strip("-")


def _row(path: Path, values: Any, preset: str) -> TableRow | None:
    """The row of an entry of `rows`; None if it is only for other presets."""
    if not isinstance(values, dict) or not isinstance(values.get("name"), str) or not slug(values["name"]):
        raise UserError(f"{path} has the row {values!r}, which has no name; give it one")
    place, row = f"{path}, row '{values['name']}'", of_preset(values, preset)
    if "train" in values and values["train"] is None:  # of_preset would make it the base model
        raise UserError(f"{place}: 'train' has no value; give {{}} for APL with the preset's values, or remove it")
    _check(place, row, KINDS)
    if preset not in row.pop("only", [preset]):
        return None
    if len(several := [key for key in ("train", "result", "target") if key in row]) > 1:
        raise UserError(f"{place}, has both '{several[0]}' and '{several[1]}'; remove one of them")
    if ("step" in row and "train" not in row) or ("transfer" in row and not {"train", "result"} & set(row)):
        raise UserError(f"{place}, has a 'step' or 'transfer' of nothing that is trained; give 'train' as well")
    if "step" in row and "transfer" in row:
        raise UserError(f"{place}, has a 'step' of what is transferred, which is the last; remove the step")
    if row.get("transfer", ROUTES[0]) not in ROUTES:
        raise UserError(f"{place}: the transfer '{row['transfer']}' is not there; give one of {', '.join(ROUTES)}")
    if small := [(key, least) for key, least in {"step": 1, "seeds": 1, "target": 0}.items() if row.get(key, least) < least]:
        raise UserError(f"{place}: '{small[0][0]}: {row[small[0][0]]}' is too small; give at least {small[0][1]}")
    if other := [key for key in of_preset(row.get("score", {}), preset) if key not in OWN_SCORE]:
        raise UserError(f"{place}: 'score' may have {', '.join(OWN_SCORE)} alone, and has '{other[0]}'; give that to the whole table")
    published = row.get("published", {})
    if unknown := [key for key, value in published.items()
                   if key not in COLUMNS or type(value) not in (int, float) or not math.isfinite(value)]:
        raise UserError(f"{place}: the published value '{unknown[0]}: {published[unknown[0]]}' has no place; give a number for one of "
                        f"{_quoted(COLUMNS)}")
    if "result" in row:
        row["result"] = found(given := row["result"])
        if not row["result"].is_file():
            raise UserError(f"{place}: the result {given} is not there; correct the path, or give 'train' in its place")
    return TableRow(**row | {key: of_preset(row[key], preset) for key in ("train", "score") if key in row})


def _quoted(columns: Iterable[str]) -> str:
    """Columns in quotes, which YAML needs for names with a comma."""
    return ", ".join(f'"{column}"' for column in columns)


def _is_figure(figure: Mapping[str, Any]) -> bool:
    """Whether this is a `Table.figure`."""
    if figure.get("kind") == "curve":
        plotted = [figure.get("y"), figure.get("beside", [])]
        return {"kind", "x", "y"} <= set(figure) <= {"kind", "x", "y", "beside", "log"} and figure["y"] != [] and all(
            isinstance(columns, list) and all(column in (*COLUMNS, *COSTS) for column in columns) for columns in plotted)
    counts = {key: value for key, value in figure.items() if key != "kind"}
    of_parts = set(counts) <= set(PARTS) and all(isinstance(count, int) and count > 0 for count in counts.values())
    return figure == {} or (figure.get("kind") == "pictures" and counts != {} and of_parts)


def _check(place: str, values: Mapping[str, object], kinds: Mapping[str, type | UnionType]) -> None:
    wrong = [key for key, value in values.items() if key not in kinds or not isinstance(value, kinds[key])]
    if wrong:
        raise UserError(f"{place}: '{wrong[0]}: {values[wrong[0]]}' is not understood; give {', '.join(kinds)}, as in "
                        "configs/paper/table2.yaml")
