"""Figure 5 on a tiny model: stand-ins train (they write checkpoints) and recognise (a picture's mean colour is its face)."""

import argparse
import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from ldm.apl.launch import set_precision
from ldm.edited_weights import write_edited_weights
from ldm.generation import generate
from ldm.loading import ModelFiles, file_hash
from ldm.modules.embedding_file import write_embedding_file
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.paper import attack_pictures, figure5
from ldm.paper.attack_runs import CONFIG, AttackPlan, attack_runs, frozen_run, read_plan
from ldm.paper.figure5 import Curves
from ldm.paper.identity import Drawing
from ldm.paper.new_people import read_new_people, true_faces
from ldm.pictures import read_image, write_image
from ldm.util import UserError

RED, GREEN, BLACK = (200, 0, 0), (0, 200, 0), (0, 0, 0)
EDITED = "model.diffusion_model.out.2.weight"
PLAN = AttackPlan(n_people=2, n_photos=2, n_samples=2, iterations=2, every=1, prompt="A portrait of {name}", token="sks", name="sks person",
            seed=0, attacks={"dreambooth": {"train": {"train_method": "dreambooth"}, "published": {"without": 0.53, "with": 0.43}},
                             "textual_inversion": {"train": {"train_method": "textual_inversion"}, "learned_through_prefix": True}})


class ColorAnalyzer:
    """Stands for FaceAnalyzer: black has no face."""

    def __init__(self, *_, **__):
        pass

    def fingerprint(self):
        return "colours"

    def analyze(self, image):
        color = image.reshape(-1, 3).mean(axis=0)
        return SimpleNamespace(embedding=(color / np.linalg.norm(color)).astype(np.float32)) if color.any() else None


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
def command(photos, tiny_model, tiny_files, tmp_path, monkeypatch):
    """figure5's args: command(**changes); the plan's file is args.config."""
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "fake.onnx").touch()
    preset = {"config_path": tiny_files[0], "ckpt_path": tiny_files[1], "face_pack": tmp_path / "faces", "precision": "fp32", "scale": 2,
              "test_id.ddim_steps": 2}
    (tmp_path / "tiny-preset.yaml").write_text(yaml.safe_dump({key: str(value) for key, value in preset.items()}))
    (tmp_path / "figure5.yaml").write_text(yaml.safe_dump(vars(PLAN)))
    EmbeddingManager(tiny_model.cond_stage_model, num_vectors_per_token=3).save(tmp_path / "apl.pt")
    monkeypatch.setattr(figure5, "FaceAnalyzer", ColorAnalyzer)
    monkeypatch.setattr(figure5, "draw_curves", lambda *_: None)  # takes a second; the first test draws them

    def run(**changes) -> None:
        args = {"preset": str(tmp_path / "tiny-preset.yaml"), "out_dir": tmp_path / "out", "devices": "cpu", "resume": True,
                "photos": photos, "embedding": tmp_path / "apl.pt", "n_people": None, "n_photos": None, "n_samples": None,
                "keep_checkpoints": False}
        figure5.figure5(argparse.Namespace(**args | changes), tmp_path / "figure5.yaml")
    return run


class Trainer:
    """Stands for train_missing: writes both checkpoints of each run, and notes what each training was given."""

    def __init__(self, model, ckpt_path):
        self.model, self.ckpt_path, self.trained = model, ckpt_path, {}

    def __call__(self, runs, *, devices, label):
        for folder, flags in runs.items():
            if (folder / "cost.json").exists():
                continue
            given = dict(zip(flags[::2], flags[1::2], strict=True))
            self.trained[folder] = given | {"seen": sorted(path.name for path in Path(given["--photos"]).iterdir())}
            for step in (1, 2):
                if given["--train_method"] == "dreambooth":
                    weights = {EDITED: self.model.get_parameter(EDITED) * (1 + step)}
                    write_edited_weights(folder / f"dreambooth-{step}.safetensors", weights, base_model=file_hash(self.ckpt_path))
                else:
                    vector = torch.randn(1, 32, generator=torch.Generator().manual_seed(step))
                    write_embedding_file(folder / f"textual_inversion-{step}.pt", {"sks": vector}, {"sks": 48136})
            (folder / "state.pt").touch()
            (folder / "cost.json").write_text("{}")


@pytest.fixture
def trainer(tiny_model, tiny_files, monkeypatch) -> Trainer:
    trainer = Trainer(tiny_model, tiny_files[1])
    monkeypatch.setattr(figure5, "train_missing", trainer)
    return trainer


def left(out_dir: Path) -> list[str]:
    """The checkpoints and states in a folder."""
    found = (*out_dir.rglob("*.safetensors"), *out_dir.glob("[dt]*/**/*.pt"))
    return sorted(str(path.relative_to(out_dir)) for path in found)


