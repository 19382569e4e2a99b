"""The table of attacks on a prefix: rates of success by attack, with random tokens, and on the base model.

    <out_dir>/<name>/<name>.png, <name>-pictures.png    rates as bars, or a grid of prefixes by attacks; images of the people
    <out_dir>/<name>/prompts.csv, embeddings/           prompts and embeddings that the attacks have found
    <out_dir>/<name>/<name>-people.csv                  one row per attack, label, arm and person

and the files of every table, see ldm/paper/results/tables.py.
"""

import csv
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from args.paper_args import CONFIGS
from ldm.evaluation.recognition import rates
from ldm.evaluation.tables import Row
from ldm.experiments.adversary import ATTACK, CEILING, RANDOM
from ldm.images import sheet_of_files
from ldm.paper.config import Table, TableRow, slug
from ldm.paper.results.bootstrap import interval
from ldm.paper.results.cells import Cell, cell_of
from ldm.paper.results.figures import plot_bars, plot_grid
from ldm.paper.results.tables import write_table
from ldm.paper.runner.adversary import GRID, PersonAttack, WithoutAttack, adversary
from ldm.run_folder import safe_name
from ldm.text_files import write_csv
from ldm.util import write_atomically

ARM_TITLES = {ATTACK: "", RANDOM: ", random", CEILING: ", ceiling"}
OF_BASE = "ID-ACC of base"  # as a share
RATES = {"rank-1": "rank1", "at FAR": "accepted"}  # column: key of `rates`
COLUMNS = [*(f"{rate}{arm}" for rate in RATES for arm in ARM_TITLES.values()), "with a face", "cosine", OF_BASE, "1000 calls"]
NONE = "no attack"
BASE = "base"  # row of the base model's cosine, in the files of cells only
PEOPLE_SHOWN = 6


