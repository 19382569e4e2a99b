"""A table or figure: the trainings and images that it needs, its cells, and its files.

    <out_dir>/<name>/<name>.json, .csv    one row per cell: published, mean, standard deviation and interval over trainings
    <out_dir>/<name>/<name>.md            the table, published | measured
    <out_dir>/<name>/<name>.png           the figure, if it is one
    <out_dir>/<name>/about.json           settings, commands that make each row alone, costs, versions
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from ldm.evaluation.tables import console_table, markdown_table
from ldm.paper.config import COLUMNS, COSTS, PARTS, Table, TableRow
from ldm.paper.results.cells import Cell, as_rows, cell_of, published_in_words
from ldm.paper.results.figures import Panel, image_sheet, plot_panels
from ldm.paper.runner.evaluations import Part, PartFlags, part, part_flags
from ldm.paper.runner.queue import whole
from ldm.paper.runner.trainings import Source, Training, Transfer, training, transfer
from ldm.run_folder import versions, write_json
from ldm.text_files import write_csv
from ldm.util import write_atomically, write_text


class Measured(NamedTuple):
    """A row with one seed: its parts by name, and the training or file that they show; None: the base model."""

    parts: Mapping[str, Part]
    result: Source


class MeasuredTable:
    """Rows of a table on a preset (name or file), with at most `seeds` trainings per row.

    Raises:
        SystemExit: a row has an unknown flag, or a file does not exist.
    """

    def __init__(self, table: Table, preset: str, seeds: int, out_dir: Path) -> None:
        self.table, self.preset, self.out_dir = table, preset, out_dir
        self.name = table.name
        self._flags: dict[str, PartFlags] = {}
        shown = {*table.columns, *table.figure.get("y", ()), *table.figure.get("beside", ())}
        self.parts = [name for name in PARTS if name in table.figure or shown <= {*COSTS} or
                      any(COLUMNS[column][0] == name for column in shown - {*COSTS})]
        self.measured = {row.name: [self._measured(row, seed) for seed in range(1 if row.train is None else min(seeds, row.seeds or seeds))]
                         for row in table.rows}
        self.seeds = max(map(len, self.measured.values()))

    def pieces(self, seed: int) -> list[Part]:
        """All parts of the rows with a seed."""
        return [piece for row in self.measured.values() for one in row[seed:seed + 1] for piece in one.parts.values()]

    @cached_property
    def cells(self) -> dict[tuple[str, str], Cell]:
        """Measured cells, by row and column."""
        found: dict[tuple[str, str], Cell] = {}
        for row in self.table.rows:
            measured = self.measured[row.name]
            for column, (name, key) in COLUMNS.items():
                if name not in self.parts:
                    continue
                values = [one.parts[name].row[key] for one in measured]
                if any(value is not None for value in values):
                    units = [one.parts[name].units.get(key) for one in measured]
                    people = None if units[0] is None else np.array(units)  # (trainings, people)
                    found[row.name, column] = cell_of(values, people, name, row.published.get(column))
                elif column in row.published:
                    found[row.name, column] = Cell(None, published=row.published[column])
            for column, (key, unit) in COSTS.items():
                if costs := [one.result.cost[key] / unit for one in measured if isinstance(one.result, Training)]:
                    found[row.name, column] = cell_of(costs)
        return found

    def write(self, arguments: Mapping[str, object]) -> str:
        """Write all files of the table or figure; returns the table for the console. `arguments` are the command's."""
        folder = self.out_dir / self.name
        if self.table.figure:
            self._write_figure(folder / f"{self.name}.png")
        return write_table(folder, self.table, self.cells, self.about() | {"arguments": arguments})

    def about(self) -> dict[str, Any]:
        """Content of about.json: commands that make each row alone, costs, and settings of the scores."""
        pieces = whole([piece for seed in range(self.seeds) for piece in self.pieces(seed)])
        spent = {str(piece.folder): piece.cost["seconds"] if isinstance(piece, Training) else piece.row["seconds"]
                 for piece in pieces if isinstance(piece, Training | Part)}
        rows = []
        for row, measured in self.measured.items():
            made: list[Any] = whole([one.result for one in measured if isinstance(one.result, Training | Transfer)])
            rows.append({"name": row, "commands": [one.command() for one in made],
                         "seconds": sum(spent.get(str(one.folder), 0) for one in made) or None})
        return {"seeds": self.seeds, "preset": self.preset, "settings": self.table.score, "rows": rows, "spent": spent}

    def _measured(self, row: TableRow, seed: int) -> Measured:
        source = f"{self.name}.yaml, row '{row.name}',"
        model = row.model or self.preset
        result: Source = row.result
        if row.train is not None:
            result = training(self.out_dir, self.preset, row.train, seed, source, row.step)
        if row.transfer:
            result = transfer(self.out_dir, cast(Training | Path, result), model, row.transfer)
        plain, own_flags = self._part_flags(model, {}, source), self._part_flags(model, row.score, source)
        parts = {}
        for name in self.parts:
            base = part(self.out_dir, name, model, plain)
            target = None if name == "prompts" else row.target  # for prompts without a name c1 = c2, and Eq. 5 gives the base model's
            own = part(self.out_dir, name, model, own_flags, result, row.step, target, base)
            parts[name] = base if own.folder == base.folder else own
        return Measured(parts, result)

    def _part_flags(self, model: str, score: Mapping[str, object], source: str) -> PartFlags:
        key = repr((model, score))  # most rows share them, and parsing takes a tenth of a second
        if key not in self._flags:
            self._flags[key] = part_flags(model, {**self.table.score, **score}, source)
        return self._flags[key]

    def _write_figure(self, path: Path) -> None:
        figure = self.table.figure
        if figure["kind"] == "curve":
            panels = [list(figure["y"]), *([column] for column in figure.get("beside", ()))]
            plot_panels([Panel("", columns[0].split(",")[0], {column: self._curve(column) for column in columns}) for columns in panels],
                        figure["x"], path, is_log=figure.get("log", False))
        else:
            shown = {row.name: self.measured[row.name][0].parts for row in self.table.rows if row.shown}
            write_atomically(path, image_sheet(shown, figure).save)

    def _curve(self, column: str) -> list[tuple[float, Cell]]:
        points = [(row.x, self.cells.get((row.name, column))) for row in self.table.rows if row.x is not None]
        return [(x, cell) for x, cell in points if cell is not None and cell.mean is not None]


