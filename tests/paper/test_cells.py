"""Mean, spread and interval of what trainings have measured, by hand; differences; and the way into a file and back."""

import json
import math

import pytest

from ldm.paper.results.cells import Cell, as_rows, cell_of, difference, read_cells
from ldm.util import UserError

T_OF_3 = 4.303  # Student's t of three trainings, 95 %


def test_three_trainings_have_a_mean_a_deviation_and_an_interval():
    cell = cell_of([1, 2, 3], [None] * 3, published=5)
    assert (cell.mean, cell.sd, cell.n_seeds, cell.published, cell.values) == (2, 1, 3, 5, (1, 2, 3))
    assert cell.half_width == pytest.approx(T_OF_3 / math.sqrt(3), abs=1e-3)
    assert (cell.low, cell.high) == pytest.approx((2 - cell.half_width, 2 + cell.half_width))


def test_the_interval_over_people_is_added_in_squares_and_not_made_smaller_by_trainings():
    assert cell_of([7, 7, 7, 7], [3, 3, 4, 2]).half_width == 3
    assert cell_of([1, 2, 3], [2, 3, 4]).half_width == pytest.approx(math.hypot(3, T_OF_3 / math.sqrt(3)), abs=1e-3)
    assert cell_of([7, 7], [3, None]).half_width == 3


@pytest.mark.parametrize(("half", "ends", "noise"), [(None, (None, None), 0), (2, (5, 9), 2)])
def test_one_training_has_no_deviation_and_the_interval_over_people_alone(half, ends, noise):
    cell = cell_of([7], [half])
    assert (cell.mean, cell.sd, cell.n_seeds) == (7, None, 1) and (cell.low, cell.high, cell.half_width) == (*ends, noise)


def test_the_same_seeds_are_compared_in_pairs():
    left, right = cell_of([3, 5, 7], [9, 9, 9]), cell_of([1, 2, 3], [9, 9, 9])
    assert difference(left, right, 2) == (1, 0)  # 1 in each pair: what all have in common is no noise
    found, noise = difference(left, right)       # 2, 3, 4
    assert found == 3 and noise == pytest.approx(T_OF_3 / math.sqrt(3), abs=1e-3)


@pytest.mark.parametrize("right", [Cell(5, low=3, high=7, n_seeds=3), cell_of([5], [2]), Cell(5, 1, 3, 7, 2, values=(4, 6))])
def test_other_seeds_or_a_single_one_add_their_noise_in_squares(right):
    assert difference(Cell(11, low=8, high=14, n_seeds=3, values=(10, 11, 12)), right, 2) == (1, 5)  # of 3 and 2 * 2
    assert difference(cell_of([11], [3]), right, 2) == (1, 5)


def test_a_number_has_no_noise():
    assert difference(Cell(11, low=8, high=14), Cell(10)) == (1, 3)


def test_cells_come_back_from_the_file_as_they_were(tmp_path):
    cells = {("base", "ID-ACC"): Cell(0.5), ("ours, 10", "ID-ACC"): cell_of([1, 2, 3], [None] * 3, published=0.25),
             ("base", "CLIP"): cell_of([7], [2])}
    rows = as_rows("table3", cells)
    assert [row["row"] for row in rows] == ["base", "ours, 10", "base"] and {row["table"] for row in rows} == {"table3"}
    assert rows[1] | {"sd": 1, "published": 0.25, "seed_0": 1, "seed_1": 2, "seed_2": 3} == rows[1] and "seed_0" not in rows[0]
    (tmp_path / "table3").mkdir()
    (tmp_path / "table3" / "table3.json").write_text(json.dumps(rows))
    assert read_cells(tmp_path, ["table2", "table3"]) == {("table3", *place): cell for place, cell in cells.items()}


@pytest.mark.parametrize("rows", [[1], {"a": 1}, [{"table": "t"}],
                                  [as_rows("table1", {("base", "CLIP"): Cell(0.5)})[0] | {"mean": "0.5"}]])
def test_a_file_without_cells_is_named(tmp_path, rows):
    (tmp_path / "table1").mkdir()
    (tmp_path / "table1" / "table1.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match="table1.json holds no cells .*; delete .*table1 and make it again with python -m ldm.paper table1"):
        read_cells(tmp_path, ["table1"])
