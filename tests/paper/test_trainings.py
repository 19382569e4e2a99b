"""Trainings and transfers as pieces of work: which flags are one training, what came out of it, and how its process ends."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from ldm import contents
from ldm.apl.workers import STARTED_BY
from ldm.device import Place, places
from ldm.paper.runner import trainings
from ldm.paper.runner.trainings import last_words, run_script, training, transfer
from ldm.util import UserError

ROOT = Path(__file__).resolve().parents[2]
OUT = Path("out")
SAID = """
import json, os, pathlib, sys
print("50%|#####", end="\\r")
out_dir = pathlib.Path(sys.argv[sys.argv.index("--out_dir") + 1])
if "--fail" in sys.argv:
    print("error: the data is not there; give other data.", file=sys.stderr)
    sys.exit(2)
said = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "APL_STARTED_BY", "PYTHONPATH")}
(out_dir / "cost.json").write_text(json.dumps({"flags": sys.argv[1:]} | said))
"""


@pytest.fixture
def preset(tmp_path):
    """A preset like mini with these values: preset(name, **values)."""
    def preset(name="own", **values):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"like": "mini"} | {key: str(value) for key, value in values.items()}))
        return str(path)
    return preset


def folder_of(preset="mini", seed=0, out_dir=OUT, **train) -> Path:
    return training(out_dir, preset, train, seed, "a row").folder


def finished(folder: Path, *files: str, result: str) -> trainings.Training:
    """A training that has left these files and its cost."""
    for file in ("cost.json", *files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(json.dumps({"seconds": 12.0, "result": f"/elsewhere/{result}", "peak_memory_bytes": 1,
                                               "result_bytes": 1}))
    return trainings.Training(folder, [], 1.0)


def test_a_training_can_start_from_the_result_of_another(tmp_path, monkeypatch):
    flags = {"train_method": "apl-robust", "num_vectors": 5, "iterations": 4}
    made = training(tmp_path, "mini", flags | {"init": {"num_vectors": 5}}, 1, "a row")
    before, = made.needs
    assert before == training(tmp_path, "mini", {"num_vectors": 5}, 1, "a row")
    assert made.folder != folder_of(seed=1, out_dir=tmp_path, **flags)
    assert made.folder != training(tmp_path, "mini", flags | {"init": {"num_vectors": 5, "lr": 0.1}}, 1, "a row").folder
    finished(before.folder, "embeddings/apl-700.pt", result="apl-700.pt")
    ran = []
    monkeypatch.setattr(trainings, "run_script", lambda command, *_: ran.append(command))
    made.make(SimpleNamespace(place=Place("cpu")))
    assert ran[0][-2:] == ["--init", str(before.folder / "embeddings/apl-700.pt")] and made.command().endswith("apl-700.pt")
    assert before.needs == [] and "--init" not in before.command()


def test_the_attack_of_a_training_is_in_its_size():
    flags = {"train_method": "apl-robust", "iterations": 10, "batch_size": 2, "attack_steps": 6}
    assert training(OUT, "mini", flags, 0, "a row").size == 10 * 2 * (5 + 6 / 2)
    rounds = {"robust_form": "alternating", "attack_rounds": 3, "attack_names": 7}
    assert training(OUT, "mini", flags | rounds, 0, "a row").size == 10 * 2 * 5 + 3 * 7 * 6 * 4 * 3


def test_a_training_has_its_flags_in_its_name_and_a_folder_of_its_own():
    made = training(OUT, "mini", {"lr": 0.002, "n_identities": 10}, 1, "a row")
    assert made.folder.parent == OUT / "training" and made.folder.name.startswith("apl-lr-0-002-n_identities-10-seed-1-")
    assert "--lr=0.002" in made.flags and "--preset mini" in " ".join(made.flags) and "--seed 1" in " ".join(made.flags)
    assert made.size == 700 * 4 * 5  # steps, samples, calls of the U-Net for each


def test_other_flags_and_other_seeds_are_other_trainings():
    folders = [folder_of(), folder_of(lr=0.002), folder_of(num_vectors=5), folder_of(train_method="apl-no-reg"),
               folder_of(train_method="apl-text"), folder_of(seed=1), folder_of("mini-sd-b")]
    assert len({folder.name[-8:] for folder in folders}) == len(folders)


def test_where_and_how_often_it_saves_is_the_same_training(preset, tmp_path):
    told = preset("told", save_every=7, val_every=9, log_every=20, devices="cpu:2", prompt="run", target_cache=tmp_path)
    assert folder_of(told) == folder_of() and folder_of(out_dir=tmp_path) == tmp_path / "training" / folder_of().name
    assert folder_of(**{"train_method": "apl"}) == folder_of() and folder_of(lr=0.003).name[-8:] == folder_of().name[-8:]  # the preset's


def test_another_content_of_a_file_is_another_training(preset, tmp_path):
    templates = tmp_path / "templates.txt"
    templates.write_text("{}\na photo of {}\n")
    own = preset(templates=templates)
    before = folder_of(own)
    templates.write_text("{}\na drawing of {}\n")
    assert folder_of(own) != before
    templates.write_text("{}\na photo of {}\n")
    assert folder_of(own) == before


def test_so_is_another_content_of_a_file_in_a_list(tmp_path):
    preserved = tmp_path / "prompts.txt"
    preserved.write_text("a red boat\n")
    before = folder_of(train_method="uce", preserve_prompts=[str(preserved)])
    preserved.write_text("a blue boat\n")
    assert folder_of(train_method="uce", preserve_prompts=[str(preserved)]) != before


def test_a_folder_counts_by_what_is_in_it_and_not_by_where_it_is(preset, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one/a.png").write_bytes(b"a")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    one, other = (preset(name, identity_images=tmp_path / name) for name in ("one", "other"))
    assert folder_of(one).name[-8:] == folder_of(other).name[-8:]
    before = folder_of(one)
    (tmp_path / "one/a.png").write_bytes(b"b")
    contents._content_of.cache_clear()
    assert folder_of(one) != before


def test_a_preset_among_the_flags_takes_the_place_of_the_commands(preset):
    assert folder_of(preset=preset("other", lr=0.1), **{"lr": 0.003}).name[-8:] == folder_of().name[-8:]
    assert training(OUT, "mini", {"preset": "mini-sd-b"}, 0, "a row").flags == training(OUT, "mini-sd-b", {}, 0, "a row").flags


@pytest.mark.parametrize(("train", "words"), [
    ({"iteration": 4}, "a row sets 'iteration', which this command does not know"), ({"iterations": 0}, "--iterations"),
    ({"train_method": "sed"}, "--train_method"), ({"train_method": "uce", "alpha": 1}, "--alpha has no use"), ({1: 2}, "a row sets '1'"),
    ({"seed": 5}, "a row sets 'seed', which is the same for all rows or follows from them"), ({"out_dir": "x"}, "sets 'out_dir', which"),
    ({"dry_run": True}, "sets 'dry_run', which")])
def test_a_flag_that_train_does_not_know_is_refused(train, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        training(OUT, "mini", train, 0, "a row")
    assert stopped.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize("step", [10, 198, 250])
def test_a_step_is_one_of_a_hundred_or_the_last(step):
    made = training(OUT, "mini", {"iterations": 250}, 0, "a row", step=2)
    assert made.flags[-2:] == ["--save_every", "2"]
    assert training(OUT, "mini", {"iterations": 250}, 0, "a row", step).folder == made.folder
    with pytest.raises(UserError, match="a row asks for step 9, which is not kept; give a multiple of 2, up to 250"):
        training(OUT, "mini", {"iterations": 250}, 0, "a row", 9)


@pytest.mark.parametrize("train", [{"train_method": ["esd"]}, {"preset": 3}])
def test_a_preset_and_a_method_are_names(train):
    with pytest.raises(UserError, match="a row has .* where a name is needed"):
        training(OUT, "mini", train, 0, "a row")


def test_a_method_that_keeps_its_result_alone_has_no_steps():
    with pytest.raises(UserError, match="a row asks for step 2, and esd keeps only its final result; remove the step"):
        training(OUT, "mini", {"train_method": "esd"}, 0, "a row", step=2)


def test_a_training_that_was_killed_at_its_end_is_ended(tmp_path):
    made = finished(tmp_path, "state.pt", result="apl-7.pt")  # the result is there, its pictures and table may not be
    assert not made.is_done()
    (tmp_path / "state.pt").unlink()
    assert made.is_done()


def test_the_result_is_the_last_or_that_of_a_step(tmp_path):
    made = finished(tmp_path / "apl", "embeddings/apl-700.pt", "embeddings/apl-70.pt", result="apl-700.pt")
    assert made.is_done() and made.result() == tmp_path / "apl/embeddings/apl-700.pt" and made.result(70).name == "apl-70.pt"
    assert finished(tmp_path / "esd", "esd-9.safetensors", result="esd-9.safetensors").result() == tmp_path / "esd/esd-9.safetensors"
    with pytest.raises(UserError, match="apl-80.pt, which the training in .* has made, is not there; put it back, or delete"):
        made.result(80)


def test_a_transfer_needs_its_training_and_is_made_from_its_result(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(trainings, "run_script", lambda command, log, place, what: commands.append((command, log.name, what)))
    source = trainings.Training(tmp_path / "training" / "apl", [], 1.0)
    made = transfer(tmp_path, source, "mini-xl", "ridge")
    assert made.folder == tmp_path / "training" / "apl-to-mini-xl-ridge" and made.needs == [source] and not made.is_done()
    prefix = finished(source.folder, "embeddings/apl-7.pt", result="apl-7.pt").result()
    made.make(SimpleNamespace(place=Place("cpu")))
    said = ["-m", "ldm.apl.transfer", str(prefix), str(made.result()), "--to", "mini-xl", "--route", "ridge"]
    assert commands == [(said, "transfer.log", f"the transfer of {prefix}")] and made.command() == " ".join(["python", *said])
    made.result().parent.mkdir()
    made.result().touch()
    assert made.is_done() and made.result(7) == made.result()


def test_a_transfer_of_a_file_is_named_by_its_content(tmp_path):
    (tmp_path / "apl.pt").write_text("a")
    made = transfer(tmp_path, tmp_path / "apl.pt", "mini-xl", "mean")
    assert made.needs == [] and made.folder.name.startswith("apl-") and made.folder.name.endswith("-to-mini-xl-mean")
    (tmp_path / "apl.pt").write_text("bb")
    assert transfer(tmp_path, tmp_path / "apl.pt", "mini-xl", "mean").folder != made.folder


def test_places_are_those_of_the_flag(monkeypatch):
    assert [place.devices for place in places("0,3")] == ["0", "3"]
    assert places("auto") == [Place("auto")] and places("cpu") == [Place("cpu")]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert places("cpu:2") == [Place("cpu", {"OMP_NUM_THREADS": "4"})] * 2 and places("cpu:9")[8].environment == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert places("cpu:2") == [Place("cpu", {"OMP_NUM_THREADS": "3"})] * 2


def test_a_training_runs_on_its_place_and_the_command_is_the_same_without_it(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text(SAID)
    monkeypatch.setattr(trainings, "TRAIN", tmp_path / "train.py")
    monkeypatch.setenv("PYTHONPATH", "/mine")
    made = trainings.Training(tmp_path / "a", ["--identity_prompt=A portrait"], 1.0)
    made.make(SimpleNamespace(place=Place("0", {"OMP_NUM_THREADS": "3"})))
    said = json.loads((made.folder / "cost.json").read_text())
    assert said == {"flags": ["--out_dir", str(made.folder), "--devices", "0", "--identity_prompt=A portrait"], "OMP_NUM_THREADS": "3",
                    "APL_STARTED_BY": str(os.getpid()), "PYTHONPATH": os.pathsep.join([str(ROOT), "/mine"])}
    assert made.command() == f"python train.py --out_dir {made.folder} '--identity_prompt=A portrait'"
    assert (made.folder / "train.log").read_text() == "50%|#####\n"  # "\r" as text is read


def test_a_script_that_fails_says_its_last_words_and_its_log_stays(tmp_path):
    (tmp_path / "train.py").write_text(SAID)
    with pytest.raises(UserError, match=r"the training ended with status 2 \(the data is not there; give other data\); correct that"):
        run_script([str(tmp_path / "train.py"), "--out_dir", "x", "--fail"], tmp_path / "a" / "train.log", Place("cpu"), "the training")
    assert "error: the data" in (tmp_path / "a" / "train.log").read_text()


@pytest.mark.parametrize(("log", "words"), [
    ("error: first.\n50%|##\rerror: second.\nat the end\n", "second"), ("Traceback\nValueError: a\n\n", "ValueError: a"),
    ("", "it said nothing")])
def test_the_last_words_are_the_sentence_or_else_the_last_line(tmp_path, log, words):
    (tmp_path / "train.log").write_text(log)
    assert last_words(tmp_path / "train.log") == words


def test_a_stop_by_the_user_ends_the_script(tmp_path, monkeypatch):
    started, start = [], subprocess.Popen

    def interrupted(*given, **more) -> Interrupted:
        started.append(start(*given, **more))
        return Interrupted(started[0])

    monkeypatch.setattr(trainings.subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_script(["-c", "import time; time.sleep(600)"], tmp_path / "train.log", Place("cpu"), "the training")
    assert started[0].returncode == -15


class Interrupted:
    """A process for which the user does not want to wait."""

    def __init__(self, process) -> None:
        self.process, self.poll, self.terminate, self.waits = process, process.poll, process.terminate, 0

    def wait(self) -> int:
        self.waits += 1
        if self.waits == 1:
            raise KeyboardInterrupt
        return self.process.wait()


def test_a_process_ends_with_the_one_that_started_it():
    code = "import time; from ldm.apl.workers import end_with_starter; end_with_starter(); print('here', flush=True); time.sleep(600)"
    starter = subprocess.Popen([sys.executable, "-c", (
        "import os, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {code!r}], env=os.environ | {{{STARTED_BY!r}: str(os.getpid())}})\ntime.sleep(600)")],
        cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert starter.stdout.readline() == "here\n"
    starter.kill()
    starter.communicate(timeout=300)  # ends when nobody can write there any more
