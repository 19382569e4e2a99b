"""Tables as YAML files: what a row may say, each preset's own values, what is refused; and that the shipped tables are understood."""

from pathlib import Path

import pytest
import yaml

from args import test_fid_clip_score_args, train_args
from args.paper_args import TABLES
from ldm.paper.config import COLUMNS, COSTS, of_preset, read_table, slug
from ldm.paper.results.tables import MeasuredTable
from ldm.paper.runner.trainings import Training, Transfer
from ldm.util import UserError
from tests import test_layers

PAPER = test_layers.ROOT / "configs" / "paper"
SHIPPED = sorted(PAPER / f"{name}.yaml" for name in (*TABLES, "robust") if name != "figure5")
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
    ([OURS | {"target": 1}], "has both 'train' and 'target'"), ([BASE | {"target": -1}], "'target: -1' is too small; give at least 0"),
    ([BASE | {"step": 70}], "'step' or 'transfer' of nothing that is trained"),
    ([BASE | {"transfer": "relative"}], "'step' or 'transfer' of nothing that is trained"),
    ([OURS | {"step": 70, "transfer": "relative"}], "'step' of what is transferred"),
    ([OURS | {"transfer": "near"}], "the transfer 'near' is not there; give one of relative"),
    ([OURS | {"step": 0}], "'step: 0' is too small"), ([OURS | {"seeds": -1}], "'seeds: -1' is too small"),
    ([{"name": "ESD", "result": "none.pt"}], "row 'ESD': the result none.pt is not there"),
    ([BASE | {"published": {"clip": 0.3}}], "'clip: 0.3' has no place; give a number for one of \"ID-ACC, S_test\", "),
    ([BASE | {"published": {"CLIP": "good"}}], "'CLIP: good' has no place")])
def test_a_row_of_another_form_is_refused(table, rows, words):
    with pytest.raises(UserError) as refused:
        table(*rows)
    assert words in str(refused.value)


