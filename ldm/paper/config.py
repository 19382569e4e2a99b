"""A table or figure of configs/paper: its rows, how each of them is trained or which file it is, and what the paper published.

    title: "ID-ACC by prompt length m"
    section: "4.5"                  # of the paper
    columns: [ID-ACC, CLIP]         # shown; all are measured
    rows:
      - {name: base}                                                          # the model as it is
      - {name: ESD, train: {train_method: esd, mini.iterations: 100}}         # "mini.": on the preset mini, in place of the other
      - {name: ours, train: {}, step: 2000, mini.step: 70, published: {CLIP: 0.3}}
      - {name: ours, result: embeddings/apl-mini.pt, only: [mini], model: sd-v1-4, mini.model: mini-sd-b}
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from args.paths import found
from args.transfer_args import ROUTES
from ldm.util import UserError, first_line

PARTS = ("S_ID", "S_test", "prompts")  # what is drawn: portraits of both groups, and prompts that name nobody
OF_PEOPLE = {"ID-ACC": "id_acc_mean", "max": "id_acc_max", "faces": "detection_rate", "Attr-ACC": "attr_acc", "FID (id)": "fid"}
COLUMNS = {**{f"{column}, S_test": ("S_test", key) for column, key in OF_PEOPLE.items()},
           **{column: ("S_ID", key) for column, key in OF_PEOPLE.items()},
           "FID (non-id)": ("prompts", "fid"), "CLIP": ("prompts", "clip"), "faces, prompts": ("prompts", "detection_rate")}
COSTS = {"seconds": ("seconds", 1.0), "memory MB": ("peak_memory_bytes", 1e6), "result kB": ("result_bytes", 1e3)}  # column: key, unit
KINDS = {"name": str, "train": dict, "result": str, "step": int, "transfer": str, "model": str, "score": dict, "seeds": int,
         "x": int | float, "shown": bool, "only": list, "published": dict}  # of the entries of a row
OWN_SCORE = ("seed", "scale", "ddim_steps")  # flags that a row may have of its own: the pictures' texts are those of the table
HEAD = {"title": str, "section": str, "columns": list, "score": dict, "figure": dict, "remark": str, "rows": list}


@dataclass(frozen=True)
class TableRow:
    """A row: what a training makes, or the file `result`; with neither, the model as it is."""

    name: str
    train: Mapping[str, Any] | None = None  # flags of train.py; one without any is APL as the preset has it
    result: Path | None = None
    step: int | None = None      # of the training, where it is not the last
    transfer: str | None = None  # route by which the prefix goes to the second text encoder of `model`
    model: str | None = None     # preset that draws; None: the command's
    score: Mapping[str, Any] = field(default_factory=dict)  # flags of test_fid_clip_score.py, beside those of the table
    seeds: int | None = None     # at most so many trainings
    x: float | None = None       # place in a curve
    shown: bool = True           # in a figure of pictures
    published: Mapping[str, float] = field(default_factory=dict)  # the paper's values by column


@dataclass(frozen=True)
class Table:
    """The rows of one table or figure as they are on a preset.

    `figure` says how it is drawn, if it is: kind "curve" (x: label) or "pictures" (columns of each part).
    """

    name: str
    title: str
    section: str
    columns: Sequence[str]
    rows: Sequence[TableRow]
    score: Mapping[str, Any] = field(default_factory=dict)  # flags of test_fid_clip_score.py
    figure: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""


def read_table(path: Path, preset: str) -> Table:
    """The table of a YAML file, as it is on a preset; UserError if the file is no such table."""
    content = read_yaml(path)
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        raise UserError(f"{path} has no list 'rows'; give them as configs/paper/table2.yaml does")
    _check(f"{path}", content, HEAD)
    if not _is_figure(content.get("figure", {})):
        raise UserError(f"{path} has the figure {content['figure']}, which is not understood; give kind curve with x and y, or kind "
                        f"pictures with a number of columns for some of {', '.join(PARTS)}")
    rows = [_row(path, row, preset) for row in (_checked(path, row, preset) for row in content["rows"])
            if preset in row.get("only", [preset])]
    names = [row.name for row in rows]
    if not rows or len(set(names)) < len(names):
        twice = next((f"two rows '{name}'" for name in names if names.count(name) > 1), f"no row for the preset {preset}")
        raise UserError(f"{path} has {twice}; correct the rows")
    if content.get("figure", {}).get("kind") == "pictures" and not any(row.shown for row in rows):
        raise UserError(f"{path} has a figure of pictures and shows no row in it; take 'shown: false' away from one")
    head = {key: value for key, value in content.items() if key in ("section", "figure", "remark")}
    columns = content.get("columns") or [*COLUMNS]
    if unknown := [column for column in columns if column not in (*COLUMNS, *COSTS)]:
        raise UserError(f"{path} asks for the column '{unknown[0]}'; give some of {_quoted((*COLUMNS, *COSTS))}")
    return Table(**{"name": path.stem, "title": path.stem, "section": ""} | head | {"title": content.get("title", path.stem)},
                 columns=columns, rows=rows, score=of_preset(content.get("score", {}), preset))


def read_yaml(path: Path) -> Any:
    """What a YAML file says; UserError if it is none."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML ({first_line(error)}); correct it") from None


