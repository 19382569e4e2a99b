"""The table of the celebrity protocol: accuracies on names to erase, to keep and in no list, and their harmonic mean H_c.

    <out_dir>/<name>/<name>.png    the first names of each group, one row per row of the table

and the files of every table, see ldm/paper/results/tables.py. A row with the gate has no images of its own: each prompt shows the base
model's image if the gate of the kept names opens for it, otherwise that of the row's result.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ldm.apl.allow_list import AllowList
from ldm.evaluation.celebrity import ERASED, FAR, KEPT, OPEN, PAST_GATE, BaseCheck, metrics_of
from ldm.evaluation.recognition import threshold_at
from ldm.evaluation.tables import Row
from ldm.images import sheet_of_files
from ldm.paper.config import COSTS, Table, TableRow
from ldm.paper.results.cells import Cell, cell_of
from ldm.paper.results.tables import write_table
from ldm.paper.runner.celebrities import SHOWN, Celebrities, Probe, Protocol, ProtocolRow, Study, celebrities, refuse_weak_base
from ldm.paper.runner.queue import whole
from ldm.paper.runner.trainings import Training, training
from ldm.util import write_atomically

CELL = 160  # side of an image in the sheet, in pixels


class CelebrityTable:
    """Rows of a protocol on a preset (name or file), with at most `seeds` trainings per row."""

    def __init__(self, protocol: Protocol, preset: str, seeds: int, out_dir: Path) -> None:
        self.protocol, self.preset, self.out_dir, self.name = protocol, preset, out_dir, protocol.name
        self.study = Study.of(protocol, preset)
        self.base = celebrities(out_dir, preset, self.study)
        self.measured = {row.name: [self._piece(row, seed) for seed in range(1 if row.train is None else min(seeds, row.seeds or seeds))]
                         for row in protocol.rows}
        self.seeds = max(map(len, self.measured.values()))
        self.gate = AllowList(self.study.names(KEPT))
        self.is_open = [self.gate(probe.prompt) for probe in self.study.probes]
        self.table = Table(self.name, protocol.title, protocol.section, protocol.columns,
                           [TableRow(row.name, train=row.train, seeds=row.seeds) for row in protocol.rows], protocol.score,
                           {"kind": "pictures"}, protocol.remark)

    def pieces(self, seed: int) -> list[Celebrities]:
        """Pieces of the rows with a seed; only the base model's if it has failed the check."""
        if self.base.is_done() and self.check.has_failed:
            return [self.base]
        return [self.base, *(piece for row in self.measured.values() for piece in row[seed:seed + 1])]

    @cached_property
    def check(self) -> BaseCheck:
        """Whether the base model's people are recognized, and the names that all rows leave out."""
        return BaseCheck.of(self.base.faces)

    @cached_property
    def cells(self) -> dict[tuple[str, str], Cell]:
        """Measured cells, by row and column."""
        threshold, found = threshold_at(FAR, self.study.gallery), {}
        for row in self.protocol.rows:
            pieces = self.measured[row.name]
            seeds = [metrics_of([face for face in self._faces(row, piece) if face["name"] not in self.check.dropped], threshold)
                     for piece in pieces]
            for column in seeds[0]:
                known = [metric[column] for metric in seeds if metric[column].value is not None]
                if known:
                    cell = cell_of([metric[column].value for metric in seeds])
                    (_, low, high), *others = known
                    if others:  # the interval over trainings, and the mean one over names
                        half = math.hypot(cell.high - cell.mean, sum(one.high - one.low for one in known) / 2 / len(known))
                        low, high = max(cell.mean - half, 0.0), min(cell.mean + half, 1.0)  # all metrics are shares
                    found[row.name, column] = replace(cell, low=low, high=high)
            for column, (key, unit) in COSTS.items():
                if costs := [piece.result.cost[key] / unit for piece in pieces if isinstance(piece.result, Training)]:
                    found[row.name, column] = cell_of(costs)
        return found

    def write(self, arguments: Mapping[str, object]) -> str:
        """Write all files; returns the table for the console. UserError if the base model has failed the check."""
        refuse_weak_base(self.check)
        folder = self.out_dir / self.name
        write_atomically(folder / f"{self.name}.png", sheet_of_files(*self._sheet(), cell=CELL).save)
        opened = {group: [is_open for is_open, probe in zip(self.is_open, self.study.probes, strict=True) if probe.group == group]
                  for group in (ERASED, KEPT, OPEN, *PAST_GATE)}
        shares = ", ".join(f"{group} {sum(own) / len(own):.1%}" for group, own in opened.items() if own)
        remark = f"{self.protocol.remark} Check: {self.check}. The gate opens for the prompts of: {shares}."
        return write_table(folder, replace(self.table, remark=remark), self.cells, self.about() | {"arguments": arguments})

    def about(self) -> dict[str, Any]:
        """Content of about.json, see ldm/paper/results/tables.py."""
        pieces = whole([piece for seed in range(self.seeds) for piece in self.pieces(seed)])
        spent = {str(piece.folder): piece.cost["seconds"] if isinstance(piece, Training) else piece.found["seconds"]
                 for piece in pieces if isinstance(piece, Training | Celebrities)}
        rows = []
        for name, measured in self.measured.items():
            made = [piece.result for piece in measured if isinstance(piece.result, Training)]
            rows.append({"name": name, "commands": [one.command() for one in made],
                         "seconds": sum(spent[str(one.folder)] for one in made) or None})
        return {"seeds": self.seeds, "preset": self.preset, "settings": self.protocol.score, "rows": rows, "spent": spent}

    def _piece(self, row: ProtocolRow, seed: int) -> Celebrities:
        if row.train is None:
            return self.base
        result = training(self.out_dir, self.preset, row.train, seed, f"{self.name}.yaml, row '{row.name}',")
        return celebrities(self.out_dir, self.preset, self.study, result, self.base)

    def _faces(self, row: ProtocolRow, piece: Celebrities) -> list[Row]:
        if not row.gate:
            return piece.faces
        return [base if is_open else own for base, own, is_open in zip(self.base.faces, piece.faces, self.is_open, strict=True)]

    def _sheet(self) -> tuple[dict[str, list[Path]], list[str]]:
        """Image files by row, and the labels of their columns."""
        shown = self.study.probes[:SHOWN * len((ERASED, KEPT, OPEN))]

        def image(row: ProtocolRow, probe: Probe, is_open: bool) -> Path:
            return (self.base if row.gate and is_open else self.measured[row.name][0]).image(probe)

        files = {row.name: [image(row, probe, is_open) for probe, is_open in zip(shown, self.is_open, strict=False)]
                 for row in self.protocol.rows}
        return files, [f"{probe.name} ({probe.group})" for probe in shown]
