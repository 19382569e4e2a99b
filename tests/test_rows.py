"""Tables as YAML files: what a row may say, each preset's own values, what is refused; and that the shipped tables are understood."""

from pathlib import Path

import pytest
import test_layers
import yaml

from args import test_fid_clip_score_args, train_args
from ldm.paper.rows import COLUMNS, COSTS, of_preset, read_table, slug
from ldm.paper.tables import Rows
from ldm.paper.trainings import Training, Transfer
from ldm.util import UserError

PAPER = test_layers.ROOT / "configs" / "paper"
SHIPPED = sorted({*PAPER.glob("*.yaml")} - {PAPER / "claims.yaml", PAPER / "figure5.yaml"})
BASE, OURS = {"name": "base"}, {"name": "ours", "train": {}}


@pytest.fixture
def table(tmp_path):
    """The table of these rows: table(*rows, **head); preset is "mini" unless given."""
    def table(*rows, preset="mini", name="own", **head):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(head | {"rows": list(rows)}), encoding="utf-8")
        return read_table(path, preset)
    return table


def test_a_row_is_a_training_a_file_or_the_model_as_it_is(table, tmp_path):
    (tmp_path / "apl.pt").touch()
    base, ours, file = table(BASE, OURS | {"train": {"lr": 0.1}, "step": 70, "published": {"CLIP": 0.3}},
                             {"name": "file", "result": str(tmp_path / "apl.pt"), "model": "mini-sd-b"}).rows
    assert (base.train, base.result, base.model, base.published, base.shown) == (None, None, None, {}, True)
    assert (ours.train, ours.step, ours.published) == ({"lr": 0.1}, 70, {"CLIP": 0.3})
    assert (file.train, file.result, file.model) == (None, tmp_path / "apl.pt", "mini-sd-b")


def test_a_table_has_a_title_and_all_columns_unless_it_says_so(table):
    own = table(BASE)
    assert (own.name, own.title, own.section, own.remark, own.columns) == ("own", "own", "", "", [*COLUMNS])
    given = {"title": "By rate", "section": "4.2", "remark": "Ours.", "columns": ["CLIP"], "figure": {"kind": "pictures", "S_ID": 2}}
    said = table(BASE, score={"n_names": 2, "mini.n_names": 1}, **given)
    assert {key: getattr(said, key) for key in given} == given and said.score == {"n_names": 1}


def test_a_preset_has_values_of_its_own():
    values = {"lr": 1, "mini.lr": 2, "sd-v1-5.iterations": 3, "mini.seed": None, "seed": 4}
    assert of_preset(values, "mini") == {"lr": 2} and of_preset(values, "sd-v1-5") == {"lr": 1, "iterations": 3, "seed": 4}


def test_rows_and_their_flags_are_those_of_the_preset(table):
    rows = [BASE, OURS | {"train": {"lr": 1, "mini.lr": 2}, "mini.seeds": 1, "score": {"seed": 1, "mini.seed": 2}},
            {"name": "there", "only": ["mini"]}]
    mini, public = table(*rows), table(*rows, preset="sd-v1-5")
    assert [row.name for row in mini.rows] == ["base", "ours", "there"] and [row.name for row in public.rows] == ["base", "ours"]
    assert [(one.rows[1].train, one.rows[1].seeds, one.rows[1].score) for one in (mini, public)] == [
        ({"lr": 2}, 1, {"seed": 2}), ({"lr": 1}, None, {"seed": 1})]


def test_a_slug_is_a_name_for_files():
    assert slug("ESD, 10 a name") == "esd-10-a-name"


@pytest.mark.parametrize(("rows", "words"), [
    ([], "has no row for the preset mini"), ([BASE | {"only": ["sdxl"]}], "has no row for the preset mini"),
    ([BASE, BASE], "has two rows 'base'"), ([{"train": {}}], "which has no name"), (["ESD"], "has the row 'ESD', which has no name"),
    ([{"name": "?"}], "which has no name"), ([BASE | {"results": "x"}], "row 'base': 'results: x' is not understood"),
    ([OURS | {"train": None}], "row 'ours': 'train' has no value; give {} for APL"),
    ([OURS | {"published": {"CLIP": True}}], "'CLIP: True' has no place"),
    ([OURS | {"train": "esd"}], "'train: esd' is not understood"), ([BASE | {"only": "sdxl"}], "'only: sdxl' is not understood"),
    ([BASE | {"only": 3}], "'only: 3' is not understood"), ([OURS | {"result": "x"}], "has both 'train' and 'result'"),
    ([BASE | {"step": 70}], "'step' or 'transfer' of nothing that is trained"),
    ([BASE | {"transfer": "relative"}], "'step' or 'transfer' of nothing that is trained"),
    ([OURS | {"step": 70, "transfer": "relative"}], "'step' of what is transferred"),
    ([OURS | {"transfer": "near"}], "the transfer 'near' is not there; give one of relative"),
    ([OURS | {"step": 0}], "'step: 0' is too small"), ([OURS | {"seeds": -1}], "'seeds: -1' is too small"),
    ([{"name": "ESD", "result": "none.pt"}], "row 'ESD': the result none.pt is not there"),
    ([BASE | {"published": {"clip": 0.3}}], "'clip: 0.3' has no place; give a number for one of \"ID-ACC\", "),
    ([BASE | {"published": {"CLIP": "good"}}], "'CLIP: good' has no place")])
