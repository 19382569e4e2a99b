"""python -m ldm.paper on a tiny model, with trainings that are made up: cells, files and figures of tables, and going on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import ldm.experiments.quality
import ldm.images
from args.paper_args import TABLES, parse_paper_args
from args.train_args import parse_train_args
from ldm.evaluation.tables import markdown_table
from ldm.images import read_image, write_image
from ldm.modules.embedding_file import write_embedding_file
from ldm.paper import __main__ as paper
from ldm.paper.config import COLUMNS, COSTS, read_table
from ldm.paper.results import tables
from ldm.paper.results.cells import Cell, read_cells
from ldm.paper.results.tables import MeasuredTable, in_words
from ldm.paper.runner import trainings
from ldm.util import UserError
from tests.refusals import refusal
from tests.scoring import PixelAnalyzer
from tests.scripts import test_test_fid_clip_score

inputs, stand_ins = test_test_fid_clip_score.inputs, test_test_fid_clip_score.stand_ins  # fixtures
BASE = {"name": "base", "x": 0, "published": {"CLIP": 0.3}}
HALF = {"name": "half", "x": 2, "train": {"iterations": 4}, "step": 2}
OURS = {"name": "ours", "x": 4, "train": {"iterations": 4}, "published": {"ID-ACC": 0.04}}
CURVE = {"rows": [BASE, HALF, OURS], "columns": ["ID-ACC"],
         "figure": {"kind": "curve", "log": True, "x": "steps", "y": ["ID-ACC"], "beside": ["CLIP"]}}


@pytest.fixture(scope="module")
def preset(inputs, tiny_files, tmp_path_factory) -> Path:
    """tiny.yaml, a preset for the tiny model and what is needed to score it."""
    drawing = {"ddim_steps": 1, "scale": 2, "n_samples": 2, "batch_size": 3, "n_prompts": 4}
    values = {"config_path": tiny_files[0], "ckpt_path": tiny_files[1], "people": inputs / "people.csv", "gallery": inputs / "gallery.npz",
              "face_pack": inputs / "faces", "clip": inputs / "tiny-clip.safetensors", "benchmark": inputs / "prompts.txt",
              "fid_protocol": "clip", "attribute_features": "clip", "paper.devices": "cpu",
              **{f"test_fid_clip_score.{key}": value for key, value in drawing.items()}}
    path = tmp_path_factory.mktemp("preset") / "tiny.yaml"
    path.write_text(yaml.safe_dump({key: str(value) for key, value in values.items()}))
    return path


def made_up(asked: list[int]):
    """Stands for `run_script`: prefixes of every step, other ones for each seed and step; the seeds go into `asked`."""
    def run_script(command, log, place, what):
        args = parse_train_args(command[1:])
        for step in range(args.save_every, args.iterations + 1, args.save_every):
            vectors = torch.randn(3, 32, generator=torch.Generator().manual_seed(100 * args.seed + step))
            write_embedding_file(args.embeddings_dir / f"{args.prompt}-{step}.pt", {"alz": vectors}, {"alz": 41128})
        result = args.embeddings_dir / f"{args.prompt}-{args.iterations}.pt"
        cost = {"seconds": 12.0 + args.seed, "peak_memory_bytes": 34e6, "result": str(result), "result_bytes": result.stat().st_size}
        (args.out_dir / "cost.json").write_text(json.dumps(cost))
        asked.append(args.seed)
    return run_script


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """The seed of each training that was asked for."""
    asked = []
    monkeypatch.setattr(trainings, "run_script", made_up(asked))
    return asked


@pytest.fixture(scope="module")
def command(preset):
    """Words of the command: command(out_dir, table, ..., seeds=2); each table is the content of a file own.yaml, own1.yaml, ..."""
    def words(out_dir: Path, *given: object, seeds: int = 2) -> list[str]:
        files = [out_dir.parent / f"own{number or ''}.yaml" for number in range(len(given))]
        for file, content in zip(files, given, strict=True):
            file.write_text(content if isinstance(content, str) else yaml.safe_dump(content if "rows" in content else {"rows": content}))
        return [*map(str, files), "--preset", str(preset), "--out_dir", str(out_dir), "--seeds", str(seeds)]
    return words


@pytest.fixture(scope="module")
def own(tiny_edited) -> dict:
    """A table with a row of every kind."""
    return {"title": "All kinds", "section": "4.2", "columns": ["ID-ACC", "CLIP", "FID (non-id)", "seconds"],
            "figure": {"kind": "pictures", "S_ID": 1, "S_test": 2, "prompts": 2},
            "rows": [BASE, {"name": "other noise", "score": {"seed": 1}}, {"name": "ESD", "result": str(tiny_edited), "shown": False}, HALF,
                     OURS]}


@pytest.fixture(scope="module")
def whole(command, own, tmp_path_factory) -> tuple[Path, list[int]]:
    """The output folder of a whole run of the table and the curve, and the seeds of its trainings; read only."""
    folder, asked = tmp_path_factory.mktemp("whole") / "out", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ldm.experiments.identity_table.FaceAnalyzer", PixelAnalyzer)
        patch.setattr(ldm.experiments.quality, "CHUNK", 3)
        patch.setattr(trainings, "run_script", made_up(asked))
        paper.main(command(folder, own, CURVE))
    return folder, asked


@pytest.fixture
def finished(whole, tmp_path) -> Path:
    """A copy of the folder that a test may change."""
    return Path(shutil.copytree(whole[0], tmp_path / "out"))


def measured(folder: Path, result: str, part: str) -> dict:
    """The numbers of a part by a pattern of its result's name."""
    file, = folder.glob(f"pictures/tiny/{result}/{part}-*/row.json")
    return json.loads(file.read_text())


