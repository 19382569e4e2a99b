"""Figure 5 on a tiny model: a stand-in trains (it writes checkpoints) and another recognises (a picture's mean colour is its face)."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from args.common import ROOT
from args.paper_args import CONFIGS, TABLES
from ldm.apl.launch import set_precision
from ldm.contents import digest_of
from ldm.device import Place
from ldm.edited_weights import write_edited_weights
from ldm.experiments import identity_table, pipeline
from ldm.experiments.new_people import read_new_people
from ldm.generation import generate
from ldm.images import read_image, write_image
from ldm.loading import ModelFiles, file_hash
from ldm.modules.embedding_file import write_embedding_file
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.paper.report.files import read_finished
from ldm.paper.report.numbers import ends
from ldm.paper.results.cells import read_cells
from ldm.paper.results.figure5 import Figure5
from ldm.paper.runner import attacks
from ldm.paper.runner.attacks import Attack, AttackOptions, AttackPlan, read_plan
from ldm.paper.runner.processes import Tools
from ldm.paper.runner.queue import make_all, whole
from ldm.paper.runner.trainings import Training
from ldm.util import UserError
from tests.scoring import ColorAnalyzer

CONFIG = CONFIGS / "figure5.yaml"
RED, GREEN, BLACK = (200, 0, 0), (0, 200, 0), (0, 0, 0)
EDITED = "model.diffusion_model.out.2.weight"
PLAN = AttackPlan(title="Learned later", section="4.4", remark="", n_people=2, n_photos=2, n_samples=2, iterations=2, every=1,
                  prompt="A portrait of {name}", token="sks", name="sks person",
                  attacks={"dreambooth": {"train": {"train_method": "dreambooth"}, "published": {"without": 0.53, "with": 0.43}},
                           "textual_inversion": {"train": {"train_method": "textual_inversion"}, "learned_through_prefix": True}})
BOTH = {"dreambooth": ["without", "with"], "textual_inversion": ["without"], "textual_inversion-through-prefix": ["with"]}


class Trainer:
    """Stands for run_script: writes the checkpoints of an attack and the class's pictures, and notes what it was given."""

    def __init__(self, model, ckpt_path):
        self.model, self.ckpt_path, self.trained = model, ckpt_path, {}

    def __call__(self, command, log, place, what):
        given = dict(zip(command[1::2], command[2::2], strict=True))
        folder, method = Path(given["--out_dir"]), given["--train_method"]
        handed_on = [path.name for path in folder.glob("drawn-*.pt")]
        self.trained[folder] = given | {"seen": sorted(path.name for path in Path(given["--photos"]).iterdir()), "handed_on": handed_on}
        for step in (1, 2):
            if method == "dreambooth":
                weights = {EDITED: self.model.get_parameter(EDITED) * (1 + step)}
                write_edited_weights(folder / f"dreambooth-{step}.safetensors", weights, base_model=file_hash(self.ckpt_path))
                (folder / "drawn-class.pt").touch()
            else:
                vector = torch.randn(1, 32, generator=torch.Generator().manual_seed(step))
                write_embedding_file(folder / f"textual_inversion-{step}.pt", {"sks": vector}, {"sks": 48136})
        (folder / "state.pt").touch()
        (folder / "cost.json").write_text("{}")