@pytest.mark.parametrize(("head", "words"), [
    ({"titel": "x"}, "'titel: x' is not understood; give title, section"), ({"score": [1]}, "'score: [1]' is not understood"),
    ({"columns": ["CLIP", "clip"]}, "the column 'clip'; give some of \"ID-ACC, S_test\", "),
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
    rows = MeasuredTable(table, preset, 1, Path("out"))
    assert table.title != path.stem and table.section in ("1", "4.2", "4.3", "4.5", "ours") and table.columns
    kinds = {name: type(measured[0].result) for name, measured in rows.measured.items()}
    assert all((kinds[row.name] in (Training, Transfer)) == (row.train is not None) for row in table.rows)


def groups(*values):
    """Mean and max of S_ID, then of S_test, as Tables 1, 3 and 4 of the paper have them."""
    return dict(zip(("ID-ACC", "max", "ID-ACC, S_test", "max, S_test"), values, strict=True))


def methods(**values):
    """Values of Table 2: the identity half is of S_test."""
    columns = {"fid": "FID (id), S_test", "id_acc": "ID-ACC, S_test", "attr": "Attr-ACC, S_test", "coco": "FID (non-id)", "clip": "CLIP"}
    return {columns[key]: value for key, value in values.items()}


def test_the_shipped_tables_have_the_papers_values():
    published = {(path.stem, row.name): row.published for path in SHIPPED if path.stem.startswith("table")
                 for row in read_table(path, "sd-v1-5").rows if row.published}
    best = groups(0.03345, 0.10548, 0.03257, 0.09702)
    base = groups(0.31566, 0.37958, 0.30254, 0.36691) | methods(clip=0.3078)
    ours = groups(0.03924, 0.10861, 0.03970, 0.10773)
    assert published == {
        ("table1", "SD v1.5"): groups(0.31566, 0.37958, 0.30254, 0.36691),
        ("table1", "SD v1.5 + APL"): ours,
        ("table1", "SD v1.4"): groups(0.29911, 0.36713, 0.28837, 0.35720),
        ("table1", "SD v1.4 + APL"): groups(0.03893, 0.10632, 0.04647, 0.11368),
        ("table1", "Realistic Vision"): groups(0.32205, 0.37122, 0.32071, 0.36492),
        ("table1", "Realistic Vision + APL"): groups(0.09215, 0.14391, 0.09033, 0.14496),
        ("table1", "SDXL"): groups(0.27917, 0.33371, 0.27218, 0.32830),
        ("table1", "SDXL + APL, transferred"): groups(0.07267, 0.14245, 0.07852, 0.14368),
        ("table2", "base"): base | methods(attr=0.69361),
        ("table2", "FMN"): methods(fid=263.57, coco=54.89, clip=0.1642),
        ("table2", "UCE"): methods(fid=125.67, coco=88.69, clip=0.0298),
        ("table2", "ESD"): methods(fid=189.32, coco=9.59, clip=0.2530),
        ("table2", "CA"): methods(fid=57.58, id_acc=0.01215, attr=0.53898, coco=4.14, clip=0.2903),
        ("table2", "ours"): ours | methods(fid=20.01, attr=0.60222, coco=2.98, clip=0.3058),
        ("table3", "base"): base, ("table4", "base"): base,
        ("table3", "m = 1"): groups(0.12308, 0.20149, 0.11434, 0.19768),
        ("table3", "m = 5"): groups(0.05834, 0.12377, 0.05758, 0.13179),
        ("table3", "m = 10"): best,
        ("table3", "m = 20"): groups(0.03270, 0.09735, 0.04084, 0.10780),
        ("table4", "alpha = 0"): groups(0.05237, 0.12196, 0.05688, 0.13048),
        ("table4", "alpha = 0.5"): groups(0.04826, 0.11933, 0.04090, 0.10900),
        ("table4", "alpha = 1"): best,
        ("table4", "alpha = 2"): groups(0.06819, 0.14412, 0.06707, 0.14137),
        ("table4", "alpha = 5"): groups(0.05622, 0.13619, 0.04083, 0.10900)}


def test_figures_show_the_values_of_the_papers_tables():
    of_tables = [row.published for name in ("table1", "table2") for row in read_table(PAPER / f"{name}.yaml", "sd-v1-5").rows]
    shown = {(path.stem, row.name): row.published for path in SHIPPED if path.stem.startswith("figure")
             for row in read_table(path, "sd-v1-5").rows}
    assert [place for place, published in shown.items() if not any(published.items() <= values.items() for values in of_tables)] == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_published_mean_stands_beside_its_max(path):
    for row in read_table(path, "sd-v1-5").rows:
        for mean, most in (("ID-ACC", "max"), ("ID-ACC, S_test", "max, S_test")):
            assert (mean in row.published) == (most in row.published) or row.name == "CA", row.name


@pytest.mark.parametrize("alpha", [0, 0.5, 1, 2, 5])
def test_the_target_of_eq_5_has_a_row_for_each_alpha_of_table_4(alpha):
    rows = {row.name: row for row in read_table(PAPER / "table4.yaml", "mini").rows}
    assert rows[f"target of Eq. 5, alpha = {alpha:g}"].target == alpha
    assert (rows[f"alpha = {alpha:g}"].train or {"alpha": 1})["alpha"] == alpha


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_published_value_of_a_shipped_table_is_shown(path):
    table = read_table(path, "sd-v1-5")
    assert {column for row in table.rows for column in row.published} <= set(table.columns)


def test_table_2_shows_people_never_told_before_those_erased():
    columns = list(read_table(PAPER / "table2.yaml", "mini").columns)
    for of_people in ("FID (id)", "ID-ACC", "Attr-ACC", "faces"):
        assert columns.index(f"{of_people}, S_test") < columns.index("FID (non-id)") < columns.index(of_people)


def test_the_shipped_columns_are_measured():
    assert all(column in (*COLUMNS, *COSTS) for path in SHIPPED for column in read_table(path, "mini").columns)


def test_the_same_flags_in_two_tables_are_one_training_and_one_set_of_pictures(table):
    def folders(name, seed, row, **score):
        asked = table(BASE, row, name=name, score={"n_names": 2} | score)
        measured = MeasuredTable(asked, "mini", 2, Path("out")).measured[row["name"]][seed]
        return {"training": measured.result.folder} | {part: piece.folder for part, piece in measured.parts.items()}

    mine = folders("one", 1, OURS)
    assert folders("other", 1, {"name": "another name", "train": {"train_method": "apl"}}) == mine
    more, seed = folders("one", 1, OURS, n_samples=3), folders("one", 0, OURS)
    assert [part for part in mine if more[part] == mine[part]] == ["training", "prompts"]
    assert not [part for part in mine if seed[part] == mine[part]]
