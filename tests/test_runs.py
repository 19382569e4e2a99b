"""Trainings in processes of their own, with a script that stands for train.py: which are run, on what, and what ends them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ldm.apl.workers import STARTED_BY
from ldm.paper import runs
from ldm.paper.runs import Place, places, train_missing
from ldm.util import UserError

ROOT = Path(__file__).resolve().parents[1]
STAND_IN = """
import json, os, pathlib, sys, time
flags = dict(word.split("=") for word in sys.argv[1:] if "=" in word)
out_dir = pathlib.Path(sys.argv[sys.argv.index("--out_dir") + 1])
print("50%|#####\\rerror: first", end="\\r")
if "fail" in flags:
    time.sleep(0.1)
    print("error: the data is not there; give other data", file=sys.stderr)
    sys.exit(2)
time.sleep(float(flags.get("seconds", 0)))
said = {"flags": sys.argv, "threads": os.environ.get("OMP_NUM_THREADS"), "at": time.time(), "by": os.environ["APL_STARTED_BY"]}
(out_dir / "cost.json").write_text(json.dumps(said))
"""


@pytest.fixture(autouse=True)
def stand_in(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text(STAND_IN)
    monkeypatch.setattr(runs, "TRAIN", tmp_path / "train.py")
    monkeypatch.setattr(runs, "LOOK_EVERY", 0.02)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def said(out_dir: Path) -> dict:
    return json.loads((out_dir / "cost.json").read_text())


def test_what_is_missing_is_trained_once_with_its_flags_and_its_threads(tmp_path):
    asked = {tmp_path / name: [f"name={name}"] for name in ("a", "b", "c")}
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "cost.json").write_text("{}")
    train_missing(asked, devices="cpu:1", label="runs")
    assert said(tmp_path / "b") == {} and not (tmp_path / "b" / "train.log").exists()
    for name in ("a", "c"):
        assert said(tmp_path / name)["flags"][1:] == ["--out_dir", str(tmp_path / name), "--devices", "cpu", f"name={name}"]
        assert said(tmp_path / name)["threads"] == str(len(os.sched_getaffinity(0))) and said(tmp_path / name)["by"] == str(os.getpid())
    before = said(tmp_path / "a")
    train_missing(asked, devices="cpu:1", label="runs")
    assert said(tmp_path / "a") == before


def test_as_many_run_at_once_as_there_are_places(tmp_path):
    train_missing({tmp_path / name: ["seconds=0.4"] for name in ("a", "b")}, devices="cpu:2", label="runs")
    assert abs(said(tmp_path / "a")["at"] - said(tmp_path / "b")["at"]) < 0.4


def test_places_are_those_of_the_flag(monkeypatch):
    assert [place.flags for place in places("0,3")][::-1] == [["--devices", "0"], ["--devices", "3"]]
    assert places("auto") == [Place(["--devices", "auto"])] and places("cpu") == [Place(["--devices", "cpu"])]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [place.environment for place in places("cpu:2")] == [{"OMP_NUM_THREADS": "3"}] * 2


def test_the_sentence_of_a_failed_training_is_passed_on_and_the_others_end(tmp_path):
    asked = {tmp_path / "a": ["fail=yes"], tmp_path / "b": ["seconds=0.5"], tmp_path / "c": []}
    with pytest.raises(UserError, match=r"the training in .*a ended with status 2 \(the data is not there; give other data\); correct"):
        train_missing(asked, devices="cpu:2", label="runs")
    assert (tmp_path / "b" / "cost.json").exists() and not (tmp_path / "c").exists()
    train_missing({tmp_path / "a": [], tmp_path / "c": []}, devices="cpu:2", label="runs")
    assert (tmp_path / "a" / "cost.json").exists() and (tmp_path / "c" / "cost.json").exists()


def test_a_training_without_a_result_has_failed(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text("")
    with pytest.raises(UserError, match=r"ended with status 0 \(it said nothing\)"):
        train_missing({tmp_path / "a": []}, devices="cpu", label="runs")


def test_a_stop_by_the_user_ends_the_trainings(tmp_path, monkeypatch):
    started = []
    start = runs._start
    monkeypatch.setattr(runs, "_start", lambda *given: started.append(start(*given)) or started[-1])

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_missing({tmp_path / name: ["seconds=60"] for name in ("a", "b")}, devices="cpu:2", label="runs")
    assert [process.returncode for process in started] == [-signal.SIGTERM] * 2


def test_a_process_ends_with_the_one_that_started_it():
    code = "import time; from ldm.apl.workers import end_with_starter; end_with_starter(); print('here', flush=True); time.sleep(60)"
    starter = subprocess.Popen([sys.executable, "-c", (
        "import os, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {code!r}], env=os.environ | {{{STARTED_BY!r}: str(os.getpid())}})\ntime.sleep(60)")],
        cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert starter.stdout.readline() == "here\n"
    starter.kill()
    starter.communicate(timeout=30)  # ends when nobody can write there any more
