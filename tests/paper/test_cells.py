"""Mean, deviation and interval of what trainings have measured, and the way into a file and back."""

import json
import math

import numpy as np
import pytest

from ldm.paper.results.cells import Cell, as_rows, cell_of, read_cells
from ldm.util import UserError

ROW = as_rows("table1", {("base", "CLIP"): Cell(0.5)})[0]
T_OF_3 = 4.303  # Student's t of three trainings, 95 %


def half(cell):
    return (cell.high - cell.low) / 2


def test_three_trainings_have_a_mean_a_deviation_and_an_interval():
    cell = cell_of([1, 2, 3], published=5)
    assert (cell.mean, cell.sd, cell.n_seeds, cell.published, cell.values) == (2, 1, 3, 5, (1, 2, 3))
    assert half(cell) == pytest.approx(T_OF_3 / math.sqrt(3), rel=0.15) and cell.low < 2 < cell.high


def test_trainings_do_not_make_the_interval_over_people_smaller():
    people = np.random.default_rng(0).normal(size=(1, 50))
    one, four = (cell_of([people.mean()] * count, np.repeat(people, count, axis=0), "S_test") for count in (1, 4))
    assert half(one) == pytest.approx(half(four)) == pytest.approx(1.96 * people.std() / math.sqrt(50), rel=0.1)


def test_the_interval_is_around_the_value_even_if_that_is_no_plain_mean_over_people():
    units = np.random.default_rng(0).normal(size=(1, 50))
    plain, weighted = cell_of([units.mean()], units, "S_ID"), cell_of([7], units, "S_ID")
    assert (weighted.low - 7, weighted.high - 7) == pytest.approx((plain.low - plain.mean, plain.high - plain.mean), abs=1e-6)


def test_one_value_has_no_deviation_and_no_interval():
    for cell in (cell_of([7]), cell_of([None, 7]), cell_of([7], np.array([[7, np.nan]]), "S_test")):  # the last: of one person
        assert (cell.mean, cell.sd, cell.n_seeds, cell.low, cell.high) == (7, None, 1, None, None)


def test_a_training_without_a_value_is_not_counted_and_the_others_are_not_named_by_seed():
    cell = cell_of([None, 1, 2])
    assert (cell.mean, cell.n_seeds, cell.values) == (1.5, 2, ())


def test_cells_come_back_from_the_file_as_they_were(tmp_path):
    people = np.array([[1, 1], [2, np.nan], [2, 4]])
    cells = {("base", "ID-ACC"): Cell(0.5), ("ours, 10", "ID-ACC"): cell_of([1, 2, 3], people, "S_ID", 0.25),
             ("base", "CLIP"): cell_of([7])}
    rows = as_rows("table3", cells)
    assert [row["row"] for row in rows] == ["base", "ours, 10", "base"] and {row["table"] for row in rows} == {"table3"}
    assert rows[1] | {"sd": 1, "published": 0.25, "seed_0": 1, "seed_1": 2, "seed_2": 3} == rows[1] and "seed_0" not in rows[0]
    (tmp_path / "table3").mkdir()
    (tmp_path / "table3" / "table3.json").write_text(json.dumps(rows))
    found = read_cells(tmp_path, ["table2", "table3"])
    assert found == {("table3", *place): cell for place, cell in cells.items()}
    for place, cell in cells.items():
        assert np.array_equal(found["table3", *place].units, cell.units, equal_nan=True) if cell.units is not None else (
            found["table3", *place].units is None)


@pytest.mark.parametrize("rows", [[1], {"a": 1}, [{"table": "t"}],
                                  [ROW | {"mean": "0.5"}], [ROW | {"units": "1 2; 3"}], [ROW | {"units": "a"}],
                                  [{key: value for key, value in ROW.items() if key != "units"}]])
def test_a_file_without_cells_is_named(tmp_path, rows):
    (tmp_path / "table1").mkdir()
    (tmp_path / "table1" / "table1.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match="table1.json holds no cells .*; delete .*table1 and make it again with python -m ldm.paper table1"):
        read_cells(tmp_path, ["table1"])
