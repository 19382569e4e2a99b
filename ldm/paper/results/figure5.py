"""Figure 5: ID-ACC of people that an attack teaches the model, without and with the prefix, over its iterations (section 4.4).

    <out_dir>/figure5/figure5.png, figure5-pictures.png    curves; images of the people at the last iteration
    <out_dir>/figure5/figure5-people.csv                   one row per person, curve and iteration

and the files of every table, see ldm/paper/results/tables.py. Each further seed attacks the next people of the photos.
"""

import shlex
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldm.evaluation.id_acc import id_acc, identity_scores, units_of_people
from ldm.evaluation.tables import Row
from ldm.experiments.new_people import NewPerson
from ldm.images import image_grid, read_image
from ldm.paper.config import Table, TableRow
from ldm.paper.results.cells import Cell, cell_of
from ldm.paper.results.figures import Panel, plot_panels
from ldm.paper.results.tables import write_table
from ldm.paper.runner.attacks import WITH, WITHOUT, Attack, AttackOptions, AttackPlan, attacks
from ldm.paper.runner.trainings import Training
from ldm.text_files import write_csv
from ldm.util import UserError, write_atomically

COLUMNS = {"ID-ACC": "id_acc_mean", "max": "id_acc_max", "faces": "detection_rate"}
PEOPLE_SHOWN = 8


class Figure5:
    """Points of the curves over all seeds; `attacked` is the training of each seed's attacked prefix, or its file."""

    name = "figure5"

    def __init__(self, plan: AttackPlan, options: AttackOptions, attacked: Sequence[Training | Path]) -> None:
        self.plan, self.options, self.seeds = plan, options, len(attacked)
        self.attacks = [attacks(plan, options, source, seed) for seed, source in enumerate(attacked)]

    def pieces(self, seed: int) -> list[Attack]:
        """Attacks on all people of a seed."""
        return self.attacks[seed]

    @cached_property
    def table(self) -> Table:
        """One row per point, in the form of the other tables."""
        rows = []
        for curve, iteration, _ in self.attacks[0][0].images():
            published = self.plan.attacks[curve.partition(",")[0]].get("published", {}).get(curve.rpartition(" ")[2])
            rows.append(TableRow(f"{curve}, {iteration}", x=iteration,
                                 published={"ID-ACC": published} if published and iteration == self.plan.iterations else {}))
        return Table(self.name, self.plan.title, self.plan.section, list(COLUMNS), rows, remark=self.plan.remark)

    @cached_property
    def cells(self) -> dict[tuple[str, str], Cell]:
        """Cells by row and column. The interval is over seeds, which differ in prefix and people, or over the people of a single seed."""
        found = {}
        for row in self.table.rows:
            seeds = [self._faces(row.name, pieces) for pieces in self.attacks]
            for column, key in COLUMNS.items():
                values = [id_acc(faces, threshold=0.0)[key] for faces in seeds]
                people = np.array([units_of_people(identity_scores(faces))[key] for faces in seeds], float)
                if any(value is not None for value in values):
                    found[row.name, column] = cell_of(values, people if len(seeds) == 1 else None, self.name, row.published.get(column))
        return found

    def write(self, arguments: Mapping[str, object]) -> str:
        """Write all files of the figure; returns the ends of the curves for the console. `arguments` are the command's."""
        folder = self.options.out_dir / self.name
        people = [{"curve": row.name, "seed": seed, **person} for row in self.table.rows for seed, pieces in enumerate(self.attacks)
                  for person in identity_scores(self._faces(row.name, pieces))]
        write_csv(people, folder / "figure5-people.csv")
        plot_panels([self._panel(attack) for attack in self.plan.attacks], "iterations of the attack", folder / "figure5.png")
        write_atomically(folder / "figure5-pictures.png", self.grid().save)
        about = self.about() | {"arguments": arguments}
        return write_table(folder, self.table, self.cells, about, only=lambda row: row.x in (0, self.plan.iterations))

    def about(self) -> dict[str, Any]:
        """Content of about.json, see ldm/paper/results/tables.py."""
        settings = {key: getattr(self.plan, key) for key in ("n_people", "n_photos", "n_samples", "iterations", "every")}
        given = {"preset": self.options.preset, "out_dir": self.options.out_dir, "seeds": self.seeds, "photos": self.options.photos} | {
            key: value for key, value in settings.items() if key.startswith("n_")}
        words = [word for flag, value in given.items() for word in (f"--{flag}", str(value))]
        command = shlex.join(["python", "-m", "ldm.paper", "figure5", *words])
        return {"seeds": self.seeds, "preset": self.options.preset, "settings": settings,
                "rows": [{"name": row.name, "commands": [command], "seconds": None} for row in self.table.rows],
                "spent": {str(piece.folder): piece.found["seconds"] for pieces in self.attacks for piece in pieces}}

    def grid(self) -> Image.Image:
        """Image grid with one column per person: a held-out photo, then each curve's last iteration."""
        shown = [piece for pieces in self.attacks for piece in pieces][:PEOPLE_SHOWN]
        rows: dict[str, list] = {"photo": [_photo(piece.person) for piece in shown]}
        for piece in shown:
            for curve, iteration, paths in piece.images():
                if iteration == self.plan.iterations:
                    rows.setdefault(f"{curve.replace('_', ' ')} prefix", []).append(read_image(paths[0]))
        return image_grid(list(rows.values()), list(rows), [piece.name for piece in shown])

    def _faces(self, row: str, pieces: Sequence[Attack]) -> list[Row]:
        return [face for piece in pieces for face in piece.found["faces"] if f"{face['curve']}, {face['iteration']}" == row]

    def _panel(self, attack: str) -> Panel:
        lines = {f"{label} prefix": [(iteration, cell) for iteration in (0, *self.plan.checkpoints)
                                     if (cell := self.cells.get((f"{attack}, {label}, {iteration}", "ID-ACC")))]
                 for label in (WITHOUT, WITH)}
        strangers = self.cells.get((f"{attack}, {WITHOUT}, 0", "ID-ACC"))
        return Panel(attack.replace("_", " "), "ID-ACC", lines, level=("strangers", strangers.mean) if strangers else None)


def _photo(person: NewPerson) -> np.ndarray | None:
    """The first readable held-out photo; the reference face ignores unreadable ones too."""
    for path in person.held_out:
        try:
            return read_image(path)
        except UserError:
            continue
    return None
