"""Relations between measured cells that a claim can check: below, above, about, falls, balances, reaches.

One rule decides each of them. A relation is a range for a difference: it *holds* if the 95 % interval of the difference lies inside, *does
not hold* if it lies outside, and is *inconclusive* otherwise. Differences are paired, see `ldm.paper.results.bootstrap`.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr

from ldm.paper.config import COLUMNS
from ldm.paper.results.bootstrap import interval
from ldm.paper.results.cells import Cell

HOLDS, INCONCLUSIVE, NOT_MEASURED, DOES_NOT_HOLD = VERDICTS = ("holds", "inconclusive", "not measured", "does not hold")  # the worst last
STEADY = -0.8  # rank correlation of place and value up to which a curve falls steadily
NEGATIVE, POSITIVE = (-math.inf, 0.0), (0.0, math.inf)

CellKey = tuple[str, str, str]  # table, row, column
Cells = Mapping[CellKey, Cell]


class Finding(NamedTuple):
    """A verdict, and a line with the compared values."""

    verdict: str
    line: str


def below(cells: Cells, place: CellKey, other: CellKey | float, *, times: float = 1) -> Finding:
    """The cell is below `times` the other cell or number."""
    return _compared(cells, place, other, "below", NEGATIVE, times)


def above(cells: Cells, place: CellKey, other: CellKey | float, *, times: float = 1) -> Finding:
    """The cell is above `times` the other cell or number."""
    return _compared(cells, place, other, "above", POSITIVE, times)


def about(cells: Cells, place: CellKey, other: CellKey | float, *, within: float) -> Finding:
    """The cell differs from the other cell or number by less than `within`."""
    return _compared(cells, place, other, f"within {within:g} of", (-within, within))


def falls(cells: Cells, table: str, rows: Sequence[str], column: str) -> Finding:
    """The values fall steadily along the rows: none is above the previous one, and the last is below the first.

    The difference of last and first decides by the rule above. A step decides only against: a rise is one if its interval is above 0, since
    no number of trainings could show that a plateau falls. For steps too small for that, the rank correlation is at most STEADY.
    """
    keys = [(table, row, column) for row in rows]
    line = (f"{table}, {column}: {', '.join(_named(cells, key, key[1]) for key in keys)} "
            "falling, none above the one before it, the last below the first")
    if not _are_measured(cells, keys):
        return Finding(NOT_MEASURED, f"{line}: {NOT_MEASURED}")
    curve = [_resampled(cells, key) for key in keys]
    correlation = round(spearmanr(range(len(curve)), [means[0] for means in curve]).statistic, 6)
    verdict = _verdict(cells, keys, curve[-1] - curve[0], NEGATIVE)
    if DOES_NOT_HOLD in [_verdict(cells, keys, later - earlier, NEGATIVE) for earlier, later in pairwise(curve)]:
        verdict = DOES_NOT_HOLD
    elif verdict == HOLDS and correlation > STEADY:
        verdict = INCONCLUSIVE
    return Finding(verdict, f"{line}, rank correlation {correlation:.2f} at most {STEADY:g}: {verdict}")


def balances(cells: Cells, table: str, row: str, other: str, *, base: str, less: str, more: str) -> Finding:
    """The share of `less` that is left minus the share of `more` that is kept, relative to the row `base`, is below that of `other`."""
    keys = [(table, name, column) for name in (row, other, base) for column in (less, more)]
    line = f"{table}, {less} left less {more} kept, as shares of '{base}': "
    if not _are_measured(cells, keys):
        return Finding(NOT_MEASURED, f"{line}'{row}' below '{other}', {_missing(cells, keys)}: {NOT_MEASURED}")
    left, kept, its_left, its_kept, base_left, base_kept = (_resampled(cells, key) for key in keys)
    mine, its = left / base_left - kept / base_kept, its_left / base_left - its_kept / base_kept
    return _judged(cells, keys, f"{line}'{row}' {_said(mine)} below '{other}' {_said(its)}", mine - its, NEGATIVE)


def reaches(cells: Cells, table: str, row: str, target: str, column: str, *, base: str, at_least: float) -> Finding:
    """The row goes at least this share of the way from the row `base` to the row `target`: (base - row) / (base - target)."""
    keys = [(table, name, column) for name in (row, base, target)]
    line = f"{table}, {column}: share of the way from '{base}' to '{target}' that '{row}' goes"
    if not _are_measured(cells, keys):
        return Finding(NOT_MEASURED, f"{line}, {_missing(cells, keys)}: {NOT_MEASURED}")
    mine, start, end = (_resampled(cells, key) for key in keys)
    share = (start - mine) / (start - end)
    return _judged(cells, keys, f"{line}, {_said(share)}, above {at_least:g}", share - at_least, POSITIVE)


def _compared(cells: Cells, place: CellKey, other: CellKey | float, words: str, inside: tuple[float, float], times: float = 1) -> Finding:
    """left - times * right is `inside` a range."""
    keys = [place, other] if isinstance(other, tuple) else [place]
    bound = f"{other:g}" if not isinstance(other, tuple) else _named(
        cells, other, " ".join(part for part, same in zip(other, place, strict=True) if part != same))
    line = f"{place[0]}, {place[2]}: {_named(cells, place, place[1])} {words} {f'{times:g} of ' if times != 1 else ''}{bound}"
    if not _are_measured(cells, keys):
        return Finding(NOT_MEASURED, f"{line}: {NOT_MEASURED}")
    right = _resampled(cells, other) if isinstance(other, tuple) else other
    return _judged(cells, keys, line, _resampled(cells, place) - times * right, inside)


def _judged(cells: Cells, keys: Sequence[CellKey], line: str, difference: np.ndarray, inside: tuple[float, float]) -> Finding:
    """The finding whether a difference is `inside`; its line is `line` with the difference and the verdict."""
    verdict = _verdict(cells, keys, difference, inside)
    return Finding(verdict, f"{line}, difference {_said(difference)}: {verdict}")


def _verdict(cells: Cells, keys: Sequence[CellKey], difference: np.ndarray, inside: tuple[float, float]) -> str:
    """The rule of this module for a resampled difference of the cells `keys`; single values without an interval decide nothing."""
    (low, high), (floor, ceiling) = interval(difference), inside
    if all(cells[key].low is None for key in keys):
        return INCONCLUSIVE
    return HOLDS if floor < low and high < ceiling else DOES_NOT_HOLD if high < floor or low > ceiling else INCONCLUSIVE


def _resampled(cells: Cells, key: CellKey) -> np.ndarray:
    return cells[key].resampled(COLUMNS.get(key[2], (key[2],))[0])


def _is_measured(cells: Cells, key: CellKey) -> bool:
    cell = cells.get(key)
    return cell is not None and cell.mean is not None


def _are_measured(cells: Cells, keys: Sequence[CellKey]) -> bool:
    return all([_is_measured(cells, key) for key in keys])  # a list: every key is asked for


def _missing(cells: Cells, keys: Sequence[CellKey]) -> str:
    return ", ".join(dict.fromkeys(_named(cells, key, key[1]) for key in keys if not _is_measured(cells, key)))


def _said(means: np.ndarray) -> str:
    """A mean, and its 95 % interval if there is one."""
    low, high = interval(means)
    return f"{means[0]:.3f}" + (f" [{low:.3f}, {high:.3f}]" if high - low > 1e-6 else "")


def _named(cells: Cells, key: CellKey, name: str) -> str:
    return f"'{name}' {f'{cells[key].mean:.3f}{cells[key].interval}' if _is_measured(cells, key) else NOT_MEASURED}"
