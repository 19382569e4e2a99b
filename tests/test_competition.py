"""python -m ldm.paper table2 on a tiny model, with trainings that are made up: the table, the figure, and going on; refused tables."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import test_test_fid_clip_score
import yaml
from refusals import refusal
from test_test_id import PixelAnalyzer

import ldm.paper.quality
import ldm.pictures
from args.common import ROOT
from args.train_args import parse_train_args
from ldm.modules.embedding_file import read_embedding_file, write_embedding_file
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.paper import __main__ as paper
from ldm.paper import competition
from ldm.paper.rows import of_preset, read_table
from ldm.pictures import read_image

inputs, stand_ins = test_test_fid_clip_score.inputs, test_test_fid_clip_score.stand_ins  # fixtures
BASE = {"name": "base", "figure4": True, "published": {"CLIP": 0.3}}
OURS = {"name": "Ours, 4 steps", "figure4": True, "train": {"iterations": 4, "tiny.lr": 0.5}, "published": {"ID-ACC": 0.04}}


@pytest.fixture(scope="module")
def world(inputs, tiny_files, tmp_path_factory) -> Path:
    """A folder with tiny.yaml, a preset for the tiny model and what is needed to score it."""
    folder = tmp_path_factory.mktemp("world")
    drawing = {"ddim_steps": 2, "scale": 2, "n_samples": 2, "batch_size": 3, "n_prompts": 4}
    preset = {"config_path": tiny_files[0], "ckpt_path": tiny_files[1], "people": inputs / "people.csv", "gallery": inputs / "gallery.npz",
              "face_pack": inputs / "faces", "clip": inputs / "tiny-clip.safetensors", "benchmark": inputs / "prompts.txt",
              "fid_protocol": "clip", "attribute_features": "clip", "paper.devices": "cpu",
              **{f"test_fid_clip_score.{key}": value for key, value in drawing.items()}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump({key: str(value) for key, value in preset.items()}))
    return folder


def made_up(model, asked: list[list[str]]):
    """Stands for `train_missing`: makes a prefix with as many vectors as the training has steps; its flags go into `asked`."""
    def train_missing(runs, *, devices, label):
        for out_dir, flags in runs.items():
            if (out_dir / "cost.json").exists():
                continue
            args = parse_train_args([*flags, "--out_dir", str(out_dir)])
            result = out_dir / "embeddings" / f"{args.prompt}-{args.iterations}.pt"
            EmbeddingManager(model.cond_stage_model, num_vectors_per_token=args.iterations).save(result)
            cost = {"seconds": 12.4, "peak_memory_bytes": 34e6, "result": str(result), "result_bytes": result.stat().st_size}
            (out_dir / "cost.json").write_text(json.dumps(cost))
            asked.append(flags)
    return train_missing


@pytest.fixture
def trained(monkeypatch, tiny_model) -> list[list[str]]:
    """The flags of each training that was asked for."""
    asked = []
    monkeypatch.setattr(competition, "train_missing", made_up(tiny_model, asked))
    return asked


@pytest.fixture(scope="module")
def command(world, tiny_edited):
    """Flags of the command: command(out_dir, rows, *more); the rows are base, ESD, ours where none are given."""
    def flags(out_dir: Path, rows: object = None, *more: str) -> list[str]:
        table = out_dir.parent / f"{out_dir.name}.yaml"
        rows = [BASE, {"name": "ESD", "result": str(tiny_edited)}, OURS] if rows is None else rows
        table.write_text(rows if isinstance(rows, str) else yaml.safe_dump({"rows": rows}))
        return ["table2", "--preset", str(world / "tiny.yaml"), "--rows", str(table), "--out_dir", str(out_dir), *more]
    return flags


@pytest.fixture(scope="module")
def whole(command, tiny_model, tmp_path_factory) -> tuple[Path, list[list[str]]]:
    """The output folder of a whole run, and the flags of its trainings; read only."""
    folder, asked = tmp_path_factory.mktemp("whole") / "out", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["ldm.paper.table2"], "FaceAnalyzer", PixelAnalyzer)
        patch.setattr(ldm.paper.quality, "CHUNK", 3)
        patch.setattr(competition, "train_missing", made_up(tiny_model, asked))
        paper.main(command(folder))
    return folder, asked


@pytest.fixture
def finished(whole, tmp_path) -> Path:
    """A copy of the folder that a test may change."""
    folder = Path(shutil.copytree(whole[0], tmp_path / "out"))
    cost = next(folder.glob("training/*/cost.json"))
    cost.write_text(cost.read_text().replace(str(whole[0]), str(folder)))
    return folder


def table_in(folder: Path) -> list[dict]:
    return json.loads((folder / "table2.json").read_text())


def drawn_in(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob("pictures/**/[0-9]*.png")}


def test_the_table_has_measured_beside_published_and_what_each_row_has_cost(whole):
    finished, trained = whole
    base, esd, ours = table_in(finished)
    assert list(base) == ["method", "ID-ACC", "ID-ACC (paper)", "ID-ACC, S_test", "faces", "Attr-ACC", "FID (id)", "FID (non-id)", "CLIP",
                          "CLIP (paper)", "seconds", "memory MB", "result kB"]
    assert (base["method"], base["CLIP (paper)"], base["FID (id)"], base["seconds"]) == ("base", 0.3, None, None)
    assert esd["FID (id)"] > 0 and esd["FID (non-id)"] > 0 and esd["seconds"] is None and esd["result kB"] > 0
    assert (ours["ID-ACC (paper)"], ours["seconds"], ours["memory MB"]) == (0.04, 12, 34)
    assert (finished / "table2.md").read_text().count("\n") == 5 and (finished / "table2.csv").exists()
    [flags] = trained
    assert "--iterations=4" in flags and "--lr=0.5" in flags and flags[flags.index("--prompt") + 1] == "ours-4-steps"


def test_there_is_a_flat_row_for_each_part_and_method(whole):
    finished, _ = whole
    rows = json.loads((finished / "results.json").read_text())
    assert [(row["part"], row["method"]) for row in rows] == [
        (part, method) for part in ("S_ID", "S_test", "prompts") for method in ("base", "ESD", "Ours, 4 steps")]
    assert {row["half"] for row in rows[:6]} == {"id"} and rows[0]["n_identities"] == 1 and rows[3]["n_identities"] == 2
    assert rows[0]["id_acc_mean"] == table_in(finished)[0]["ID-ACC"] and rows[3]["id_acc_mean"] == table_in(finished)[0]["ID-ACC, S_test"]
    assert rows[8]["seconds"] == 12.4 and json.loads((finished / "arguments.json").read_text())["arguments"]["what"] == "table2"


def test_figure_4_shows_the_rows_that_are_asked_for(finished, command, trained, monkeypatch):
    grids = []
    monkeypatch.setattr(competition, "picture_grid", lambda pictures, rows, columns, cell: grids.append((pictures, rows, columns))
                        or ldm.pictures.picture_grid(pictures, rows, columns, cell=cell))
    paper.main(command(finished))
    [(pictures, rows, columns)] = grids
    assert rows == ["base", "Ours, 4 steps"] and columns == [
        "Ada Stone (S_ID)", "Ada Stone (S_ID)", "Ben O'Neil (S_test)", "Zoë / Z. (S_test)", *test_test_fid_clip_score.PROMPTS]
    assert all(picture is not None for row in pictures for picture in row) and read_image(finished / "figure4.png").std() > 1


def test_a_finished_table_trains_and_draws_nothing_again(finished, command, trained, monkeypatch):
    monkeypatch.setattr(ldm.pictures, "write_image", lambda path, image: pytest.fail(f"{path} was drawn again"))
    before = table_in(finished)
    paper.main(command(finished))
    assert table_in(finished) == before and not trained


def test_other_flags_are_another_training_and_the_other_rows_stay(finished, command, trained, tiny_edited):
    before, drawn = table_in(finished), drawn_in(finished)
    paper.main(command(finished, [BASE, {"name": "ESD", "result": str(tiny_edited)}, OURS | {"train": {"iterations": 5}}]))
    after = table_in(finished)
    assert len(trained) == 1 and after[:2] == before[:2] and after[2]["FID (id)"] != before[2]["FID (id)"]
    assert drawn.items() < drawn_in(finished).items() and len(list((finished / "training").iterdir())) == 2


def test_another_result_of_the_same_name_is_drawn_anew(finished, command, trained):
    before, cost = table_in(finished), next(finished.glob("training/*/cost.json"))
    result = Path(json.loads(cost.read_text())["result"])
    other = read_embedding_file(result)
    write_embedding_file(result, {"alz": other.vectors["*"] + 1}, {"alz": other.token_ids["*"]})
    paper.main(command(finished))
    assert table_in(finished)[:2] == before[:2] and table_in(finished)[2]["FID (id)"] != before[2]["FID (id)"]


def test_a_table_anew_trains_and_draws_everything(finished, command, trained):
    drawn = drawn_in(finished)
    paper.main(command(finished, None, "--no-resume"))
    assert len(trained) == 1 and drawn.keys() == drawn_in(finished).keys() and not drawn.items() & drawn_in(finished).items()


def test_a_result_that_was_deleted_is_named(finished, command, trained, capsys):
    shutil.rmtree(next(finished.glob("training/*/embeddings")))
    said = refusal(capsys, paper.main, command(finished))
    assert "ours-4-steps-4.pt, which the training in" in said and "is not there; put it back" in said


def test_weights_of_another_checkpoint_are_refused(command, trained, tmp_path, capsys):
    rows = [BASE, {"name": "sepia", "result": "data/mini/mini-sepia.safetensors"}]
    assert "mini-sepia.safetensors" in refusal(capsys, paper.main, command(tmp_path / "out", rows))


@pytest.mark.parametrize(("rows", "words"), [
    ("rows: [", "is no YAML"), ("- base", "has no list 'rows'"), ("rows: []", "the first row of"),
    ([OURS], "must be the model as it is"), ([BASE, BASE | {"name": "none"}], "must be the model as it is"),
    ([BASE, OURS, OURS], "has two rows 'ours-4-steps'"), ([BASE, {"train": {}}], "has no name"), ([BASE, "ESD"], "has the row 'ESD'"),
    ([BASE, {"name": "ESD", "results": "x"}], "'results: x' is not understood"),
    ([BASE, OURS | {"train": "esd"}], "'train: esd' is not understood"),
    ([BASE, OURS | {"only": "mini"}], "'only: mini' is not understood"),
    ([BASE, OURS | {"train": {1: 2}}], "sets '1', which this command does not know"),
    ([BASE, OURS | {"result": "x"}], "has both 'train' and 'result'"),
    ([BASE, {"name": "ESD", "result": "none.pt"}], "row 'ESD': the result none.pt is not there"),
    ([BASE | {"published": {"clip": 0.3}}], "'clip: 0.3' has no place; give a number for one of ID-ACC"),
    ([BASE | {"published": {"CLIP": "good"}}], "'CLIP: good' has no place"),
    ([BASE, OURS | {"train": {"iteration": 4}}], "row 'Ours, 4 steps', sets 'iteration', which this command does not know"),
    ([BASE, OURS | {"train": {"iterations": 0}}], "--iterations"), ([BASE, OURS | {"train": {"train_method": "sed"}}], "--train_method"),
    ("score: {n_name: 4}\nrows: [{name: base}]", "sets 'n_name'"), ("score: [1]\nrows: [{name: base}]", "'score' is no mapping")])
def test_a_table_that_is_none_is_refused_before_any_training(command, trained, tmp_path, capsys, rows, words):
    assert words in refusal(capsys, paper.main, command(tmp_path / "out", rows))
    assert not trained and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("flags", "words"), [
    (["table7"], "invalid choice: 'table7'"), ([], "give one of table2, figure5"),
    (["table2", "--rows", "none.yaml"], "--rows none.yaml is not there"),
    (["figure5", "--rows", "none.yaml"], "has no use with figure5"), (["table2", "--num_nodes", "2"], "--num_nodes 2 has no use here"),
    (["table2", "--devices", "gpu"], "none of auto, cpu"), (["table2", "--out_dir", "/proc/x"], "cannot be written")])
def test_wrong_flags_end_with_a_sentence(capsys, flags, words):
    assert words in refusal(capsys, paper.main, [*flags, "--preset", "mini"])


def test_a_preset_has_values_of_its_own():
    values = {"lr": 1, "mini.lr": 2, "sd-v1-5.iterations": 3, "mini.seed": None, "seed": 4}
    assert of_preset(values, "mini") == {"lr": 2} and of_preset(values, "sd-v1-5") == {"lr": 1, "iterations": 3, "seed": 4}


def test_the_shipped_table_has_the_papers_values_and_rows_for_each_preset():
    mini, public = (read_table(ROOT / "configs/paper/table2.yaml", preset, competition.PUBLISHED) for preset in ("mini", "sd-v1-5"))
    published = {method.name: method.published for method in public.methods if method.published}
    assert published == {"base": {"CLIP": 0.3078, "Attr-ACC": 0.694}, "UCE": {"CLIP": 0.0298},
                         "CA": {"ID-ACC": 0.012, "Attr-ACC": 0.539}, "ours": {"ID-ACC": 0.04, "Attr-ACC": 0.602}}
    names, per_concept = [method.name for method in mini.methods][:-1], ("FMN, 35 a name", "ESD, 1000 a name", "CA, 100 a name")
    assert names == [method.name for method in public.methods if method.name not in per_concept]
    assert mini.methods[-1].result == ROOT / "embeddings/apl-mini.pt" or mini.methods[-1].result == Path("embeddings/apl-mini.pt")
    assert {method.train["train_method"] for method in public.methods[1:]} == {"forget_me_not", "uce", "esd", "concept_ablation", "apl"}
    assert mini.score["n_names"] == 32 and "n_names" not in public.score


@pytest.mark.parametrize("preset", ["mini", "sd-v1-5"])
def test_every_row_of_the_shipped_table_is_understood_by_train(preset, monkeypatch):
    monkeypatch.setattr(sys.modules["args.train_args"], "check_paths", lambda *_: None)
    args = paper.parse_paper_args(["table2", "--preset", preset])
    for method in read_table(args.rows, preset, competition.PUBLISHED).methods:
        if method.train:
            assert competition._training(args, method)[0].parent == Path("runs/paper/table2/training")
