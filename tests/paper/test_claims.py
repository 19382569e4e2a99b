"""Claims as checks on cells: what each relation says of round numbers, and that the shipped claims ask for rows that there are."""

import numpy as np
import pytest
import yaml

from args.common import ROOT
from args.paper_args import CLAIMED
from ldm.paper.config import COLUMNS, read_table
from ldm.paper.results import claims
from ldm.paper.results.cells import Cell, cell_of
from ldm.paper.results.claims import Claim, check_claims
from ldm.paper.results.relations import about, above, balances, below, falls, reaches
from ldm.paper.runner.adversary import read_adversary_plan

PAPER = ROOT / "configs" / "paper"
OURS, BASE = ["t", "ours", "ID-ACC"], ["t", "base", "ID-ACC"]
HOLDS, INCONCLUSIVE, NOT_MEASURED, DOES_NOT_HOLD = "holds", "inconclusive", "not measured", "does not hold"


def cell(mean, half=0.0, seed=0):
    """A cell of one training whose 95 % interval has about this half-width; cells of other seeds vary independently of it."""
    people = np.random.default_rng(seed).normal(size=400)
    people = (people - people.mean()) / people.std() * half / 1.96 * 20
    return cell_of([mean], mean + people[None], "S_ID") if half else Cell(mean, low=mean, high=mean)


def cells_of(column="ID-ACC", **values):
    """Cells of the table t by row: a mean, or a mean and the half-width of its interval."""
    pairs = {row: value if isinstance(value, tuple) else (value, 0) for row, value in values.items()}
    return {("t", row, column): cell(*pair, seed) for seed, (row, pair) in enumerate(pairs.items())}


def findings(cells, check):
    """What a relation of this name finds, once for each of `each`."""
    check = {key: tuple(value) if key in ("left", "below", "above", "about") and isinstance(value, list) else value
             for key, value in check.items()}
    each, left = check.pop("each", [""]), check.pop("left", None)
    for one in each:
        def filled(place, one=one):
            return tuple(part.replace("{each}", str(one)) for part in place) if isinstance(place, tuple) else place

        if "falls" in check:
            yield falls(cells, check["table"], check["falls"], check["column"])
        elif "balances" in check:
            for other in check["others"]:
                yield balances(cells, check["table"], check["balances"], other, base=check["base"], less=check["less"], more=check["more"])
        elif "reaches" in check:
            yield reaches(cells, check["table"], check["reaches"], check["target"], check["column"], base=check["base"],
                          at_least=check["at_least"])
        else:
            relation = next(relation for relation in (below, above, about) if relation.__name__ in check)
            more = {key: value for key, value in check.items() if key != relation.__name__}
            yield relation(cells, filled(left), filled(check[relation.__name__]), **more)


@pytest.fixture
def judge(monkeypatch):
    """The row of a claim with these checks."""
    def judge(cells, *checks, preset="mini", why=None):
        def check(cells):
            """It is so."""
            for each in checks:
                yield from findings(cells, each)

        monkeypatch.setattr(claims, "CLAIMS", [Claim(check, "4.2", why or {})])
        row, = check_claims(cells, preset)
        assert row["claim"] == "It is so."
        return row
    return judge


@pytest.mark.parametrize(("ours", "below", "above"), [
    (-1, HOLDS, DOES_NOT_HOLD), (1, INCONCLUSIVE, INCONCLUSIVE), (9, INCONCLUSIVE, INCONCLUSIVE), (11, DOES_NOT_HOLD, HOLDS)])
def test_below_and_above_hold_beyond_the_noise_of_both_cells(judge, ours, below, above):
    cells = cells_of(ours=(ours, 3), base=(10, 8))  # half of base is 5 ± 4, so the difference has a noise of 5
    assert judge(cells, {"left": OURS, "below": BASE, "times": 0.5})["verdict"] == below
    assert judge(cells, {"left": OURS, "above": BASE, "times": 0.5})["verdict"] == above


@pytest.mark.parametrize(("noise", "verdict"), [(0.0, HOLDS), (0.2, INCONCLUSIVE)])
def test_a_number_may_stand_in_place_of_a_cell(judge, noise, verdict):
    assert judge(cells_of(ours=(0.8, noise)), {"left": OURS, "below": 0.9})["verdict"] == verdict


@pytest.mark.parametrize(("ours", "verdict"), [(5, HOLDS), (7, INCONCLUSIVE), (3, INCONCLUSIVE), (9, DOES_NOT_HOLD), (1, DOES_NOT_HOLD)])
def test_about_holds_where_the_difference_and_its_noise_are_within_the_margin(judge, ours, verdict):
    assert judge(cells_of(ours=(ours, 1), base=5), {"left": OURS, "about": BASE, "within": 2.5})["verdict"] == verdict


@pytest.mark.parametrize(("values", "verdict"), [
    ([9, 7, 5, 3], HOLDS),
    ([9, 5, 5.5, 3], HOLDS),            # a rise of less than noise; ranks 4, 2, 3, 1: a correlation of -0.8
    ([9, 4.2, 4.6, 5, 4], INCONCLUSIVE),  # rises that are noise, one after another
    ([9, 3, 5, 2], DOES_NOT_HOLD),      # a rise beyond noise
    ([9, 8.9, 8.8, 8.7], INCONCLUSIVE),  # steadily, but by less than noise
    ([3, 5, 7, 9], DOES_NOT_HOLD)])
