"""--log_to: metrics and images arrive at each logger, and a resumed training continues the logger's run and the bytes of log.csv."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from args.train_args import parse_train_args
from ldm.logbook import Logbook
from ldm.util import UserError
from tests.refusals import refusal

TITLE = "with and without the prefix"


class StandIn:
    """Has the methods of Lightning's WandbLogger that a training calls; `runs` holds what each run received."""

    runs: dict[str, list] = {}

    def __init__(self, name, save_dir, version=None, *, project):
        self.id, self.experiment = version or f"{name}-{len(self.runs)}", self
        self.received = self.runs.setdefault(self.id, [])

    def log_hyperparams(self, arguments):
        self.received.append(arguments)

    def log_metrics(self, metrics, step):
        self.received.append((step, metrics))

    def log_image(self, key, images, step):
        self.received.append((step, key, *[image.size for image in images]))

    def finish(self, exit_code):
        self.received.append("failed" if exit_code else "finished")


@pytest.fixture
def stand_in(monkeypatch):
    """Stands for Weights & Biases where it is not installed."""
    monkeypatch.setitem(sys.modules, "pytorch_lightning", SimpleNamespace(loggers=SimpleNamespace(WandbLogger=StandIn)))
    monkeypatch.setattr("args.train_args.find_spec", lambda name: name)
    monkeypatch.setattr(StandIn, "runs", {})
    return StandIn


def train(folder: Path, *loggers: str, last: int = 4, fails_after: int = 0, resume: bool = True) -> None:
    """A training of `last` steps with an image at step 2 and a state after steps 2 and `last`; an error ends it after `fails_after`."""
    weights = torch.nn.Linear(1, 1)
    logbook = Logbook(folder, {"iterations": last}, log_to=loggers, resume=resume)
    with pytest.raises(KeyboardInterrupt) if fails_after else nullcontext(), logbook.open():
        for step in range(logbook.first_step + 1, last + 1):
            logbook.row(step, {"loss": 1 / step})
            if step == 2:
                logbook.image(step, Image.new("RGB", (6, 4)))
            if step in (2, last):
                logbook.save_state(step, weights, torch.optim.SGD(weights.parameters()))
            if step == fails_after:
                raise KeyboardInterrupt


def test_a_resumed_training_continues_the_loggers_run_and_the_bytes_of_the_log(tmp_path, stand_in):
    train(tmp_path / "whole", "csv")
    train(tmp_path / "failed", "csv", "wandb", fails_after=3)
    train(tmp_path / "failed", "csv", "wandb")
    assert (tmp_path / "failed/log.csv").read_bytes() == (tmp_path / "whole/log.csv").read_bytes()
    [(run, received)] = stand_in.runs.items()
    steps = [(step, {"loss": 1 / step}) for step in (1, 2, 3, 4)]  # step 3, after the state, was repeated and not sent again
    assert received == [{"iterations": 4}, *steps[:2], (2, TITLE, (6, 4)), steps[2], "failed", steps[3], "finished"]
    assert json.loads((tmp_path / "failed/runs.json").read_text()) == {"wandb": run}


def test_a_finished_training_starts_no_logger_and_a_new_one_has_a_run_of_its_own(tmp_path, stand_in):
    for again in ({}, {}, {"resume": False}):
        train(tmp_path, "wandb", **again)
    assert len(stand_in.runs) == 2
    assert not (tmp_path / "log.csv").read_bytes() and not (tmp_path / "tensorboard").exists()


def test_a_logger_that_is_added_later_receives_every_step_after_the_state(tmp_path, stand_in):
    train(tmp_path, "csv", fails_after=3)
    train(tmp_path, "csv", "wandb")
    assert [one[0] for one in next(iter(stand_in.runs.values())) if isinstance(one, tuple)] == [3, 4]


def test_a_part_without_log_keeps_the_rows_before_it(tmp_path, stand_in):
    train(tmp_path, "csv", last=3)
    train(tmp_path, "wandb", last=4)
    train(tmp_path, "csv", last=5)
    assert [row.split(",")[0] for row in (tmp_path / "log.csv").read_text().splitlines()] == ["step", "1", "2", "3", "5"]


def test_a_logger_that_cannot_start_is_named(tmp_path, stand_in, monkeypatch):
    monkeypatch.setattr(StandIn, "log_hyperparams", lambda self, arguments: self.not_logged_in)
    with pytest.raises(UserError, match="--log_to wandb cannot start a run .*not_logged_in.*leave it out"):
        train(tmp_path, "wandb")
    assert list(stand_in.runs.values()) == [["failed"]]  # its run does not stay open


@pytest.mark.parametrize(("given", "said"), [
    ("csv,comet", "got 'comet'; give some of tensorboard,csv,wandb,mlflow"), ("", "got ''; give some"),
    ("csv,mlflow", "mlflow is not installed; run: pip install mlflow")])
def test_a_wrong_or_missing_logger_is_refused(capsys, monkeypatch, given, said):
    monkeypatch.setattr("args.train_args.find_spec", lambda name: name if name == "tensorboard" else None)
    assert said in refusal(capsys, parse_train_args, ["--log_to", given])


def test_weights_and_biases_receives_metrics_and_images_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(tmp_path, "wandb", fails_after=2)
    train(tmp_path, "wandb")
    folders = list(tmp_path.glob("wandb/offline-run-*"))
    assert {folder.name.rpartition("-")[2] for folder in folders} == {json.loads((tmp_path / "runs.json").read_text())["wandb"]}
    assert all(list(folder.glob("*.wandb")) for folder in folders)
    assert [Image.open(path).size for path in tmp_path.glob(f"wandb/offline-run-*/files/media/images/{TITLE}*.png")] == [(6, 4)]


def test_mlflow_receives_metrics_and_images_in_the_runs_folder(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")  # mlflow-skinny lacks it
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    train(tmp_path, "csv", "mlflow", fails_after=3)
    client, run = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db"), json.loads((tmp_path / "runs.json").read_text())["mlflow"]
    assert client.get_run(run).info.status == "FAILED"
    train(tmp_path, "csv", "mlflow", last=5)
    assert [(metric.step, metric.value) for metric in client.get_metric_history(run, "loss")] == [(n, 1 / n) for n in range(1, 6)]
    assert client.get_run(run).data.params == {"iterations": "4"} and client.get_run(run).info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(run, "pictures")] == ["pictures/step-000002.png"]
