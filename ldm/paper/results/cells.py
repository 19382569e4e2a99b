"""Cells of a table: mean, standard deviation and 95 % interval of a metric over trainings, with the published value."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.special import stdtrit

from ldm.evaluation.tables import Row
from ldm.run_folder import read_json
from ldm.util import UserError


@dataclass(frozen=True)
class Cell:
    """One column of one row."""

    mean: float | None                # None if only `published` is known
    sd: float | None = None           # standard deviation (n - 1) of `values`; None for a single one
    low: float | None = None          # ends of the 95 % interval of `mean`; None if it cannot be estimated
    high: float | None = None
    n_seeds: int = 1
    published: float | None = None
    values: tuple[float, ...] = ()    # by seed

    @property
    def interval(self) -> str:
        """" [0.201, 0.225]"; empty without an interval."""
        return "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"

    @property
    def half_width(self) -> float:
        """Half the width of the interval; 0 without an interval."""
        return 0.0 if self.low is None or self.high is None else (self.high - self.low) / 2


def cell_of(values: Sequence[float], halves: Sequence[float | None], published: float | None = None) -> Cell:
    """The cell of one value per training.

    The half-width is the root sum of squares of Student's interval over trainings and the mean of `halves`: all trainings are measured on
    the same people, whose choice more trainings do not average out.

    Args:
        values: one value per seed; at least one.
        halves: half-width of each value's own 95 % interval, over people or prompts; None without one.
        published: the paper's value.
    """
    count, mean = len(values), sum(values) / len(values)
    own = [half for half in halves if half is not None]
    parts = [sum(own) / len(own)] if own else []
    sd = None
    if count > 1:
        sd = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
        parts.append(float(stdtrit(count - 1, 0.975)) * sd / math.sqrt(count))
    half = math.hypot(*parts) if parts else None
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return Cell(mean, sd, low, high, count, published, tuple(values))


def published_in_words(value: float, decimals: int) -> str:
    """A published value with all its decimals, at least `decimals`."""
    return max(f"{value:.{decimals}f}", f"{value:g}", key=len)


def difference(left: Cell, right: Cell, times: float = 1.0, *, alike: bool = True) -> tuple[float, float]:
    """left - times * right, and the half-width of its 95 % interval.

    If both have the same seeds and are `alike`, of the same people or prompts, the seeds are compared in pairs, so that a common deviation
    cancels; otherwise the result is the root sum of squares of both half-widths.
    """
    assert left.mean is not None and right.mean is not None
    count = len(left.values)
    if alike and count > 1 and count == len(right.values):
        pairs = cell_of([one - times * other for one, other in zip(left.values, right.values, strict=True)], [])
        return sum(pairs.values) / count, pairs.half_width
    return left.mean - times * right.mean, math.hypot(left.half_width, times * right.half_width)


def as_rows(table: str, cells: Mapping[tuple[str, str], Cell]) -> list[Row]:
    """One flat row per cell, with seed_0, seed_1, ... for its values; `cells` by row and column."""
    return [{"table": table, "row": row, "column": column} | {key: value for key, value in vars(cell).items() if key != "values"}
            | {f"seed_{seed}": value for seed, value in enumerate(cell.values)} for (row, column), cell in cells.items()]


def read_cells(out_dir: Path, tables: Iterable[str]) -> dict[tuple[str, str, str], Cell]:
    """The cells of all finished tables, by table, row and column; UserError if a file is damaged."""
    found = {}
    for table in tables:
        path = out_dir / table / f"{table}.json"
        if path.exists():
            try:
                for row in read_json(path):
                    values = tuple(row[f"seed_{seed}"] for seed in range(row["n_seeds"]) if f"seed_{seed}" in row)
                    numbers = {key: row[key] for key in Cell.__dataclass_fields__ if key != "values"}
                    if any(not isinstance(value, int | float | None) for value in (*values, *numbers.values())):
                        raise TypeError(f"the row {row}")
                    found[row["table"], row["row"], row["column"]] = Cell(**numbers, values=values)
            except (KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{path} holds no cells ({error}); delete {path.parent} and make it again with python -m ldm.paper "
                                f"{table}") from None
    return found