def picture(path: Path, color) -> None:
    write_image(path, np.full((8, 8, 3), color, np.uint8))


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two people of four photos: those to learn from are green, the held-out ones red."""
    for name in ("n000001", "n000002"):
        for number in range(1, 5):
            picture(tmp_path / "photos" / name / f"{number}.png", GREEN if number <= 2 else RED)
    return tmp_path / "photos"


@pytest.fixture
def trainer(tiny_model, tiny_files, monkeypatch) -> Trainer:
    trainer = Trainer(tiny_model, tiny_files[1])
    monkeypatch.setattr(attacks, "run_script", trainer)
    monkeypatch.setattr(identity_table, "FaceAnalyzer", ColorAnalyzer)
    return trainer


@pytest.fixture
def figure(photos, trainer, tiny_model, tiny_files, tmp_path):
    """Figure 5 of the tiny model: figure(seeds=1, prefix=file, plan's values, args' values)."""
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "fake.onnx").touch()
    preset = {"config_path": tiny_files[0], "ckpt_path": tiny_files[1], "face_pack": tmp_path / "faces", "precision": "fp32", "scale": 2,
              "test_id.ddim_steps": 2}
    (tmp_path / "tiny-preset.yaml").write_text(yaml.safe_dump({key: str(value) for key, value in preset.items()}))
    EmbeddingManager(tiny_model.cond_stage_model, num_vectors_per_token=3).save(tmp_path / "apl.pt")

    def made_up(seeds: int = 1, prefix: Training | Path = tmp_path / "apl.pt", **changes) -> Figure5:
        args = {"preset": str(tmp_path / "tiny-preset.yaml"), "out_dir": tmp_path / "out", "photos": photos, "keep_checkpoints": False}
        plan = replace(PLAN, **{key: value for key, value in changes.items() if key not in args})
        args |= {key: value for key, value in changes.items() if key in args}
        return Figure5(plan, AttackOptions(**args), [prefix] * seeds)
    return made_up


@pytest.fixture(scope="module")
def tools() -> Tools:
    return Tools(Place("cpu"))


def pieces(figure: Figure5) -> list[Attack]:
    return whole([piece for seed in range(figure.seeds) for piece in figure.pieces(seed)])


def paint(figure: Figure5, color_of) -> None:
    """Pictures in place of those that a model would draw: `color_of` (name, curve, iteration, sample)."""
    for piece in pieces(figure):
        for curve, iteration, paths in piece.images():
            for sample, path in enumerate(paths):
                picture(path, color_of(piece.name, curve, iteration, sample))


def left(out_dir: Path) -> list[str]:
    """Checkpoints and states."""
    return sorted(path.name for path in out_dir.rglob("*") if path.suffix in (".safetensors", ".pt") and "drawn" not in path.name)


def test_the_curves_of_pictures_whose_faces_are_known(figure, tools, trainer, tmp_path):
    made = figure()

    def color_of(name, curve, iteration, sample):  # strangers first; in the end the person, with the prefix in the second picture alone
        if iteration < 2 or (curve.endswith("with") and sample == 0):
            return GREEN
        return BLACK if (name, curve) == ("n000002", "dreambooth, with") else RED

    paint(made, color_of)
    make_all(pieces(made), tools)
    console = made.write({"devices": "cpu", "what": ["figure5"]})
    assert trainer.trained == {}
    cells = {(row, column): cell for (_, row, column), cell in read_cells(tmp_path / "out", ["figure5"]).items()}
    rows = [f"{attack}, {label}, {iteration}" for attack in PLAN.attacks for label in ("without", "with") for iteration in range(3)]
    assert list(cells) == [(row, column) for row in rows for column in ("ID-ACC", "max", "faces")]
    assert [cells[f"dreambooth, without, {iteration}", "ID-ACC"].mean for iteration in range(3)] == pytest.approx([0, 0, 1])
    # n000001: 0 and 1, a mean of 1/2; n000002: 0 and no face. Over both people 1/4; the best pictures 1 and 0.
    end = [cells["dreambooth, with, 2", column] for column in ("ID-ACC", "max", "faces")]
    assert [cell.mean for cell in end] == pytest.approx([1 / 4, 1 / 2, 3 / 4]) and (end[0].low, end[0].high) == pytest.approx((0, 1 / 2))
    published = {place: cell.published for place, cell in cells.items() if cell.published is not None}
    assert published == {("dreambooth, without, 2", "ID-ACC"): 0.53, ("dreambooth, with, 2", "ID-ACC"): 0.43}
    assert "dreambooth, with, 2" in console and "dreambooth, with, 1" not in console
    with (tmp_path / "out" / "figure5" / "figure5-people.csv").open() as file:
        people = [row for row in csv.DictReader(file) if (row["name"], row["curve"]) == ("n000002", "dreambooth, with, 2")]
    assert [(row["n_faces"], row["mean"]) for row in people] == [("1", "0.0")]
    about = json.loads((tmp_path / "out" / "figure5" / "about.json").read_text())
    assert [row["name"] for row in about["rows"]] == rows and about["columns"] == ["ID-ACC", "max", "faces"]
    assert len(about["spent"]) == 2 and about["rows"][0]["commands"][0].endswith("--n_people 2 --n_photos 2 --n_samples 2")
    assert all((tmp_path / "out" / "figure5" / name).exists() for name in ("figure5.csv", "figure5.md", "figure5.png"))
    finished = read_finished(tmp_path / "out")["figure5"]
    assert ends(finished) == [row for row in rows if row.endswith("2")] and all(finished.cell(row, "ID-ACC") for row in rows)
    sheet = read_image(tmp_path / "out" / "figure5" / "figure5-pictures.png")
    assert (sheet == RED).all(axis=2).any() and (sheet == GREEN).all(axis=2).any()


def test_a_further_seed_takes_the_next_people_and_the_interval_is_over_the_seeds(figure, tools):
    made = figure(seeds=2, n_people=1)
    assert [(piece.name, piece.seed) for piece in pieces(made)] == [("n000001", 0), ("n000002", 1)]
    paint(made, lambda name, *_: RED if name == "n000001" else GREEN)
    make_all(pieces(made), tools)
    cell = made.cells["dreambooth, without, 0", "ID-ACC"]
    assert cell.values == pytest.approx((1, 0)) and (cell.mean, cell.sd) == pytest.approx((1 / 2, 0.5**0.5))
    assert (1 / 2 - cell.low, cell.high - 1 / 2) == pytest.approx((12.706 / 2, 12.706 / 2), rel=0.3) and cell.n_seeds == 2  # Student's t


def test_where_nobody_has_a_face_there_is_no_cosine(figure, tools, photos):
    (photos / "n000001" / "3.png").write_bytes(b"\x89PNG cut")  # a held-out photo is passed over
    made = figure(n_people=1)
    paint(made, lambda *_: BLACK)
    make_all(pieces(made), tools)
    assert ("dreambooth, with, 2", "ID-ACC") not in made.cells and made.cells["dreambooth, with, 2", "faces"].mean == 0
    made.write({})


def test_after_the_last_person_the_first_is_taken_again(photos):
    picture(photos / "n000003" / "1.png", GREEN)
    picture(photos / "n000003" / "2.png", RED)
    assert [list(read_new_people(photos, 2, 1, seed)) for seed in range(3)] == [
        ["n000001", "n000002"], ["n000003", "n000001"], ["n000002", "n000003"]]


def test_an_attack_sees_the_learned_photos_alone_and_the_prefix_only_where_it_learns_through_it(figure, tools, trainer, photos, tmp_path):
    made = figure()
    make_all(pieces(made), tools)
    assert set(trainer.trained) == {piece.folder / training for piece in pieces(made) for training in BOTH}
    for folder, given in trainer.trained.items():
        assert given["seen"] == ["1.png", "2.png"] and not any(str(photos) in value for value in given.values() if isinstance(value, str))
        assert given.get("--embedding") == (str(tmp_path / "apl.pt") if "through" in folder.name else None)
        assert (given["--save_every"], given["--iterations"], given["--token"], given["--devices"]) == ("1", "2", "sks", "cpu")


def test_a_gpu_is_free_for_a_training_beside_the_process_that_draws(figure, tools, monkeypatch):
    flags = pieces(figure())[0]
    first = tools.model(flags.files, flags.precision)
    tools.release()
    assert tools.model(flags.files, flags.precision) is first  # the CPU has room for both
    monkeypatch.setattr(tools, "device", SimpleNamespace(type="cuda"))
    tools.release()
    monkeypatch.undo()
    assert tools.model(flags.files, flags.precision) is not first


def test_the_class_s_pictures_are_drawn_for_the_first_person_and_handed_on(figure, tools, trainer):
    made = figure(attacks={"dreambooth": PLAN.attacks["dreambooth"]})
    make_all(pieces(made), tools)
    assert [given["handed_on"] for given in trainer.trained.values()] == [[], ["drawn-class.pt"]]
    place = pieces(made)[0].folder.parent
    assert place.name == "seed-0" and list(place.rglob("drawn-*.pt")) == [place / "drawn-class.pt"]


def test_a_killed_run_goes_on_and_nothing_is_made_twice(figure, tools, trainer, tmp_path, monkeypatch):
    drawn, draw_jobs, out_dir = [], pipeline.Pipeline.generate, tmp_path / "out"

    def fails(*given, **options):
        for job, image in draw_jobs(*given, **options):
            if len(drawn) == 5:
                raise OSError("No space left on device")
            drawn.append(job)
            yield job, image

    monkeypatch.setattr(pipeline.Pipeline, "generate", fails)
    with pytest.raises(OSError, match="No space left"):  # between the training and the last of its 12 pictures
        make_all(pieces(figure(n_people=1)), tools)
    there = {path: path.stat().st_mtime_ns for path in out_dir.rglob("pictures/**/*.png")}
    assert len(there) in (5, 6) and left(out_dir) == ["dreambooth-1.safetensors", "dreambooth-2.safetensors", "state.pt"]
    monkeypatch.setattr(pipeline.Pipeline, "generate", draw_jobs)
    make_all(pieces(figure(n_people=1)), tools)
    assert {path: path.stat().st_mtime_ns for path in there} == there and len(trainer.trained) == 3
    assert len(list(out_dir.rglob("pictures/**/*.png"))) == 2 * 2 * 3 * 2 and len(list(out_dir.rglob("cost.json"))) == 3
    assert left(out_dir) == []

    monkeypatch.setattr(Attack, "make", lambda *_: pytest.fail("what is finished was made again"))
    make_all(pieces(figure(n_people=1)), tools)


def test_a_training_that_was_killed_is_started_again_as_it_was(figure, tools, trainer, monkeypatch):
    def killed(command, log, place, what):
        trainer(command, log, place, what)
        for path in [*log.parent.glob("*-2.*"), log.parent / "cost.json"]:
            path.unlink()
        raise UserError("killed")

    monkeypatch.setattr(attacks, "run_script", killed)
    with pytest.raises(UserError, match="killed"):
        make_all(pieces(figure(n_people=1)), tools)
    (folder, before), = trainer.trained.items()
    assert (folder / "state.pt").exists()
    monkeypatch.setattr(attacks, "run_script", trainer)
    make_all(pieces(figure(n_people=1)), tools)
    assert trainer.trained[folder] | {"handed_on": []} == before


def test_checkpoints_that_a_killed_run_left_go_and_what_is_kept_stays(figure, tools, trainer, tmp_path):
    make_all(pieces(figure(n_people=1, keep_checkpoints=True)), tools)
    assert len(left(tmp_path / "out")) == 2 + 4 + 3
    next((tmp_path / "out").rglob("faces.json")).unlink()  # as if killed after the last picture
    trainer.trained.clear()
    make_all(pieces(figure(n_people=1)), tools)
    assert left(tmp_path / "out") == [] and trainer.trained == {}


def test_a_picture_that_is_lost_after_its_checkpoint_is_made_by_a_new_training(figure, tools, trainer):
    made = figure(n_people=1)
    make_all(pieces(made), tools)
    piece, = pieces(made)
    lost = piece.folder / "pictures" / "dreambooth, with" / "2" / "1.png"
    before = lost.read_bytes()
    lost.unlink()
    (piece.folder / "faces.json").unlink()
    trainer.trained.clear()
    make_all(pieces(figure(n_people=1)), tools)
    assert [folder.name for folder in trainer.trained] == ["dreambooth"] and lost.read_bytes() == before


def test_a_missing_checkpoint_is_not_drawn_as_the_model_before_the_attack(figure, tools, trainer, monkeypatch):
    def loses(command, log, place, what):
        trainer(command, log, place, what)
        (log.parent / "dreambooth-1.safetensors").unlink()

    monkeypatch.setattr(attacks, "run_script", loses)
    with pytest.raises(UserError, match="dreambooth has no checkpoint of iteration 1; delete the folder"):
        make_all(pieces(figure(n_people=1)), tools)


def test_pictures_are_those_of_the_checkpoint_with_the_prefix_in_front(figure, tools, tiny_files, tmp_path):
    made = figure(n_people=1, keep_checkpoints=True)
    make_all(pieces(made), tools)
    piece, = pieces(made)
    jobs = [("A portrait of sks person", sample) for sample in range(2)]

    def same(curve: str, iteration: int, model, manager=None) -> bool:
        set_precision(model, "fp32")
        images = [image for _, image in generate(model, jobs, embedding_manager=manager, ddim_steps=2, scale=2.0, batch_size=16)]
        folder = piece.folder / "pictures" / curve / str(iteration)
        return all(np.array_equal(read_image(folder / f"{sample}.png"), image) for sample, image in enumerate(images))

    model = ModelFiles(*tiny_files).load()
    assert same("dreambooth, without", 0, model) and same("textual_inversion, without", 0, model)
    manager = EmbeddingManager(model.cond_stage_model, ["alz", "sks"], num_vectors_per_token=1)
    manager.load(tmp_path / "apl.pt")
    manager.load(piece.folder / "textual_inversion-through-prefix" / "textual_inversion-2.pt")
    assert same("textual_inversion, with", 2, model, manager)
    assert not same("textual_inversion, with", 1, model, manager)  # another vector
    edited = ModelFiles(*tiny_files, edited_weights=piece.folder / "dreambooth" / "dreambooth-1.safetensors").load()
    assert same("dreambooth, without", 1, edited) and not same("dreambooth, with", 1, edited)


def test_other_settings_photos_and_prefixes_have_other_folders(figure, photos, tmp_path):
    def folders(**changes) -> list[Path]:
        return [piece.folder for piece in pieces(figure(**changes)) if isinstance(piece, Attack)]

    before = folders()
    assert folders(n_people=1) == before[:1] and folders(n_samples=1) != before
    first, second = (Training(tmp_path / f"apl-seed-0-{digest}", [], 1.0) for digest in ("00000000", "11111111"))
    assert len({*before, *folders(prefix=first), *folders(prefix=second)}) == 6
    picture(photos / "n000001" / "2.png", RED)
    (photos / "n000002" / "4.png").unlink()
    after = folders()
    assert after[0] != before[0] and after[1] != before[1] and after[0].parent == before[0].parent


def test_a_digest_is_the_same_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    here = digest_of({"face_pack": Path("data/mini/faces"), "benchmark": [Path("data/mini/prompts.txt")]})
    monkeypatch.chdir(tmp_path)
    assert digest_of({"face_pack": ROOT / "data/mini/faces", "benchmark": [ROOT / "data/mini/prompts.txt"]}) == here
    assert digest_of({"face_pack": Path("data/mini/faces"), "benchmark": [ROOT / "data/mini/prompts.txt"]}) != here


def test_the_training_of_the_prefix_comes_before_the_attacks(figure, tmp_path):
    training = Training(tmp_path / "apl-seed-0-00000000", [], 1.0)
    assert [isinstance(piece, Training) for piece in pieces(figure(prefix=training))] == [True, False, False]


def test_what_cannot_serve_is_refused_before_any_training(figure, tools, trainer, photos, tiny_xl_files, tiny_files, tmp_path):
    with pytest.raises(UserError, match="the person shown by .*1.png is unknown; put it into a sub-folder"):
        figure(photos=photos / "n000001")
    with pytest.raises(UserError, match="photos of 2 people where 3 are asked for"):
        figure(n_people=3)
    with pytest.raises(UserError, match="n000001 has 4 photos, and 4 for training leave none"):
        figure(n_photos=4)
    write_edited_weights(tmp_path / "esd.safetensors", {EDITED: torch.zeros(4, 32, 3, 3)}, base_model=file_hash(tiny_files[1]))
    with pytest.raises(UserError, match="esd.safetensors"):
        figure(prefix=tmp_path / "esd.safetensors")
    preset = {"like": str(tmp_path / "tiny-preset.yaml"), "config_path": str(tiny_xl_files[0]), "ckpt_path": str(tiny_xl_files[1])}
    (tmp_path / "xl.yaml").write_text(yaml.safe_dump(preset))
    with pytest.raises(UserError, match="teaches tokens to one text encoder, and .*tiny-xl.yaml has two"):
        figure(preset=str(tmp_path / "xl.yaml"))
    for number in (3, 4):
        picture(photos / "n000002" / f"{number}.png", BLACK)
    with pytest.raises(UserError, match="no face was found in any of the 2 photos, see .*n000002"):
        make_all(pieces(figure())[1:], tools)
    assert not trainer.trained


def test_damaged_rows_are_named(figure):
    piece, = pieces(figure(n_people=1))
    piece.folder.mkdir(parents=True)
    (piece.folder / "faces.json").touch()
    with pytest.raises(UserError, match="faces.json is damaged .*delete it, and the same command creates it again"):
        assert piece.found["faces"]


def test_the_shipped_plan_has_the_papers_values_and_a_broken_one_is_refused(tmp_path):
    plan = read_plan(CONFIG, n_people=8, n_photos=None)
    assert (plan.n_people, plan.n_photos, plan.checkpoints) == (8, 5, [100, 200, 300, 400, 500, 600, 700, 800])
    assert plan.subject == "A close-up portrait of sks person" and list(plan.attacks) == ["dreambooth", "textual_inversion"]
    assert read_plan(CONFIG).n_people == 50 and "figure5" in TABLES
    text = CONFIG.read_text()
    for content in ("n_people: [", "n_people: 3", "- 1", text.replace("every: 100", "every: 0"), text.replace("every: 100", "every: 300"),
                    text.replace("{train: {train_method: dreambooth}, published: {without: 0.53, with: 0.43}}", "")):
        (tmp_path / "plan.yaml").write_text(content)
        with pytest.raises(UserError, match="is not a plan of Figure 5"):
            read_plan(tmp_path / "plan.yaml")
