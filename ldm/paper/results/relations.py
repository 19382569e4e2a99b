"""Relations between measured cells that a claim can check: below, above, about, falls, balances.

`ldm.paper.results.cells.difference` computes differences and their half-widths.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from scipy.stats import spearmanr

from ldm.paper.results.cells import Cell, cell_of, difference

HOLDS, INCONCLUSIVE, NOT_MEASURED, DOES_NOT_HOLD = VERDICTS = ("holds", "inconclusive", "not measured", "does not hold")  # the worst last
STEADY = -0.8  # rank correlation of place and value up to which a curve falls steadily

CellKey = tuple[str, str, str]  # table, row, column
Cells = Mapping[CellKey, Cell]


class Finding(NamedTuple):
    """A verdict, and a line with the compared values."""

    verdict: str
    line: str


def below(cells: Cells, place: CellKey, other: CellKey | float, *, times: float = 1) -> Finding:
    """The cell is below `times` the other cell or number."""
    return _compared(cells, place, other, "below", lambda found: found, times)


def above(cells: Cells, place: CellKey, other: CellKey | float, *, times: float = 1) -> Finding:
    """The cell is above `times` the other cell or number."""
    return _compared(cells, place, other, "above", lambda found: -found, times)


def about(cells: Cells, place: CellKey, other: CellKey | float, *, within: float) -> Finding:
    """The cell differs from the other cell or number by less than `within`."""
    return _compared(cells, place, other, f"within {within:g} of", lambda found: abs(found) - within)


def falls(cells: Cells, table: str, rows: Sequence[str], column: str) -> Finding:
    """The values fall steadily along the rows: none is above the previous one, and the last is below the first."""
    values = {row: _value(cells, (table, row, column)) for row in rows}
    line = (f"{table}, {column}: {', '.join(_named(row, value) for row, value in values.items())} "
            "falling, none above the one before it, the last below the first")
    curve = [value for value in values.values() if value is not None]
    if len(curve) < len(values):
        return Finding(NOT_MEASURED, f"{line}: {NOT_MEASURED}")
    correlation = round(spearmanr(range(len(curve)), [value.mean for value in curve]).statistic, 6)
    pairs = [(curve[-1], curve[0]), *((later, earlier) for earlier, later in pairwise(curve))]
    verdict, *steps = (_verdict(*pair, *difference(*pair)) for pair in pairs)
    if DOES_NOT_HOLD in steps:
        verdict = DOES_NOT_HOLD
    elif verdict == HOLDS and correlation > STEADY:
        verdict = INCONCLUSIVE
    return Finding(verdict, f"{line}, rank correlation {correlation:.2f} at most {STEADY:g}: {verdict}")


def balances(cells: Cells, table: str, row: str, other: str, *, base: str, less: str, more: str) -> Finding:
    """The share of `less` that is left minus the share of `more` that is kept, relative to the row `base`, is below that of `other`."""
    mine, its = (_balance(*(_value(cells, (table, name, column)) for name in (each, base) for column in (less, more)))
                 for each in (row, other))
    line = f"{table}, {less} left less {more} kept, as shares of '{base}': {_named(row, mine)} below {_named(other, its)}"
    return _judged(line, mine, its)


def _compared(cells: Cells, place: CellKey, other: CellKey | float, words: str, excess: Callable[[float], float],
              times: float = 1) -> Finding:
    """`excess` of left - times * right is below zero."""
    left = _value(cells, place)
    if isinstance(other, tuple):
        right, alike = _value(cells, other), place[2] == other[2]
        bound = _named(" ".join(part for part, same in zip(other, place, strict=True) if part != same), right)
    else:
        right, alike, bound = Cell(other), True, f"{other:g}"
    line = f"{place[0]}, {place[2]}: {_named(place[1], left)} {words} {f'{times:g} of ' if times != 1 else ''}{bound}"
    return _judged(line, left, right, excess, times, alike=alike)


def _judged(line: str, left: Cell | None, right: Cell | None, excess: Callable[[float], float] = float, times: float = 1, *,
            alike: bool = True) -> Finding:
    """Whether `excess` of left - times * right is below zero; the finding's line is `line` with the difference and the verdict."""
    if left is None or right is None:
        return Finding(NOT_MEASURED, f"{line}: {NOT_MEASURED}")
    found, half = difference(left, right, times, alike=alike)
    by = Cell(found, low=found - half, high=found + half) if half else Cell(found)
    verdict = _verdict(left, right, excess(found), half)
    return Finding(verdict, f"{line}, difference {_said(by)}: {verdict}")


def _balance(less: Cell | None, more: Cell | None, less_base: Cell | None, more_base: Cell | None) -> Cell | None:
    """None if a value is not measured, or the columns have different numbers of trainings."""
    if less is None or more is None or less_base is None or more_base is None or 0 in (less_base.mean, more_base.mean):
        return None
    if not less.values or len(less.values) != len(more.values):
        return None
    shares = [left / less_base.mean - kept / more_base.mean for left, kept in zip(less.values, more.values, strict=True)]
    half = math.hypot(less.half_width / less_base.mean, more.half_width / more_base.mean)
    return cell_of(shares, [half] if len(shares) == 1 and (less.low, more.low) != (None, None) else [])


def _verdict(left: Cell, right: Cell, excess: float, half: float) -> str:
    """Verdict on `excess` < 0, which has this half-width; single values without an interval decide nothing."""
    if (left.low, right.low) == (None, None):
        return INCONCLUSIVE
    return HOLDS if excess < -half else DOES_NOT_HOLD if excess > half else INCONCLUSIVE


def _value(cells: Cells, place: CellKey) -> Cell | None:
    """None if nothing was measured."""
    cell = cells.get(place)
    return None if cell is None or cell.mean is None else cell


def _said(cell: Cell | None) -> str:
    """The mean, and its 95 % interval if there is one."""
    return NOT_MEASURED if cell is None else f"{cell.mean:.3f}{cell.interval}"


def _named(name: str, cell: Cell | None) -> str:
    return f"'{name}' {_said(cell)}"
