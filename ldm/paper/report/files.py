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
CLAIM_KEYS = ("number", "claim", "verdict", "why")


@dataclass(frozen=True)
class Finished:
    """A finished table or figure.

    Args:
        section: in full, "section 4.2"; empty if there is none.
        source: its name, or the YAML file of a table that is not the paper's.
        kind: of its figure, as in the YAML file; None if there is no figure.
        rows: name, training commands and their seconds per row.
        cells: by row and column.
        images: files of the figure.
        spent: seconds per piece of work; tables can share pieces.
    """

    name: str
    source: str
    kind: str | None
    title: str
    section: str
    remark: str
    preset: str
    columns: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    cells: Mapping[tuple[str, str], Cell]
    images: Sequence[Path]
    seeds: int
    devices: str
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    spent: Mapping[str, float]
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
        claims = json.loads(path.read_text(encoding="utf-8"))
        return [{key: str(claim[key]) for key in CLAIM_KEYS} | {"section": _place(claim["section"]),
                                                                "figures": [*map(str, claim["figures"])]} for claim in claims]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no list of claims ({type(error).__name__}: {error}); delete it and run python -m ldm.paper report "
                        "again") from None


def _finished(out_dir: Path, name: str, about: Mapping[str, Any]) -> Finished:
    folder = out_dir / name
    cells = {(row, column): cell for (_, row, column), cell in read_cells(out_dir, [name]).items()}
    rows = [{"name": str(row["name"]), "commands": [str(line) for line in row["commands"]], "seconds": row["seconds"]}
            for row in about["rows"]]
    source = next((str(word) for word in about["arguments"]["what"] if Path(str(word)).stem == name), name)
    return Finished(
        name=name, source=source, kind=about["kind"],
        title=str(about["title"]), section=_place(about["section"]), remark=str(about["remark"]), preset=str(about["preset"]),
        columns=list(about["columns"]), rows=rows, cells=cells, seeds=int(about["seeds"]),
        images=sorted(folder.glob(f"{name}*.png"), key=lambda path: path.stem),
        devices=str(about["arguments"]["devices"]), settings=dict(about["settings"]), versions=dict(about["versions"]),
        spent={piece: float(seconds) for piece, seconds in about["spent"].items()},
        day=date.fromtimestamp((folder / "about.json").stat().st_mtime))


def _place(section: Any) -> str:
    """Text for a section number or name."""
    return f"section {section}" if str(section)[:1].isdigit() else str(section)