def of_preset(values: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """Values as they are on a preset: "mini.lr" is for the preset mini alone, where it goes before "lr"; null takes a value away."""
    own = {key.removeprefix(f"{preset}."): value for key, value in values.items() if str(key).startswith(f"{preset}.")}
    common = {key: value for key, value in values.items() if "." not in str(key)}
    return {key: value for key, value in (common | own).items() if value is not None}


def slug(name: str) -> str:
    """A name as file names have it."""
    return re.sub(r"\W+", "-", name.lower()).strip("-")


def _checked(path: Path, row: Any, preset: str) -> dict[str, Any]:
    """One entry of `rows` as it is on the preset, with values of the right kinds."""
    if not isinstance(row, dict) or not isinstance(row.get("name"), str) or not slug(row["name"]):
        raise UserError(f"{path} has the row {row!r}, which has no name; give it one")
    if "train" in row and row["train"] is None:  # of_preset would make it the model as it is
        raise UserError(f"{path}, row '{row['name']}': 'train' has no value; give {{}} for APL as the preset has it, or take it away")
    own = of_preset(row, preset)
    _check(f"{path}, row '{row['name']}'", own, KINDS)
    return own


def _row(path: Path, values: Mapping[str, Any], preset: str) -> TableRow:
    """One entry of `rows`, of the form that it should have."""
    place, row = f"{path}, row '{values['name']}'", dict(values)
    if "train" in row and "result" in row:
        raise UserError(f"{place}, has both 'train' and 'result'; take one of them away")
    if ("step" in row and "train" not in row) or ("transfer" in row and not {"train", "result"} & set(row)):
        raise UserError(f"{place}, has a 'step' or 'transfer' of nothing that is trained; give 'train' as well")
    if "step" in row and "transfer" in row:
        raise UserError(f"{place}, has a 'step' of what is transferred, which is the last; take the step away")
    if row.get("transfer", ROUTES[0]) not in ROUTES:
        raise UserError(f"{place}: the transfer '{row['transfer']}' is not there; give one of {', '.join(ROUTES)}")
    if small := [key for key in ("step", "seeds") if row.get(key, 1) < 1]:
        raise UserError(f"{place}: '{small[0]}: {row[small[0]]}' is too small; give at least 1")
    if other := [key for key in of_preset(row.get("score", {}), preset) if key not in OWN_SCORE]:
        raise UserError(f"{place}: 'score' may have {', '.join(OWN_SCORE)} alone, and has '{other[0]}'; give that to the whole table")
    published = row.get("published", {})
    if unknown := [key for key, value in published.items() if key not in COLUMNS or not _is_number(value)]:
        raise UserError(f"{place}: the published value '{unknown[0]}: {published[unknown[0]]}' has no place; give a number for one of "
                        f"{_quoted(COLUMNS)}")
    if "result" in row:
        row["result"] = found(row["result"])
        if not row["result"].is_file():
            raise UserError(f"{place}: the result {values['result']} is not there; correct the path, or give 'train' in its place")
    return TableRow(**{key: value for key, value in row.items() if key != "only"} | {
        key: of_preset(row[key], preset) for key in ("train", "score") if key in row})


def _quoted(columns: Iterable[str]) -> str:
    """Columns as YAML needs them, for some have a comma."""
    return ", ".join(f'"{column}"' for column in columns)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_figure(figure: Mapping[str, Any]) -> bool:
    """Whether this is a `Table.figure`."""
    if figure.get("kind") == "curve":
        drawn = [figure.get("y"), figure.get("beside", [])]
        return {"kind", "x", "y"} <= set(figure) <= {"kind", "x", "y", "beside"} and figure["y"] != [] and all(
            isinstance(columns, list) and all(column in (*COLUMNS, *COSTS) for column in columns) for columns in drawn)
    counts = {key: value for key, value in figure.items() if key != "kind"}
    of_parts = set(counts) <= set(PARTS) and all(isinstance(count, int) and count > 0 for count in counts.values())
    return figure == {} or (figure.get("kind") == "pictures" and counts != {} and of_parts)


def _check(place: str, values: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    wrong = [key for key, value in values.items() if key not in kinds or not isinstance(value, kinds[key])]
    if wrong:
        raise UserError(f"{place}: '{wrong[0]}: {values[wrong[0]]}' is not understood; give {', '.join(kinds)}, as in "
                        "configs/paper/table2.yaml")