class Adversary:
    """Attacks of a YAML file on the people of a preset; `embedding` is the attacked prefix, None those of the file."""

    seeds = 1

    def __init__(self, path: Path, preset: str, out_dir: Path, embedding: Path | None) -> None:
        self.name, self.source, self.preset, self.out_dir, self.embedding = path.stem, path, preset, out_dir, embedding
        self.plan, self.attacks = adversary(path, preset, out_dir, embedding)

    def pieces(self, seed: int) -> list[PersonAttack]:
        """All attacks, prefix by prefix and person by person."""
        return [piece for attacks in self.attacks.values() for pieces in zip(*attacks, strict=True) for piece in pieces]

    @property
    def table(self) -> Table:
        """The table without its rows, which are known when the pieces are done."""
        return Table(self.name, self.plan.title, "", COLUMNS, [], figure={"kind": self.plan.figure}, remark=self.plan.remark)

    @cached_property
    def cells(self) -> dict[tuple[str, str], Cell]:
        """Cells by row and column, with intervals over people."""
        base = self._cosine(next(iter(self._rows.values()))[0], "", CEILING)
        found: dict[tuple[str, str], Cell] = {} if base is None else {(BASE, "cosine"): base}
        for row, (pieces, label) in self._rows.items():
            by_arm = {arm: measured for arm in ARM_TITLES if (measured := self._rates(pieces, label, arm))}
            for arm, measured in by_arm.items():
                found |= {(row, f"{column}{ARM_TITLES[arm]}"): _cell(measured, key) for column, key in RATES.items()}
            found[row, "with a face"] = _cell(by_arm[ATTACK], "faces")
            if cosine := self._cosine(pieces, label, ATTACK):
                found[row, "cosine"] = cosine
                if base is not None:
                    found[row, OF_BASE] = _ratio(cosine, base)
            spent = [(piece.found["forward"] + piece.found["backward"]) / 1000 for piece in pieces]
            found[row, "1000 calls"] = Cell(sum(spent) / len(spent), values=(sum(spent) / len(spent),))
        return {place: cell for place, cell in found.items() if cell.mean is not None}

    def write(self, arguments: Mapping[str, object]) -> str:
        """Write all files of the table; returns it for the console. `arguments` are the command's."""
        folder = self.out_dir / self.name
        people = [{"row": row, "arm": arm, **person} for row, (pieces, label) in self._rows.items() for arm in ARM_TITLES
                  for piece in pieces for person in self._person(piece, label, arm)]
        write_csv(people, folder / f"{self.name}-people.csv")
        write_csv([*self._prompts(folder)], folder / "prompts.csv")
        self._write_figure(folder / f"{self.name}.png")
        write_atomically(folder / f"{self.name}-pictures.png", self.sheet().save)
        table = replace(self.table, rows=[TableRow(name) for name in self._rows])
        return write_table(folder, table, self.cells, self.about() | {"arguments": arguments})

    def _write_figure(self, path: Path) -> None:
        """Bars of all rows, or a grid of prefixes by attacks without labels."""
        if self.plan.figure == GRID:
            attacks = list(dict.fromkeys(pieces[0].attack.name for attacks in self.attacks.values() for pieces in attacks))
            columns = [NONE, *(name for name in attacks if self._row_of(next(iter(self.attacks)), name) in self._rows)]
            plot_grid([*self.attacks], columns, [[self.cells.get((self._row_of(prefix, name), OF_BASE)) for name in columns]
                                                 for prefix in self.attacks], OF_BASE, path)
            return
        bars = {title or ATTACK: [self.cells.get((row, f"at FAR{title}")) for row in self._rows] for title in ARM_TITLES.values()}
        plot_bars([*self._rows], {key.removeprefix(", "): cells for key, cells in bars.items()}, "share of images recognized at FAR", path)

    def about(self) -> dict[str, Any]:
        """Content of about.json, see ldm/paper/results/tables.py."""
        given = {"preset": self.preset, "out_dir": self.out_dir} | ({"embedding": self.embedding} if self.embedding else {})
        what = self.name if self.source.parent == CONFIGS else str(self.source)
        command = shlex.join(["python", "-m", "ldm.paper", what, *(word for flag, value in given.items()
                                                                       for word in (f"--{flag}", str(value)))])
        pieces: list[PersonAttack | WithoutAttack] = [*self._without, *self.pieces(0)]
        settings = {key: getattr(self.plan, key) for key in ("n_people", "n_samples", "far", "photos")}
        return {"seeds": 1, "preset": self.preset, "settings": settings | {"threshold": pieces[0].found["threshold"]},
                "rows": [{"name": row, "commands": [command], "seconds": sum(piece.found["seconds"] for piece in pieces)}
                         for row, (pieces, _) in self._rows.items()],
                "spent": {str(piece.folder): piece.found["seconds"] for piece in pieces}}

    def sheet(self) -> Image.Image:
        """Image grid with one column per person: the base model's image, then the first image of each row without a label."""
        shown = [piece.without for piece in next(iter(self.attacks.values()))[0][:PEOPLE_SHOWN]]
        rows: dict[str, list[Path | None]] = {"base model": [one.folder / CEILING / "0.png" for one in shown]}
        for row, (pieces, label) in self._rows.items():
            if not label:
                rows[row] = [piece.folder / ATTACK / "0.png" for piece in pieces[:PEOPLE_SHOWN]]
        return sheet_of_files(rows, [one.person.name for one in shown])

    @property
    def _without(self) -> list[WithoutAttack]:
        """Those of all prefixes."""
        return [piece.without for attacks in self.attacks.values() for piece in attacks[0]]

    @cached_property
    def _rows(self) -> dict[str, tuple[Sequence[PersonAttack | WithoutAttack], str]]:
        """Name of each row -> its pieces and label."""
        rows: dict[str, tuple[Sequence[PersonAttack | WithoutAttack], str]] = {}
        for prefix, attacks in self.attacks.items():
            rows[self._row_of(prefix, NONE)] = ([piece.without for piece in attacks[0]], "")
            for pieces in attacks:
                for label in dict.fromkeys(row["label"] for row in pieces[0].found["faces"] if row["arm"] == ATTACK):
                    name = self._row_of(prefix, pieces[0].attack.name)
                    rows[f"{name}: {label}" if label else name] = (pieces, label)
        return rows

    def _row_of(self, prefix: str, attack: str) -> str:
        """Name of the row of an attack, with the prefix if there are several."""
        return f"{prefix}: {attack}" if len(self.attacks) > 1 else attack

    def _faces(self, piece: PersonAttack | WithoutAttack, label: str, arm: str) -> list[Row]:
        return [row for row in piece.found["faces"] if row["arm"] == arm and row["label"] == label]

    def _rates(self, pieces: Sequence[PersonAttack | WithoutAttack], label: str, arm: str) -> Row | None:
        scores = [row for piece in pieces for row in self._faces(piece, label, arm)]
        return rates(scores, pieces[0].found["threshold"]) if scores else None

    def _cosine(self, pieces: Sequence[PersonAttack | WithoutAttack], label: str, arm: str) -> Cell | None:
        """Mean over people of the cosine of images with a face; None without a face."""
        cosines = [[face["cosine"] for face in self._faces(piece, label, arm) if face["cosine"] is not None] for piece in pieces]
        means = np.array([[np.mean(own) if own else np.nan for own in cosines]])  # (1, people)
        return None if np.isnan(means).all() else cell_of([float(np.nanmean(means))], means, "cosine")

    def _person(self, piece: PersonAttack | WithoutAttack, label: str, arm: str) -> list[Row]:
        scores = self._faces(piece, label, arm)
        measured = rates(scores, piece.found["threshold"]) if scores else {}
        return [{"name": scores[0]["name"], **{key: measured[key] for key in ("rank1", "accepted", "faces", "cosine")}}] if scores else []

    def _prompts(self, folder: Path) -> Iterator[Row]:
        """Rows of all prompts.csv, with embeddings copied into `folder`/embeddings."""
        for prefix, piece in ((prefix, piece) for prefix, attacks in self.attacks.items() for pieces in attacks for piece in pieces):
            with (piece.folder / "prompts.csv").open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    if row["embedding"]:
                        source = piece.folder / row["embedding"]
                        row["embedding"] = f"embeddings/{slug(self._row_of(prefix, piece.attack.name))}/{safe_name(row['person'])}.pt"
                        write_atomically(folder / row["embedding"], partial(shutil.copyfile, source))
                    yield {"prefix": prefix, **row}


def _ratio(cell: Cell, base: Cell) -> Cell:
    """cell / base, both "cosine" of the same people."""
    ratios = cell.resampled("cosine") / base.resampled("cosine")
    low, high = (None, None) if cell.low is None or base.low is None else interval(ratios)
    return Cell(float(ratios[0]), low=low, high=high, values=(float(ratios[0]),))


def _cell(measured: Row, key: str) -> Cell:
    mean = measured[key]
    return Cell(mean, low=measured[f"{key}_low"], high=measured[f"{key}_high"], values=() if mean is None else (mean,))