def drawn_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("pictures/**/[0-9]*.png")}


def no_work(monkeypatch) -> None:
    monkeypatch.setattr(trainings, "run_script", lambda *given: pytest.fail(f"{given} was run"))
    monkeypatch.setattr(ldm.images, "write_image", lambda path, image: pytest.fail(f"{path} was drawn"))


def test_a_row_is_trained_once_a_seed_whatever_asks_for_it_and_drawn_once(whole):
    folder, asked = whole
    assert asked == [0, 1]
    parts = [path.parents[1].name for path in folder.glob("pictures/tiny/*/*/row.json")]
    assert len(parts) == 3 * 7 and parts.count("none") == 3 * 2 and len(drawn_in(folder)) == 10 * 7  # two noises of the model as it is
    assert not list(folder.glob("**/claim"))


def test_cells_are_the_means_of_the_trainings_rows(whole):
    folder, _ = whole
    cells = read_cells(folder, ["own"])
    for column, (part, key) in COLUMNS.items():
        seeds = [measured(folder, f"apl-*-seed-{seed}-????????", part)[key] for seed in (0, 1)]
        cell = cells["own", "ours", column]
        assert cell.values == tuple(seeds) and cell.mean == pytest.approx(sum(seeds) / 2) and cell.n_seeds == 2, column
        assert cell.sd == pytest.approx(abs(seeds[0] - seeds[1]) / 2 ** 0.5)
    assert cells["own", "ours", "ID-ACC"].published == 0.04 and cells["own", "base", "CLIP"].published == 0.3
    assert cells["own", "ours", "seconds"].values == (12, 13) and cells["own", "half", "memory MB"].mean == 34
    assert ("own", "base", "seconds") not in cells and ("own", "base", "FID (id)") not in cells and cells["own", "ESD", "FID (id)"].mean > 0


def test_the_interval_of_one_training_is_that_over_prompts(whole):
    base, row = read_cells(whole[0], ["own"])["own", "base", "CLIP"], measured(whole[0], "esd-4-*", "prompts")
    assert base.n_seeds == 1 and base.sd is None and base.low < base.mean < base.high
    esd = read_cells(whole[0], ["own"])["own", "ESD", "CLIP"]
    assert esd.mean == row["clip"] and esd.low < esd.mean < esd.high and esd.units.shape == (1, 4)


def test_another_step_and_another_noise_are_other_pictures(whole):
    cells = read_cells(whole[0], ["own"])
    assert cells["own", "half", "FID (non-id)"].mean > 0 and cells["own", "other noise", "FID (non-id)"].mean > 0
    assert cells["own", "half", "FID (non-id)"] != cells["own", "ours", "FID (non-id)"]


