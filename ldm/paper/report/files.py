"""Input of the report: the finished tables and figures in --out_dir, and the checked claims."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from ldm.paper.results.cells import Cell, read_cells
from ldm.util import UserError

NAMES = ("figure1", "table1", "figure3", "table2", "figure4", "figure5", "table3", "table4", "figure6", "figure7", "figure8")  # by section
OF_ABOUT = ("title", "remark", "preset", "columns", "kind", "seeds", "settings", "versions", "spent")  # fields taken from about.json


@dataclass(frozen=True)
class Finished:
    """A finished table or figure."""

    name: str
    source: str         # its name, or the YAML file of a table that is not the paper's
    kind: str | None    # of its figure, as in the YAML file
    title: str
    section: str        # in full, "section 4.2"; empty if there is none
    remark: str
    preset: str
    columns: Sequence[str]
    rows: Sequence[Mapping[str, Any]]       # name, training commands and their seconds
    cells: Mapping[tuple[str, str], Cell]   # by row and column
    images: Sequence[Path]
    seeds: int
    devices: str
    settings: Mapping[str, object]
    versions: Mapping[str, str]
    spent: Mapping[str, float]  # seconds per piece of work; tables can share pieces
    day: date

    @property
    def label(self) -> str:
        """The paper's name, "Table 2"; its own name for another table."""
        return f"{self.name[:-1].capitalize()} {self.name[-1]}" if self.name in NAMES else self.name

    def cell(self, row: str, column: str) -> Cell | None:
        """The measured or published value of a row, None if there is neither."""
        found = self.cells.get((row, column))
        return None if found is None or found.mean is found.published is None else found


def read_finished(out_dir: Path) -> dict[str, Finished]:
    """All finished tables and figures by name, in the order of NAMES, then others; UserError if a file is damaged."""
    finished = {}
    others = sorted({path.parent.name for path in out_dir.glob("*/about.json")} - {*NAMES})
    for name in (*NAMES, *others):
        about = out_dir / name / "about.json"
        if about.exists() and about.with_name(f"{name}.json").exists():
            try:
                finished[name] = _finished(out_dir, name, json.loads(about.read_text(encoding="utf-8")))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{about.parent} holds no finished {name} ({type(error).__name__}: {error}); delete {about} and make it "
                                f"again with python -m ldm.paper {name}") from None
    return finished


def read_claims(out_dir: Path) -> list[Mapping[str, Any]]:
    """The claims with their verdicts, none if they have not been checked; UserError if the file is damaged."""
    path = out_dir / "claims.json"
    if not path.exists():
        return []
    try:
        return [{key: claim[key] for key in ("number", "claim", "verdict", "why", "figures")} | {"section": _place(claim["section"])}
                for claim in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no list of claims ({type(error).__name__}: {error}); delete it and run python -m ldm.paper report "
                        "again") from None


def _finished(out_dir: Path, name: str, about: Mapping[str, Any]) -> Finished:
    folder = out_dir / name
    rows = [{key: row[key] for key in ("name", "commands", "seconds")} for row in about["rows"]]
    source = next((word for word in about["arguments"]["what"] if Path(word).stem == name), name)
    return Finished(
        name=name, source=source, section=_place(about["section"]), rows=rows, devices=about["arguments"]["devices"],
        cells={(row, column): cell for (_, row, column), cell in read_cells(out_dir, [name]).items()},
        images=sorted(folder.glob(f"{name}*.png"), key=lambda path: path.stem),
        day=date.fromtimestamp((folder / "about.json").stat().st_mtime), **{key: about[key] for key in OF_ABOUT})


def _place(section: object) -> str:
    """Text for a section number or name."""
    return f"section {section}" if str(section)[:1].isdigit() else str(section)