def test_a_curve_falls_where_it_ends_below_its_beginning_and_nothing_rises_beyond_noise(judge, values, verdict):
    cells = cells_of(**{str(step): (value, 0.5) for step, value in enumerate(values)})  # a difference has a noise of 0.71
    row = judge(cells, {"falls": [str(step) for step in range(len(values))], "table": "t", "column": "ID-ACC"})
    assert row["verdict"] == verdict


@pytest.mark.parametrize(("other", "verdict"), [
    ((4, 1.0), INCONCLUSIVE),   # .4 left and all kept: -.6, as ours
    ((6, 1.0), HOLDS),          # more is left
    ((2, 0.5), HOLDS),          # less is left, but half is lost: -.3
    ((1, 1.0), DOES_NOT_HOLD)])
def test_a_row_balances_where_what_is_left_less_what_is_kept_is_lowest(judge, other, verdict):
    places = {"base": (10, 1.0), "ours": (2, 0.8), "other": other}
    cells = {("t", row, column): cell(pair[index], 0.05 * pair[index], seed) for seed, (row, pair) in enumerate(places.items())
             for index, column in enumerate(("ID-ACC", "CLIP"))}
    check = {"balances": "ours", "table": "t", "others": ["other"], "base": "base", "less": "ID-ACC", "more": "CLIP"}
    assert judge(cells, check)["verdict"] == verdict


@pytest.mark.parametrize(("ours", "target", "verdict"), [
    (4, 2, HOLDS), (7, 2, DOES_NOT_HOLD), (6, 2, INCONCLUSIVE), (4, 11, DOES_NOT_HOLD)])  # .75, .375, .5, and away from it
def test_a_row_reaches_a_share_of_the_way_to_its_target(judge, ours, target, verdict):
    cells = cells_of(base=(10, 0.2), ours=(ours, 0.2), target=(target, 0.2))
    check = {"reaches": "ours", "table": "t", "target": "target", "column": "ID-ACC", "base": "base", "at_least": 0.5}
    assert judge(cells, check)["verdict"] == verdict


def test_a_check_is_made_for_each_of_its_rows(judge):
    check = {"left": ["t", "with, {each}", "ID-ACC"], "below": ["t", "without, {each}", "ID-ACC"], "each": [100, 200]}
    cells = cells_of(**{"with, 100": 1, "without, 100": 2, "with, 200": 3, "without, 200": 4})
    row = judge(cells, check)
    assert row["verdict"] == HOLDS
    assert row["figures"] == [
        "t, ID-ACC: 'with, 100' 1.000 [1.000, 1.000] below 'without, 100' 2.000 [2.000, 2.000], difference -1.000: holds",
        "t, ID-ACC: 'with, 200' 3.000 [3.000, 3.000] below 'without, 200' 4.000 [4.000, 4.000], difference -1.000: holds"]
    assert judge(cells | cells_of(**{"with, 200": 5}), check)["verdict"] == DOES_NOT_HOLD


@pytest.mark.parametrize("check", [
    {"left": OURS, "below": BASE}, {"left": BASE, "above": OURS, "times": 2}, {"left": BASE, "above": 2},
    {"left": OURS, "about": BASE, "within": 1}, {"falls": ["base", "ours"], "table": "t", "column": "ID-ACC"},
    {"balances": "base", "table": "t", "others": ["ours"], "base": "base", "less": "ID-ACC", "more": "ID-ACC"},
    {"reaches": "ours", "table": "t", "target": "ours", "column": "ID-ACC", "base": "base", "at_least": 0.5}])
def test_what_is_not_there_is_not_measured(judge, check):
    for cells in ({}, cells_of(ours=1), cells_of(ours=1) | {("t", "base", "ID-ACC"): Cell(None)}):
        row = judge(cells, check)
        assert row["verdict"] == NOT_MEASURED and "'base' not measured" in row["figures"][0]


def test_the_worst_check_decides(judge):
    cells = cells_of(ours=1)
    checks = {HOLDS: {"left": OURS, "below": 2}, INCONCLUSIVE: {"left": OURS, "below": 1},
              NOT_MEASURED: {"left": ["t", "x", "ID-ACC"], "below": 1}, DOES_NOT_HOLD: {"left": OURS, "below": 0}}
    verdicts = [judge(cells, *list(checks.values())[:count])["verdict"] for count in range(1, 5)]
    assert verdicts == list(checks)


