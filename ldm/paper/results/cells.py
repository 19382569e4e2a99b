"""What a row of a table has measured, over seeds: mean, standard deviation and interval, beside the published value."""

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
    """One column of one row.

    `values` are those of the seeds; `sd` is their standard deviation (n - 1), None for a single one. `low` and `high` are the ends of the
    95 % interval of `mean`, None where there is nothing to tell it from. `mean` is None where only `published` is known.
    """

    mean: float | None
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    n_seeds: int = 1
    published: float | None = None
    values: tuple[float, ...] = ()

    @property
    def has_noise(self) -> bool:
        """Whether anything tells how far the mean may be off."""
        return self.low is not None

    @property
    def interval(self) -> str:
        """" [0.201, 0.225]", nothing where there is none."""
        return f" [{self.low:.3f}, {self.high:.3f}]" if self.has_noise else ""

    @property
    def noise(self) -> float:
        """Half the width of the interval; 0 where there is none."""
        return 0.0 if self.low is None or self.high is None else (self.high - self.low) / 2


def cell_of(values: Sequence[float], halves: Sequence[float | None], published: float | None = None) -> Cell:
    """The cell of one value a training.

    Args:
        values: a value for each seed; at least one.
        halves: half the width of each value's own 95 % interval, over the people or prompts that it is a mean of; None without one.

    Returns:
        The interval adds, in squares, Student's t of the trainings and the mean of `halves`: all trainings are measured on the same
        people, whose choice more trainings do not average out.
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
    """A published value with all its decimals, and at least `decimals` of them."""
    return max(f"{value:.{decimals}f}", f"{value:g}", key=len)


def difference(left: Cell, right: Cell, times: float = 1.0, *, alike: bool = True) -> tuple[float, float]:
    """left - times * right, and half of its 95 % interval.

    Where both have the same seeds and are `alike`, of the same people or prompts, the seeds are compared in pairs, so that what all rows
    have in common is no noise; elsewhere the noise of both is added in squares.
    """
    assert left.mean is not None and right.mean is not None
    count = len(left.values)
    if alike and count > 1 and count == len(right.values):
        pairs = cell_of([one - times * other for one, other in zip(left.values, right.values, strict=True)], [])
        return sum(pairs.values) / count, pairs.noise
    return left.mean - times * right.mean, math.hypot(left.noise, times * right.noise)


def as_rows(table: str, cells: Mapping[tuple[str, str], Cell]) -> list[Row]:
    """Flat rows, one a cell, with seed_0, seed_1, ... for its values; `cells` by row and column."""
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