def test_two_tables_that_share_rows_share_their_cells(whole):
    cells = read_cells(whole[0], ["own", "own1"])
    assert all(cells["own1", row, column] == cell for (table, row, column), cell in cells.items()
               if table == "own" and row in ("base", "half", "ours") and (column in COSTS or COLUMNS[column][0] != "S_test"))
    assert not any(table == "own1" and "S_test" in column for table, _, column in cells)  # which own1 does not show


def test_the_mean_over_people_is_the_value_of_the_row(whole):
    for (_, row, column), cell in read_cells(whole[0], ["own"]).items():
        if column.partition(",")[0] in ("ID-ACC", "max", "faces", "CLIP"):
            assert np.nanmean(cell.units, axis=1).mean() == pytest.approx(cell.mean, abs=1e-5), (row, column)
            assert cell.units.shape == (cell.n_seeds, {"S_ID": 1, "S_test": 2, "prompts": 4}[COLUMNS[column][0]])


def test_a_target_is_sampled_for_people_and_is_the_base_model_for_other_prompts(finished, command, asked):
    before = drawn_in(finished)
    paper.main(command(finished, [BASE, {"name": "target", "target": 1.0}, {"name": "c2", "target": 0}]))
    cells, new = read_cells(finished, ["own"]), drawn_in(finished).keys() - before.keys()
    assert not asked and len(new) == 2 * 6 and {path.split("/")[2] for path in new} == {"target-0", "target-1"}
    assert cells["own", "target", "CLIP"] == replace(cells["own", "base", "CLIP"], published=None)
    assert ("own", "target", "FID (non-id)") not in cells  # as of the base model itself
    assert cells["own", "target", "FID (id), S_test"].mean > 0 and cells["own", "c2", "ID-ACC"] != cells["own", "target", "ID-ACC"]


def test_the_shown_table_has_published_beside_measured(whole):
    head, _, *rows = (whole[0] / "own" / "own.md").read_text().splitlines()
    assert head == "| row | ID-ACC (paper) | ID-ACC | CLIP (paper) | CLIP | FID (non-id) | seconds |"
    assert [row.split(" | ")[1] for row in rows] == ["-", "-", "-", "-", "0.040"] and rows[4].endswith(" | 12 |")
    assert rows[0].startswith("| base | - | ") and " | 0.300 | " in rows[0] and rows[0].endswith(" | - | - |")
    assert (whole[0] / "own" / "own.csv").read_text().startswith("table,row,column,mean,sd,low,high,n_seeds,published,seed_0,seed_1\n")


def test_what_was_asked_and_what_it_has_cost_is_noted(whole):
    about = json.loads((whole[0] / "own" / "about.json").read_text())
    assert {key: about[key] for key in ("name", "title", "section", "columns", "seeds")} == {
        "name": "own", "title": "All kinds", "section": "4.2", "columns": ["ID-ACC", "CLIP", "FID (non-id)", "seconds"], "seeds": 2}
    commands = {row["name"]: row["commands"] for row in about["rows"]}
    assert [len(lines) for lines in commands.values()] == [0, 0, 0, 2, 2] and commands["half"] == commands["ours"]
    assert commands["ours"][1].startswith("python train.py --out_dir ") and "--seed 1" in commands["ours"][1]
    assert [row["seconds"] for row in about["rows"]] == [None, None, None, 25, 25]
    assert len(about["spent"]) == 2 + 21 and about["seconds"] == sum(about["spent"].values()) > 25 and "torch" in about["versions"]
    assert about["arguments"]["devices"] == "cpu"


def test_the_picture_has_a_row_a_shown_row_and_columns_of_each_part(finished, command, own, asked, monkeypatch):
    grids, grid = [], ldm.images.image_grid
    monkeypatch.setattr(ldm.images, "image_grid", lambda *given, **more: grids.append(given) or grid(*given, **more))
    paper.main(command(finished, own))
    [(pictures, rows, columns)] = grids
    assert rows == ["base", "other noise", "half", "ours"]
    assert columns == ["Ada Stone (S_ID)", "Ben O'Neil (S_test)", "Zoë / Z. (S_test)", *test_test_fid_clip_score.PROMPTS[:2]]
    assert all(picture is not None for row in pictures for picture in row) and read_image(finished / "own" / "own.png").std() > 1
    assert len({picture.tobytes() for row in pictures for picture in row}) == 20


