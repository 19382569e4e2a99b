"""The paper's claims as checks on what was measured: configs/paper/claims.yaml against the cells of tables and figures.

    claims:
      - number: 1
        claim: "one sentence"
        section: "4.2"                                                          # of the paper
        checks:                                                                 # CELL is [table, row, column]
          - {left: CELL, below: CELL, times: 0.5}                               # below half of the other; or `above`
          - {left: CELL, above: 0.9}                                            # a number in place of the other
          - {left: CELL, about: CELL, within: 0.05}                             # differs by less than that
          - {left: CELL, below: CELL, each: [100, 200]}                         # once for each, which stands for {each} in the rows
          - {falls: [base, "10 %", "20 %"], table: figure6, column: ID-ACC}     # along these rows
          - {balances: "m = 10", others: ["m = 1"], table: table3, base: base, less: ID-ACC, more: CLIP}    # shares of the row `base`
        why: "what was found out about a failure"

Every key may be given for a preset alone, as in the tables ("mini.why"). The noise of a difference: `ldm.paper.results.cells.difference`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from scipy.stats import spearmanr

from ldm.paper.config import of_preset, read_yaml
from ldm.paper.results.cells import Cell, cell_of, difference
from ldm.util import UserError

HOLDS, WITHIN_NOISE, NOT_MEASURED, DOES_NOT_HOLD = VERDICTS = ("holds", "within noise", "not measured", "does not hold")  # the worst last
STEADY = -0.8  # rank correlation of place and value up to which a curve falls steadily

Place = tuple[str, str, str]  # table, row, column
Cells = Mapping[Place, Cell]
Check = Mapping[str, Any]
Item = tuple[str, str, str]   # verdict, what was compared, and with what


def check_claims(path: Path, cells: Cells, preset: str) -> list[dict[str, Any]]:
    """A row for each claim of the file: number, claim, section, verdict, figures (a line for each thing compared), why.

    The verdict is the worst of its checks. `why` is empty where the claim holds, and where nothing is known.

    Raises:
        UserError: the file is not of the form above.
    """
    return [_judged(claim, cells) for claim in _read_claims(path, preset)]


def _judged(claim: Mapping[str, Any], cells: Cells) -> dict[str, Any]:
    verdicts, figures = [], []
    for check in claim["checks"]:
        relation = _relation(check)
        items = list(RELATIONS[relation].items(check, relation, cells))
        verdicts += [verdict for verdict, _, _ in items]
        figures += [f"{_subject(check)}: {left} {right}: {verdict}" for verdict, left, right in items]
    verdict = max(verdicts, key=VERDICTS.index)
    return {key: claim[key] for key in ("number", "claim", "section")} | {
        "verdict": verdict, "figures": figures, "why": claim.get("why", "") if verdict in (WITHIN_NOISE, DOES_NOT_HOLD) else ""}


def _comparisons(check: Check, relation: str, cells: Cells) -> Iterator[Item]:
    """Below, above, about: an item for each of `each`."""
    times, within = check.get("times", 1), check.get("within", 0)
    words = f"within {within:g} of" if relation == "about" else relation
    for each in check.get("each", [""]):
        place, other = _filled(check["left"], each), check[relation]
        left = _value(cells, place)
        if isinstance(other, list):
            other = _filled(other, each)
            right = _value(cells, other)
            bound = _named(" ".join(part for part, same in zip(other, place, strict=True) if part != same), right)
        else:
            right, bound = Cell(other), f"{other:g}"
        verdict, by = NOT_MEASURED, ""
        if left is not None and right is not None:
            found, noise = difference(left, right, times, alike=place[2] == other[2] if isinstance(other, tuple) else True)
            excess = {"below": found, "above": -found, "about": abs(found) - within}[relation]
            verdict, by = _verdict(excess, noise, left.has_noise or right.has_noise), _by(found, noise)
        if times != 1:
            bound = f"{times:g} of {bound}"
        yield verdict, _named(place[1], left), f"{words} {bound}{by}"


def _curve(check: Check, relation: str, cells: Cells) -> Iterator[Item]:
    """Falls: no value above the one before it, the last below the first, and steadily; one item."""
    values = {row: _value(cells, (check["table"], row, check["column"])) for row in check[relation]}
    along = ", ".join(_named(row, value) for row, value in values.items())
    demand = "falling, none above the one before it, the last below the first"
    if None in values.values():
        yield NOT_MEASURED, along, demand
        return
    curve = list(values.values())
    rises = any(_below(later, earlier) == DOES_NOT_HOLD for earlier, later in pairwise(curve))
    correlation = round(spearmanr(range(len(curve)), [value.mean for value in curve]).statistic, 6)
    verdict = _below(curve[-1], curve[0])
    if rises:
        verdict = DOES_NOT_HOLD
    elif verdict == HOLDS and correlation > STEADY:
        verdict = WITHIN_NOISE
    yield verdict, along, f"{demand}, rank correlation {correlation:.2f} at most {STEADY:g}"


def _balance(check: Check, relation: str, cells: Cells) -> Iterator[Item]:
    """Balances: the share of `less` that is left minus the share of `more` that is kept is lowest; an item for each of the others."""

    def of(row: str) -> Cell | None:
        less, more, less_base, more_base = (_value(cells, (check["table"], one, check[column]))
                                            for one in (row, check["base"]) for column in ("less", "more"))
        if None in (less, more, less_base, more_base) or 0 in (less_base.mean, more_base.mean):
            return None
        if not less.values or len(less.values) != len(more.values):
            return None
        shares = [left / less_base.mean - kept / more_base.mean for left, kept in zip(less.values, more.values, strict=True)]
        noise = math.hypot(less.noise / less_base.mean, more.noise / more_base.mean)
        return cell_of(shares, [noise] if len(shares) == 1 and (less.has_noise or more.has_noise) else [])

    mine = of(check[relation])
    for other in check["others"]:
        its = of(other)
        verdict, by = NOT_MEASURED, ""
        if mine is not None and its is not None:
            found, noise = difference(mine, its)
            verdict, by = _verdict(found, noise, mine.has_noise or its.has_noise), _by(found, noise)
        yield verdict, _named(check[relation], mine), f"below {_named(other, its)}{by}"


def _below(left: Cell, right: Cell) -> str:
    return _verdict(*difference(left, right), left.has_noise or right.has_noise)


def _verdict(excess: float, noise: float, is_known: bool) -> str:
    """Of the claim that `excess` is below zero; single values whose noise nobody knows decide nothing."""
    if not is_known:
        return WITHIN_NOISE
    return HOLDS if excess < -noise else DOES_NOT_HOLD if excess > noise else WITHIN_NOISE


def _value(cells: Cells, place: Place) -> Cell | None:
    """None where nothing was measured."""
    cell = cells.get(place)
    return None if cell is None or cell.mean is None else cell


def _said(cell: Cell | None) -> str:
    """The mean, and its 95 % interval, if it has one."""
    return "not measured" if cell is None else f"{cell.mean:.3f}{cell.interval}"


def _named(name: str, cell: Cell | None) -> str:
    return f"'{name}' {_said(cell)}"


def _by(found: float, noise: float) -> str:
    return f", difference {_said(Cell(found, low=found - noise, high=found + noise) if noise else Cell(found))}"


def _filled(place: Sequence[str], each: Any) -> Place:
    table, row, column = place
    return table, row.replace("{each}", str(each)), column


def _subject(check: Check) -> str:
    """Table and columns that a check is about."""
    if "less" in check:
        return f"{check['table']}, {check['less']} left less {check['more']} kept, as shares of '{check['base']}'"
    table, _, column = check.get("left", [check.get("table"), "", check.get("column")])
    return f"{table}, {column}"


class Relation(NamedTuple):
    """How a check of this relation is decided, and the keys that it has beside the relation's own."""

    items: Callable[[Check, str, Cells], Iterator[Item]]
    needed: frozenset[str]
    further: frozenset[str] = frozenset()