def test_the_curve_on_pictures_whose_faces_are_known(photos, tmp_path, monkeypatch):
    prefix, out_dir, drawing = tmp_path / "apl.pt", tmp_path / "out", Drawing("m", "c", PLAN.prompt, 0, 2.0, 2, "fp32")
    prefix.write_bytes(b"prefix")
    people = read_new_people(photos, 2, 2)
    gallery = true_faces(people, ColorAnalyzer(), out_dir, n_photos=2)
    assert gallery["n000001"] == pytest.approx([1, 0, 0])  # of the held-out photos alone
    frozen = frozen_run(PLAN, drawing, prefix, out_dir, resume=True)
    runs = attack_runs(PLAN, people, drawing, prefix, out_dir, preset="mini", resume=True)
    colors = {0: GREEN, 1: GREEN, 2: RED}  # a stranger, a stranger, the person
    for run in (frozen, *runs):
        for label in run.prefixes:
            for iteration in run.iterations:
                first, second = run.paths(label, iteration)
                picture(first, colors[iteration] if label == "none" else GREEN)
                picture(second, BLACK if run.name == "n000002" and run.attack == "dreambooth" else colors[iteration])
    rows = Curves(PLAN, prefix, frozen, runs, people, gallery, ColorAnalyzer(), 0.3).write(out_dir)
    of = {(row["attack"], Path(row["prefix"]).stem, row["iteration"]): row for row in rows}
    assert len(rows) == 2 * 2 * 3
    assert [of["dreambooth", "none", iteration]["id_acc_mean"] for iteration in range(3)] == pytest.approx([0, 0, 1])
    # n000001: 0 and 1, a mean of 1/2; n000002: 0 and no face. Over both people 1/4; the best pictures 1 and 0.
    end = of["dreambooth", "apl", 2]
    assert (end["id_acc_mean"], end["id_acc_max"], end["detection_rate"], end["tar"]) == pytest.approx((1 / 4, 1 / 2, 3 / 4, 1 / 3))
    assert (end["n_identities"], end["n_images"], end["published"]) == (2, 4, 0.43)
    assert (end["id_acc_low"], end["id_acc_high"]) == pytest.approx((0, 1 / 2)) and of["dreambooth", "apl", 1]["published"] is None
    assert json.loads((out_dir / "results.json").read_text()) == rows
    with (out_dir / "figure5-identities.csv").open() as file:
        people = [row for row in csv.DictReader(file) if row["name"] == "n000002" and row["iteration"] == "2"]
    assert [row["n_faces"] for row in people] == ["1", "1", "2", "2"] and len(people) == 4
    assert all((out_dir / name).exists() for name in ("figure5.csv", "figure5.md", "figure5a.png", "figure5b.png"))


def test_an_attack_sees_the_learned_photos_alone_and_the_prefix_only_where_it_learns_through_it(command, trainer, photos, tmp_path):
    command()
    trainings = {str(folder.relative_to(tmp_path / "out")) for folder in trainer.trained}
    assert trainings == {f"{attack}/{name}" for attack in ("dreambooth", "textual_inversion", "textual_inversion-through-apl")
                         for name in ("n000001", "n000002")}
    for folder, given in trainer.trained.items():
        assert given["seen"] == ["1.png", "2.png"] and not any(str(photos) in value for value in given.values() if isinstance(value, str))
        assert given.get("--embedding") == (str(tmp_path / "apl.pt") if "through" in str(folder) else None)


def test_checkpoints_go_when_their_pictures_are_there_and_a_resumed_run_does_nothing_twice(command, trainer, tmp_path, monkeypatch):
    drawn, draw_jobs = [], attack_pictures.draw_jobs

    def fails(*given, **options):
        for job, image in draw_jobs(*given, **options):
            if len(drawn) == 13:  # 4 before any attack, 9 of the first person
                raise OSError("No space left on device")
            drawn.append(job)
            yield job, image

    monkeypatch.setattr(attack_pictures, "draw_jobs", fails)
    with pytest.raises(OSError, match="No space left"):
        command()
    there = set((tmp_path / "out" / "pictures").rglob("*.png"))
    assert len(there) in (13, 14) and len(left(tmp_path / "out")) == 2 + 2 + 2 + 3 and len(trainer.trained) == 3

    def counts(*given, **options):
        for job, image in draw_jobs(*given, **options):
            drawn.append(job)
            yield job, image

    written = {path: path.stat().st_mtime_ns for path in there}
    monkeypatch.setattr(attack_pictures, "draw_jobs", counts)
    command()
    assert {path: path.stat().st_mtime_ns for path in there} == written
    assert len(list((tmp_path / "out" / "pictures").rglob("*.png"))) == 4 + 2 * (8 + 4 + 4) and len(trainer.trained) == 6
    assert left(tmp_path / "out") == [] and len(list((tmp_path / "out").rglob("cost.json"))) == 6
    monkeypatch.setattr(ModelFiles, "load", lambda *_: pytest.fail("a model was loaded where nothing is left to draw"))
    monkeypatch.setattr(figure5, "train_missing", lambda runs, **_: runs and pytest.fail("something was trained twice"))
    command()