def test_the_curve_goes_through_the_cells(finished, command, asked, monkeypatch):
    drawn = []
    monkeypatch.setattr(tables, "plot_panels", lambda *given, is_log: drawn.append(given))
    paper.main(command(finished, CURVE))
    cells = read_cells(finished, ["own"])
    [(panels, x, path)] = drawn
    assert (x, path) == ("steps", finished / "own" / "own.png") and [(panel.y, [*panel.lines]) for panel in panels] == [
        ("ID-ACC", ["ID-ACC"]), ("CLIP", ["CLIP"])]
    for panel, column in zip(panels, ("ID-ACC", "CLIP"), strict=True):
        assert panel.lines[column] == [(x, cells["own", row, column]) for x, row in ((0, "base"), (2, "half"), (4, "ours"))]


def test_the_curve_is_drawn(whole):
    assert read_image(whole[0] / "own1" / "own1.png").std() > 1


def test_a_finished_table_makes_nothing_again(finished, command, own, monkeypatch, capsys):
    no_work(monkeypatch)
    before = (finished / "own" / "own.json").read_bytes()
    paper.main(command(finished, own))
    said = capsys.readouterr().out
    assert (finished / "own" / "own.json").read_bytes() == before
    assert said.startswith("All kinds (own)\n\nrow ") and said.endswith("own/own.md\n\n")


def test_fewer_seeds_are_the_first_ones(finished, command, monkeypatch):
    no_work(monkeypatch)
    both = read_cells(finished, ["own"])["own", "ours", "ID-ACC"]
    paper.main(command(finished, [BASE, HALF, OURS], seeds=1))
    assert read_cells(finished, ["own"])["own", "ours", "ID-ACC"].values == both.values[:1]
    paper.main(command(finished, [BASE, OURS | {"seeds": 1}]))
    assert read_cells(finished, ["own"])["own", "ours", "ID-ACC"].values == both.values[:1]


def test_other_flags_are_another_training_and_the_rest_stays(finished, command, asked):
    before, cells = drawn_in(finished), read_cells(finished, ["own"])
    paper.main(command(finished, [BASE, OURS | {"train": {"iterations": 4, "tiny.lr": 0.5}, "seeds": 1}]))
    assert asked == [0] and before.items() < drawn_in(finished).items() and len(drawn_in(finished)) == len(before) + 10
    assert read_cells(finished, ["own"])["own", "base", "CLIP"] == cells["own", "base", "CLIP"]


def test_a_killed_run_goes_on(whole, command, asked, tmp_path, monkeypatch):
    kept = []

    def killed(path, image) -> None:
        if len(kept) == 15:
            raise KeyboardInterrupt
        write_image(path, image)
        kept.append(path)

    monkeypatch.setattr(ldm.images, "write_image", killed)
    words = command(tmp_path / "out", [BASE, OURS], seeds=1)
    with pytest.raises(SystemExit) as stopped:
        paper.main(words)
    assert stopped.value.code == 130 and not (tmp_path / "out" / "own").exists() and not list(tmp_path.glob("**/claim"))
    times = {path: path.stat().st_mtime_ns for path in kept if path.exists()}
    monkeypatch.setattr(ldm.images, "write_image", write_image)
    paper.main(words)
    drawn = drawn_in(tmp_path / "out")
    assert asked == [0] and times and all(path.stat().st_mtime_ns == written for path, written in times.items())
    assert len(drawn) == 20 and drawn.items() < drawn_in(whole[0]).items()


def test_a_training_that_fails_ends_with_a_sentence_and_nothing_is_written(command, tmp_path, monkeypatch, capsys):
    def fails(*_) -> None:
        raise UserError("the training ended with status 2; correct that")

    monkeypatch.setattr(trainings, "run_script", fails)
    assert "the training ended with status 2" in refusal(capsys, paper.main, command(tmp_path / "out", [OURS]))
    assert not (tmp_path / "out" / "own").exists()