def test_a_row_of_another_form_is_refused(table, rows, words):
    with pytest.raises(UserError) as refused:
        table(*rows)
    assert words in str(refused.value)


@pytest.mark.parametrize(("head", "words"), [
    ({"titel": "x"}, "'titel: x' is not understood; give title, section"), ({"score": [1]}, "'score: [1]' is not understood"),
    ({"columns": ["CLIP", "clip"]}, "the column 'clip'; give some of \"ID-ACC\", "),
    ({"figure": {"kind": "pie"}}, "has the figure {'kind': 'pie'}, which is not understood"),
    ({"figure": {"kind": "curve", "x": "steps"}}, "kind curve with x and y"),
    ({"figure": {"kind": "curve", "x": "steps", "y": ["clip"]}}, "kind curve with x and y"),
    ({"figure": {"kind": "curve", "x": "steps", "y": "CLIP"}}, "kind curve with x and y"),
    ({"figure": {"kind": "pictures"}}, "a number of columns for some of S_ID, S_test, prompts"),
    ({"figure": {"kind": "pictures", "S_ID": "two"}}, "a number of columns"), ({"figure": {"S_ID": 2}}, "a number of columns")])
def test_a_head_of_another_form_is_refused(table, head, words):
    with pytest.raises(UserError) as refused:
        table(BASE, **head)
    assert words in str(refused.value)


def test_a_figure_without_a_row_is_refused(table):
    with pytest.raises(UserError, match="shows no row in it"):
        table(BASE | {"shown": False}, figure={"kind": "pictures", "S_ID": 2})


@pytest.mark.parametrize(("text", "words"), [
    ("rows: [", "is no YAML"), ("- base", "has no list 'rows'"), ("rows: base", "has no list 'rows'"), ("", "has no list 'rows'")])
def test_a_file_that_is_no_table_is_refused(tmp_path, text, words):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(UserError, match=f"own.yaml {words}"):
        read_table(tmp_path / "own.yaml", "mini")


@pytest.mark.parametrize("preset", ["mini", "sd-v1-5"])
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_row_of_the_shipped_tables_is_understood(path, preset, monkeypatch):
    if preset != "mini":  # whose files are not here
        for parser in (train_args, test_fid_clip_score_args):
            monkeypatch.setattr(parser, "check_paths", lambda *_: None)
    table = read_table(path, preset)
    rows = Rows(table, preset, 1, Path("out"))
    assert table.title != path.stem and table.section in ("1", "4.2", "4.3", "ablations") and table.columns
    kinds = {name: type(measured[0].result) for name, measured in rows.measured.items()}
    assert all((kinds[row.name] in (Training, Transfer)) == (row.train is not None) for row in table.rows)


def test_the_shipped_tables_have_the_papers_values():
    published = {(path.stem, row.name): row.published for path in SHIPPED for row in read_table(path, "sd-v1-5").rows if row.published}
    ablation = {"ID-ACC": 0.03345, "max": 0.10548, "ID-ACC, S_test": 0.03257, "max, S_test": 0.09702}
    assert published == {
        ("table1", "SD v1.5 + APL"): {"ID-ACC": 0.03924, "ID-ACC, S_test": 0.03970},
        ("table2", "base"): {"CLIP": 0.3078, "Attr-ACC": 0.694}, ("table2", "UCE"): {"CLIP": 0.0298},
        ("table2", "CA"): {"ID-ACC": 0.012, "Attr-ACC": 0.539}, ("table2", "ours"): {"ID-ACC": 0.04, "Attr-ACC": 0.602},
        ("table3", "m = 10"): ablation, ("table4", "alpha = 1"): ablation}


def test_the_shipped_columns_are_measured():
    assert all(column in (*COLUMNS, *COSTS) for path in SHIPPED for column in read_table(path, "mini").columns)


def test_the_same_flags_in_two_tables_are_one_training_and_one_set_of_pictures(table):
    def folders(name, seed, row, **score):
        measured = Rows(table(BASE, row, name=name, score={"n_names": 2} | score), "mini", 2, Path("out")).measured[row["name"]][seed]
        return {"training": measured.result.folder} | {part: piece.folder for part, piece in measured.parts.items()}

    mine = folders("one", 1, OURS)
    assert folders("other", 1, {"name": "another name", "train": {"train_method": "apl"}}) == mine
    more, seed = folders("one", 1, OURS, n_samples=3), folders("one", 0, OURS)
    assert [part for part in mine if more[part] == mine[part]] == ["training", "prompts"]
    assert not [part for part in mine if seed[part] == mine[part]]