def test_a_picture_that_is_lost_after_its_checkpoint_is_made_by_a_new_training(command, trainer, tmp_path):
    command(n_people=1)
    lost = tmp_path / "out" / "pictures" / "dreambooth" / "n000001" / "images" / "apl" / "2" / "1.png"
    before = lost.read_bytes()
    lost.unlink()
    trainer.trained.clear()
    command(n_people=1)
    assert [folder.parts[-2:] for folder in trainer.trained] == [("dreambooth", "n000001")] and lost.read_bytes() == before


def test_pictures_are_those_of_the_checkpoint_with_the_prefix_in_front(command, trainer, tiny_files, tmp_path):
    command(n_people=1, keep_checkpoints=True)
    out_dir, drawing = tmp_path / "out", {"ddim_steps": 2, "scale": 2.0, "batch_size": 16}
    jobs = [("A portrait of sks person", sample) for sample in range(2)]

    def same(run: str, prefix: str, iteration: int, model, manager=None) -> bool:
        set_precision(model, "fp32")
        images = [image for _, image in generate(model, jobs, embedding_manager=manager, **drawing)]
        folder = out_dir / "pictures" / run / "n000001" / "images" / prefix / str(iteration)
        return all(np.array_equal(read_image(folder / f"{sample}.png"), image) for sample, image in enumerate(images))

    model = ModelFiles(*tiny_files).load()
    manager = EmbeddingManager(model.cond_stage_model, ["alz", "sks"], num_vectors_per_token=1)
    manager.load(tmp_path / "apl.pt")
    manager.load(out_dir / "textual_inversion-through-apl" / "n000001" / "textual_inversion-2.pt")
    assert same("textual_inversion-through-apl", "apl", 2, model, manager)
    assert not same("textual_inversion-through-apl", "apl", 1, model, manager)  # another vector
    edited = ModelFiles(*tiny_files, edited_weights=out_dir / "dreambooth" / "n000001" / "dreambooth-1.safetensors").load()
    assert same("dreambooth", "none", 1, edited) and not same("dreambooth", "apl", 1, edited)


def test_other_photos_or_another_training_in_the_same_folder_are_refused(command, trainer, photos, tmp_path):
    command()
    with pytest.raises(UserError, match="photos .*--no-resume"):
        command(n_photos=1)
    for name, rate in (("n000001", 1e-6), ("n000002", 2e-6)):
        record = {"learned_from": {"lr": rate, "data": name, "devices": "cpu"}}
        (tmp_path / "out" / "dreambooth" / name / "arguments.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="n000002 was trained in another way than .*n000001 .lr 2e-06 instead of 1e-06"):
        command()
    trainer.trained.clear()
    command(resume=False)
    assert len(trainer.trained) == 6


def test_photos_that_cannot_serve_are_refused(command, photos):
    with pytest.raises(UserError, match="nothing says whom .*1.png shows; put it into a sub-folder"):
        command(photos=photos / "n000001")
    with pytest.raises(UserError, match="photos of 2 people where 3 are asked for"):
        command(n_people=3)
    with pytest.raises(UserError, match="n000001 has 4 photos, and 4 to learn from leave none"):
        command(n_photos=4)
    for number in (3, 4):
        picture(photos / "n000002" / f"{number}.png", BLACK)
    with pytest.raises(UserError, match="no face was found in the held-out photos of n000002"):
        command()


def test_a_file_that_is_no_prefix_is_refused_before_any_training(command, trainer, tiny_files, tmp_path):
    write_edited_weights(tmp_path / "esd.safetensors", {EDITED: torch.zeros(4, 32, 3, 3)}, base_model=file_hash(tiny_files[1]))
    with pytest.raises(UserError, match="esd.safetensors"):
        command(embedding=tmp_path / "esd.safetensors")
    assert not trainer.trained


def test_the_shipped_plan_has_the_papers_values_and_a_broken_one_is_refused(tmp_path):
    plan = read_plan(CONFIG)
    assert (plan.n_people, plan.checkpoints) == (50, [100, 200, 300, 400, 500, 600, 700, 800])
    assert plan.subject == "A close-up portrait of sks person" and list(plan.attacks) == ["dreambooth", "textual_inversion"]
    for content in ("n_people: [", "n_people: 3", "- 1"):
        (tmp_path / "plan.yaml").write_text(content)
        with pytest.raises(UserError, match="is no plan of Figure 5"):
            read_plan(tmp_path / "plan.yaml")