def test_a_result_that_was_deleted_is_named(finished, command, asked, capsys):
    shutil.rmtree(next(finished.glob("training/*-seed-0-*/embeddings")))
    for row in finished.glob("pictures/tiny/apl-*-seed-0-*/prompts-*"):
        shutil.rmtree(row)
    said = refusal(capsys, paper.main, command(finished, [BASE, OURS]))
    assert "-4.pt, which the training in " in said and "has made, is not there; put it back" in said and not asked


def test_a_picture_that_was_deleted_is_named_and_the_figure_stays(finished, command, own, monkeypatch, capsys):
    no_work(monkeypatch)
    before = (finished / "own" / "own.png").read_bytes()
    for picture in finished.glob("pictures/**/*.png"):
        picture.unlink()
    assert "is not there for the figure; delete" in refusal(capsys, paper.main, command(finished, own))
    assert (finished / "own" / "own.png").read_bytes() == before


@pytest.mark.parametrize("damage", [lambda row: [], lambda row: {"seconds": 1}, lambda row: row | {"id_acc_mean": "0.5"}])
def test_a_row_that_is_damaged_is_named_and_no_seed_is_left_out(finished, command, monkeypatch, capsys, damage):
    no_work(monkeypatch)
    path = next(finished.glob("pictures/tiny/apl-*-seed-1-????????/S_ID-*/row.json"))
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    assert f"{path} is damaged" in refusal(capsys, paper.main, command(finished, [BASE, OURS]))


@pytest.mark.parametrize("damage", ["[]", '{"id_acc_mean": "x"}'])
def test_values_of_people_that_are_damaged_are_named(finished, command, monkeypatch, capsys, damage):
    no_work(monkeypatch)
    path = next(finished.glob("pictures/tiny/apl-*-seed-1-????????/S_ID-*/units.json"))
    path.write_text(damage)
    assert f"{path} is damaged" in refusal(capsys, paper.main, command(finished, [BASE, OURS]))


def test_seeds_are_not_paired_where_one_of_them_has_nothing(finished, command, monkeypatch):
    no_work(monkeypatch)
    path = next(finished.glob("pictures/tiny/apl-*-seed-0-????????/S_ID-*/row.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id_acc_mean": None}))  # no picture of it has a face
    paper.main(command(finished, [BASE, OURS]))
    cells = read_cells(finished, ["own"])
    assert (cells["own", "ours", "ID-ACC"].n_seeds, cells["own", "ours", "ID-ACC"].values) == (1, ())
    assert cells["own", "ours", "CLIP"].n_seeds == 2 == len(cells["own", "ours", "CLIP"].values)


def test_a_published_value_stays_where_no_image_shows_a_face(finished, command, monkeypatch):
    no_work(monkeypatch)
    for path in finished.glob("pictures/tiny/apl-*/S_ID-*/row.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"id_acc_mean": None}))
    paper.main(command(finished, CURVE))
    cell = read_cells(finished, ["own"])["own", "ours", "ID-ACC"]
    assert (cell.mean, cell.published) == (None, 0.04)
    assert (finished / "own" / "own.md").read_text().splitlines()[-1].startswith("| ours | 0.040 | - |")


def test_the_list_says_how_far_each_table_is(finished, command, own, monkeypatch, capsys):
    no_work(monkeypatch)
    shutil.rmtree(next(finished.glob("pictures/tiny/esd-*/prompts-*")))
    words = command(finished, own)
    monkeypatch.setattr(paper, "parse_paper_args", lambda argv: as_list(argv))
    paper.main(words)
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "what", "section", "trainings", "pieces", "at", "work"]
    assert line.split() == "own All kinds 4.2 2 of 2 22 of 23 -".split()


def as_list(argv):
    args = parse_paper_args(argv)
    args.task = "list"
    return args