RELATIONS = {"below": Relation(_comparisons, frozenset({"left"}), frozenset({"times", "each"})),
             "above": Relation(_comparisons, frozenset({"left"}), frozenset({"times", "each"})),
             "about": Relation(_comparisons, frozenset({"left", "within"}), frozenset({"times", "each"})),
             "falls": Relation(_curve, frozenset({"table", "column"})),
             "balances": Relation(_balance, frozenset({"table", "others", "base", "less", "more"}))}


def _relation(check: Check) -> str | None:
    """The relation of a check; None where it has none, or two."""
    relation, *more = [key for key in check if key in RELATIONS] or [None]
    return None if more else relation


def _read_claims(path: Path, preset: str) -> list[dict[str, Any]]:
    """The claims as they are on a preset."""
    content = read_yaml(path)
    claims = content.get("claims") if isinstance(content, dict) else None
    if not isinstance(claims, list) or not claims:
        raise UserError(f"{path} has no list 'claims'; restore it from the repository")
    return [_claim(path, claim, preset) for claim in claims]


def _claim(path: Path, claim: Any, preset: str) -> dict[str, Any]:
    """A claim of the form that it should have, with its checks as they are on the preset."""
    claim = of_preset(claim, preset) if isinstance(claim, dict) else {}
    if not _has(claim, CLAIM, {"number", "claim", "section", "checks"}, {"why"}):
        raise UserError(f"{path} has the claim {claim.get('number')}, which is not understood; give it {', '.join(CLAIM)}")
    checks = [of_preset(check, preset) if isinstance(check, dict) else {} for check in claim["checks"]]
    for given, check in zip(claim["checks"], checks, strict=True):
        relation = _relation(check)
        if relation is None or not _has(check, CHECK, RELATIONS[relation].needed | {relation}, RELATIONS[relation].further):
            raise UserError(f"{path}, claim {claim['number']}: the check {given} is not understood; give one of {', '.join(RELATIONS)} "
                            "as configs/paper/claims.yaml does")
    return claim | {"checks": checks}


def _has(values: Mapping[str, Any], forms: Mapping[str, Any], needed: Set[str], further: Set[str]) -> bool:
    """Whether there is all that is needed and nothing that is not known, each of its form."""
    return needed <= set(values) <= needed | further and all(forms[key](value) for key, value in values.items())


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and value != []


def _is_names(value: Any) -> bool:
    return _is_list(value) and all(map(_is_text, value))


def _is_cell(value: Any) -> bool:
    return _is_names(value) and len(value) == 3


def _is_bound(value: Any) -> bool:
    return _is_number(value) or _is_cell(value)


CLAIM = {"number": _is_number, "claim": _is_text, "section": _is_text, "checks": _is_list, "why": _is_text}
CHECK = {"left": _is_cell, "below": _is_bound, "above": _is_bound, "about": _is_bound, "times": _is_number, "within": _is_number,
         "each": _is_list, "falls": _is_names, "balances": _is_text, "table": _is_text, "column": _is_text, "others": _is_names,
         "base": _is_text, "less": _is_text, "more": _is_text}