def write_table(folder: Path, table: Table, cells: Mapping[tuple[str, str], Cell], about: Mapping[str, Any], *,
                only: Callable[[TableRow], bool] = lambda row: True) -> str:
    """Write the files that every table and figure has; returns the rows selected by `only` for the console."""
    rows, shown = as_rows(table.name, cells), shown_table(table, cells)
    write_json(folder / f"{table.name}.json", rows)
    write_csv([{key: value for key, value in row.items() if key != "units"} for row in rows], folder / f"{table.name}.csv")
    write_text(folder / f"{table.name}.md", markdown_table(shown, numeric=list(shown[0])[1:]))
    head = {key: getattr(table, key) for key in ("name", "title", "section", "remark", "columns")}
    write_json(folder / "about.json", {**head, "kind": table.figure.get("kind"), **about, "seconds": sum(about["spent"].values()),
                                       "versions": versions()})
    return console_table([line for line, row in zip(shown, table.rows, strict=True) if only(row)])


def shown_table(table: Table, cells: Mapping[tuple[str, str], Cell]) -> list[dict[str, str | None]]:
    """One row per row of the table; each column shows the measured value, and the published value if the table has any."""
    published = [column for column in table.columns
                 if any((row.name, column) in cells and column in row.published for row in table.rows)]
    rows, several = [], any(row.model for row in table.rows)
    for row in table.rows:
        line: dict[str, str | None] = {"row": row.name} | ({"model": row.model} if several else {})
        for column in table.columns:
            if column in published:
                line[f"{column} (paper)"] = None if column not in row.published else published_in_words(row.published[column], 3)
            line[column] = in_words(cells.get((row.name, column)), column in COSTS)
        rows.append(line)
    return rows


def in_words(cell: Cell | None, whole: bool = False) -> str | None:
    """"0.213 ± 0.004 [0.201, 0.225]": mean, standard deviation over trainings, 95 % interval; with `whole` only the rounded mean."""
    if cell is None or cell.mean is None:
        return None
    if whole:
        return f"{cell.mean:.0f}"
    return f"{cell.mean:.3f}" + (f" ± {cell.sd:.3f}" if cell.sd is not None else "") + cell.interval