def test_the_figures_say_the_values_their_interval_and_the_difference(judge):
    cells = {("t", row, "ID-ACC"): cell_of([mean], np.array([[mean - 1, mean + 1]]), "S_ID") for row, mean in (("ours", 2), ("base", 5))}
    row = judge(cells, {"left": OURS, "below": BASE}, {"left": OURS, "above": 0.2}, {"left": OURS, "about": BASE, "within": 4})
    assert row["figures"] == [
        "t, ID-ACC: 'ours' 2.000 [1.000, 3.000] below 'base' 5.000 [4.000, 6.000], difference -3.000: holds",
        "t, ID-ACC: 'ours' 2.000 [1.000, 3.000] above 0.2, difference 1.800 [0.800, 2.800]: holds",
        "t, ID-ACC: 'ours' 2.000 [1.000, 3.000] within 4 of 'base' 5.000 [4.000, 6.000], difference -3.000: holds"]


@pytest.mark.parametrize("check", [
    {"left": OURS, "below": BASE}, {"left": BASE, "below": OURS}, {"left": OURS, "below": 3}, {"left": OURS, "about": BASE, "within": 9},
    {"falls": ["base", "ours"], "table": "t", "column": "ID-ACC"},
    {"balances": "ours", "table": "t", "others": ["base"], "base": "base", "less": "ID-ACC", "more": "ID-ACC"}])
def test_single_values_of_unknown_noise_decide_nothing(judge, check):
    assert judge({("t", row, "ID-ACC"): cell_of([value]) for row, value in {"ours": 1, "base": 2}.items()}, check)["verdict"] == (
        INCONCLUSIVE)


def test_rows_of_the_same_people_are_compared_in_pairs(judge):
    people = np.random.default_rng(0).normal(size=50)
    cells = {("t", row, column): cell_of([mean + people.mean()] * 2, mean + np.array([people, people]), part)
             for row, mean in (("ours", 0), ("base", 0.1)) for column, part in (("ID-ACC", "S_ID"), ("ID-ACC, S_test", "S_test"))}
    assert judge(cells, {"left": OURS, "below": BASE})["verdict"] == HOLDS  # .1 for each person; alone each mean is known to .28
    assert judge(cells, {"left": OURS, "below": ["t", "base", "ID-ACC, S_test"]})["verdict"] == INCONCLUSIVE  # of other people


def test_trainings_of_the_same_seeds_are_compared_in_pairs(judge):
    cells = {("t", row, "FID (id)"): cell_of(values) for row, values in {"ours": [1, 2, 9], "base": [3, 4, 11]}.items()}
    row = judge(cells, {"left": ["t", "ours", "FID (id)"], "below": ["t", "base", "FID (id)"]})
    assert row["verdict"] == HOLDS and row["figures"][0].endswith(", difference -2.000: holds")


def test_two_columns_of_a_row_are_told_apart(judge):
    check = {"left": ["t", "ours", "ID-ACC, S_test"], "about": OURS, "within": 1}
    assert judge({}, check)["figures"] == [
        "t, ID-ACC, S_test: 'ours' not measured within 1 of 'ID-ACC' not measured: not measured"]


def test_why_is_that_of_the_preset_and_stands_where_the_claim_does_not_hold(judge):
    fails, holds = ({"left": OURS, "below": bound} for bound in (0, 2))
    cells, why = cells_of(ours=1), {"mini": "It is small."}
    assert judge(cells, fails, why=why)["why"] == "It is small."
    assert judge(cells, fails, preset="sd-v1-5", why=why)["why"] == ""
    assert judge(cells, holds, why=why)["why"] == ""


class Asked(dict):
    """Cells of which there are none; knows which were asked for."""

    def get(self, place, default=None):
        self[place] = default
        return default


def test_what_the_paper_claims_of_people_is_checked_on_those_never_seen():
    for claim in claims.CLAIMS:
        asked = Asked()
        list(claim.check(asked))
        columns = {column for table, _, column in asked if table != "figure5"}
        of_people = {column.removesuffix(", S_test") for column in columns & COLUMNS.keys() if COLUMNS[column][0] != "prompts"}
        assert "Our claim" in claim.check.__doc__ or {f"{column}, S_test" for column in of_people} <= columns, claim.check


@pytest.mark.parametrize("preset", ["mini", "sd-v1-5"])
def test_the_shipped_claims_ask_for_rows_and_columns_that_there_are(preset):
    asked = Asked()
    rows = check_claims(asked, preset)
    assert [row["number"] for row in rows] == list(range(1, 21)) and {row["verdict"] for row in rows} == {NOT_MEASURED}
    figure5 = yaml.safe_load((PAPER / "figure5.yaml").read_text(encoding="utf-8"))
    iterations = range(0, figure5["iterations"] + 1, figure5["every"])
    there = {("figure5", f"{attack}, {prefix}, {iteration}", column) for attack in figure5["attacks"] for prefix in ("without", "with")
             for iteration in iterations for column in ("ID-ACC", "max", "faces")}
    grid = read_adversary_plan(PAPER / "robust_grid.yaml", preset)
    there |= {("robust_grid", f"{prefix.name}: {attack.name}", "cosine") for prefix in grid.prefixes for attack in grid.attacks}
    there |= {("robust_grid", "base", "cosine")}
    for path in (PAPER / f"{name}.yaml" for name in CLAIMED if name not in ("figure5", "robust_grid")):
        table = read_table(path, preset)
        there |= {(path.stem, row.name, column) for row in table.rows for column in table.columns}
    assert sorted(set(asked) - there) == []