def test_a_transferred_row_is_made_by_its_training_and_the_transfer(tmp_path):
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"rows": [{"name": "xl", "train": {}, "transfer": "ridge", "model": "mini-xl"}]}))
    rows = MeasuredTable(read_table(tmp_path / "own.yaml", "mini"), "mini", 1, tmp_path)
    made = rows.measured["xl"][0].result
    made.source.folder.mkdir(parents=True)
    for file in ("cost.json", "apl-700.pt"):
        (made.source.folder / file).write_text('{"seconds": 60, "result": "apl-700.pt", "peak_memory_bytes": 1, "result_bytes": 1}')
    for part in rows.pieces(0):
        for one in (part, part.base):
            one.folder.mkdir(parents=True, exist_ok=True)
            (one.folder / "row.json").write_text(json.dumps({key: 1 for _, key in COLUMNS.values()} | {"seconds": 1}))
    about = rows.about()
    [row] = about["rows"]
    assert [line.split()[:3] for line in row["commands"]] == [["python", "train.py", "--out_dir"], ["python", "-m", "ldm.apl.transfer"]]
    assert row["seconds"] == 60 and sum(about["spent"].values()) == 60 + 6


def test_a_cell_in_words_has_its_interval_and_its_deviation():
    assert in_words(Cell(0.2134, 0.004, 0.2, 0.22, 3)) == "0.213 ± 0.004 [0.200, 0.220]"
    assert (in_words(Cell(0.25)), in_words(Cell(12.4), True), in_words(None)) == ("0.250", "12", None)
    assert markdown_table([{"row": "a | b", "CLIP": None}], numeric=["CLIP"]) == "| row | CLIP |\n| --- | ---: |\n| a \\| b | - |\n"


@pytest.mark.parametrize(("rows", "words"), [
    ("rows: [", "own.yaml is no YAML"), ([BASE, BASE], "has two rows 'base'"),
    ([OURS | {"train": {"iteration": 4}, "step": 4}], "own.yaml, row 'ours', sets 'iteration', which this command does not know"),
    ([OURS | {"train": {"iterations": 0}}], "--iterations"), ([HALF | {"step": 5}], "row 'half', asks for step 5, which is not kept"),
    ([BASE | {"score": {"n_names": 4}}], "may have seed, scale, ddim_steps alone, and has 'n_names'"),
    ([BASE | {"model": "none"}], "there is no preset 'none'"),
    ("score: {n_name: 4}\nrows: [{name: base}]", "sets 'n_name'")])
def test_a_table_that_is_none_is_refused_before_any_training(command, asked, tmp_path, capsys, rows, words):
    assert words in refusal(capsys, paper.main, command(tmp_path / "out", rows))
    assert not asked and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("given", "words"), [
    ([], "WHAT is missing; give some of table1, figure1"), (["table7"], "there is no 'table7'; give some of table1"),
    (["none.yaml"], "there is no 'none.yaml'"), (["all", "table1"], "'all' cannot be combined; leave out table1"),
    (["table1", "report"], "'report' cannot be combined; leave out table1"),
    (["table1", "--n_photos", "2"], "--n_photos has no use without figure5"),
    (["table1", "--num_nodes", "2"], "--num_nodes 2 has no use here; start the same command on each machine"),
    (["table1", "--devices", "gpu"], "none of auto, cpu"), (["table1", "--seeds", "0"], "--seeds"),
    (["table1", "--publish", "x"], "--publish has no use without a report"),
    (["report", "--readme", "none.md"], "--readme none.md is not there"),
    (["report", "--out_dir", "none"], "--out_dir none is not there"),
    (["table1", "--out_dir", "/proc/x"], "cannot be written"), (["figure5", "--photos", "none"], "--photos none is not there")])
def test_wrong_words_end_with_a_sentence(capsys, given, words):
    assert words in refusal(capsys, parse_paper_args, [*given, "--preset", "mini"])


def test_what_is_asked_for_is_a_list_and_a_task(tmp_path):
    some = parse_paper_args(["table3", "figure6", "table3"])
    assert (some.what, some.task, some.whole, some.out_dir) == (["table3", "figure6"], "make", False, Path("runs/paper/mini"))
    assert some.seeds == 4 and some.photos is None  # which are figure5's alone
    everything = parse_paper_args(["all", "--publish", str(tmp_path / "new")])
    assert (everything.what, everything.task, everything.whole) == ([*TABLES], "make", True) and everything.photos
    others = map(parse_paper_args, (["list"], ["report", "--out_dir", str(tmp_path)]))
    assert [(args.task, args.whole) for args in others] == [("list", False), ("report", False)]
