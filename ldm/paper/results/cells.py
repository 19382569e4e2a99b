"""Cells of a table: mean, standard deviation and 95 % interval of a metric over trainings, with the published value."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ldm.evaluation.tables import Row
from ldm.paper.results.bootstrap import bootstrap, interval
from ldm.run_folder import read_json
from ldm.util import UserError

LISTS = ("values", "units")  # fields of a cell that are several columns of its row, or text


@dataclass(frozen=True)
class Cell:
    """One column of one row."""

    mean: float | None                # None if only `published` is known
    sd: float | None = None           # standard deviation (n - 1) of `values`; None for a single one
    low: float | None = None          # ends of the 95 % interval of `mean`; None if it cannot be estimated
    high: float | None = None
    n_seeds: int = 1
    published: float | None = None
    values: tuple[float, ...] = ()    # by seed; empty if one has no value
    units: np.ndarray | None = field(default=None, compare=False, repr=False)  # (trainings, people or prompts), see `bootstrap`

    @property
    def interval(self) -> str:
        """" [0.201, 0.225]"; empty without an interval."""
        return "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"

    def resampled(self, people: str) -> np.ndarray:
        """The mean and its resampled values, see `bootstrap`; `people` are those of `units`."""
        assert self.mean is not None
        means = bootstrap(np.array([[self.mean]]) if self.units is None else self.units, people)
        return means - means[0] + self.mean  # some metrics are no plain means over people


def cell_of(values: Sequence[float | None], units: np.ndarray | None = None, people: str = "", published: float | None = None) -> Cell:
    """The cell of one value per training, None where nothing could be measured; at least one is known.

    `units` (trainings, people or prompts) are the metric of each person, and `people` is their name, see `bootstrap`; None for a metric
    of a whole set. A single value without them has no interval.
    """
    known = [value for value in values if value is not None]
    units = np.array(values, float)[:, None] if units is None else units
    sd = float(np.std(known, ddof=1)) if len(known) > 1 else None
    cell = Cell(sum(known) / len(known), sd, None, None, len(known), published, tuple(known) if len(known) == len(values) else (), units)
    if len(known) == 1 and (~np.isnan(units)).any(axis=0).sum() < 2:
        return cell
    low, high = interval(cell.resampled(people))
    return replace(cell, low=low, high=high)


def published_in_words(value: float, decimals: int) -> str:
    """A published value with all its decimals, at least `decimals`."""
    return max(f"{value:.{decimals}f}", f"{value:g}", key=len)


def as_rows(table: str, cells: Mapping[tuple[str, str], Cell]) -> list[Row]:
    """One flat row per cell, with seed_0, seed_1, ... for its values and `units` as text; `cells` by row and column."""
    return [{"table": table, "row": row, "column": column} | {key: value for key, value in vars(cell).items() if key not in LISTS}
            | {f"seed_{seed}": value for seed, value in enumerate(cell.values)}
            | {"units": "; ".join(" ".join(f"{value:.6g}" for value in values) for values in ([] if cell.units is None else cell.units))}
            for (row, column), cell in cells.items()]


def read_cells(out_dir: Path, tables: Iterable[str]) -> dict[tuple[str, str, str], Cell]:
    """The cells of all finished tables, by table, row and column; UserError if a file is damaged."""
    found = {}
    for table in tables:
        path = out_dir / table / f"{table}.json"
        if path.exists():
            try:
                for row in read_json(path):
                    values = tuple(row[f"seed_{seed}"] for seed in range(row["n_seeds"]) if f"seed_{seed}" in row)
                    numbers = {key: row[key] for key in Cell.__dataclass_fields__ if key not in LISTS}
                    if any(not isinstance(value, int | float | None) for value in (*values, *numbers.values())):
                        raise TypeError(f"the row {row}")
                    units = np.array([[float(value) for value in values.split()] for values in row["units"].split(";")])
                    found[row["table"], row["row"], row["column"]] = Cell(**numbers, values=values, units=units if units.size else None)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UserError(f"{path} holds no cells ({error}); delete {path.parent} and make it again with python -m ldm.paper "
                                f"{table}") from None
    return found
