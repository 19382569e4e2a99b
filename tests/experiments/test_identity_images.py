"""S_ID's pictures: drawn by name, kept with one face, the same after a kill, readable by training."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import dataset_generation
import ldm.evaluation.faces
import ldm.experiments.identity_images
from ldm.data.identities import identity_images, read_people
from ldm.images import read_image
from ldm.loading import file_hash
from tests.as_script import run_script
from tests.refusals import refusal
from tests.scoring import PixelAnalyzer, bytes_below, flags_for, write_people

PEOPLE = {"Ada Stone": "train", "Zoë / Z.": "train", "Ben Wood": "test"}


@pytest.fixture(autouse=True)
def faces_by_pixels(monkeypatch):
    monkeypatch.setattr(ldm.evaluation.faces, "FaceAnalyzer", PixelAnalyzer)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with people.csv, templates.txt and a face pack."""
    folder = write_people(tmp_path_factory.mktemp("inputs"), PEOPLE)
    (folder / "templates.txt").write_text("a photo of {}\n{}, portrait\n")
    return folder


@pytest.fixture(scope="module")
def flags(inputs, tiny_files):
    """Flags for the tiny model: flags(out_dir, *more)."""
    return lambda out_dir, *more: ["faces", *flags_for(tiny_files, inputs, out_dir, "--templates", inputs / "templates.txt",
                                                       "--n_samples", 3, "--batch_size", 2, *more)]


@pytest.fixture(scope="module")
def command(flags):
    """Runs the command on the tiny model: command(out_dir, *more)."""
    return lambda out_dir, *more: dataset_generation.main(flags(out_dir, *more))


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
    """The output folder of one whole run; read only."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ldm.evaluation.faces, "FaceAnalyzer", PixelAnalyzer)
        command(folder)
    return folder


def rows_in(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def sentence(capsys, command, *flags):
    return refusal(capsys, command, *flags)


def test_training_reads_the_pictures_of_its_people(finished, inputs):
    images = identity_images(finished, read_people(inputs / "people.csv"))
    assert sorted(image.name for image in images) == ["Ada Stone"] * 3 + ["Zoë / Z."] * 3


def test_every_picture_that_is_kept_has_exactly_one_face(finished):
    assert [PixelAnalyzer().count(read_image(finished / row["file_name"])) for row in rows_in(finished)] == [1] * 6


def test_the_manifest_says_how_each_picture_was_made(finished, tiny_files):
    settings = json.loads((finished / "manifest.json").read_text())["settings"]
    assert settings["model_hash"] == file_hash(tiny_files[1]) and settings["faces_by"] == "pixels"
    assert "blurry" in settings["negative_prompt"] and settings["templates"] == ["a photo of {}", "{}, portrait"]
    rows = rows_in(finished)
    assert all(row["prompt"] in (f"a photo of {row['name']}", f"{row['name']}, portrait") and row["seed"] == 0 for row in rows)
    assert len({row["prompt"].replace(row["name"], "{}") for row in rows}) == 2


def test_what_was_drawn_again_is_counted(finished, tmp_path, command, capsys):
    log = [json.loads(line) for line in (finished / "images" / "drawn.jsonl").read_text().splitlines()]
    assert {entry["faces"] for entry in log} == {0, 1, 2}
    command(tmp_path / "again")
    assert f"6 images; {len(log) - 6} others were generated again" in capsys.readouterr().out


def test_after_the_last_attempt_a_picture_is_given_up_and_named(tmp_path, command, capsys, monkeypatch):
    counts = iter([1, 0, 2, 1, 0, 1])
    monkeypatch.setattr(PixelAnalyzer, "count", lambda *_: next(counts))
    command(tmp_path, "--max_redraws", 0)
    assert len(rows_in(tmp_path)) == 3 and "3 images; 0 others" in (said := capsys.readouterr().out)
    assert "; 3 images of Ada Stone, Zoë / Z. were given up after 1 attempts each: the same command with a larger --max_redraws" in said


def test_images_without_any_face_end_with_a_sentence(tmp_path, flags, capsys, monkeypatch):
    monkeypatch.setattr(PixelAnalyzer, "count", lambda *_: 0)
    said = sentence(capsys, dataset_generation.main, flags(tmp_path, "--max_redraws", 1))
    assert "none of the 6 images has exactly one face, after 2 attempts each; give another --face_pack" in said


def test_without_the_filter_every_picture_is_kept_and_no_pack_is_needed(tmp_path, command):
    command(tmp_path, "--no-one_face", "--face_pack=none")
    assert len(rows_in(tmp_path)) == 6 and {row["faces"] for row in rows_in(tmp_path)} == {None}


@pytest.mark.parametrize("kill_at", [1, 4])
def test_a_killed_run_ends_with_the_same_bytes(finished, command, tmp_path, monkeypatch, kill_at):
    noted = ldm.experiments.identity_images._note
    calls = []

    def killed(log, drawn):
        calls.append(drawn)
        if len(calls) == kill_at + 1:
            log.open("a").write('{"name": "Ad')  # a line that was never finished
            raise KeyboardInterrupt
        noted(log, drawn)

    monkeypatch.setattr(ldm.experiments.identity_images, "_note", killed)
    with pytest.raises(SystemExit) as stopped:
        command(tmp_path)
    assert stopped.value.code == 130
    monkeypatch.setattr(ldm.experiments.identity_images, "_note", noted)
    command(tmp_path)
    assert bytes_below(tmp_path) == bytes_below(finished) and rows_in(tmp_path) == rows_in(finished)


def test_two_processes_go_on_where_one_was_killed_and_make_the_same_bytes(finished, flags, tmp_path):
    log, folder = "images/drawn.jsonl", tmp_path / "killed"
    shutil.copytree(finished, folder)
    (folder / log).write_text("".join((folder / log).read_text().splitlines(keepends=True)[:1]))
    for picture in bytes_below(folder):
        (folder / picture).unlink()
    run_script("dataset_generation", flags(folder, "--devices", "cpu,cpu"))
    assert bytes_below(folder) == bytes_below(finished)
    assert (folder / "metadata.jsonl").read_bytes() == (finished / "metadata.jsonl").read_bytes()
    noted = [line for file in (folder, finished) for line in dict.fromkeys((file / log).read_text().splitlines())]
    assert noted[:len(noted) // 2] == noted[len(noted) // 2:]


def test_a_log_that_was_cut_within_a_letter_is_read_to_the_line_before(tmp_path):
    log, drawn = tmp_path / "drawn.jsonl", {"name": "Zoë", "number": 0, "attempt": 0}
    ldm.experiments.identity_images._note(log, drawn)
    whole = log.read_bytes()
    log.write_bytes(whole + whole[:whole.index(b"\xc3") + 1])
    assert ldm.experiments.identity_images._read_log(log) == {("Zoë", 0): [drawn]} and log.read_bytes() == whole


def test_a_finished_run_draws_nothing_again(command, tmp_path, monkeypatch):
    command(tmp_path)
    before = rows_in(tmp_path)
    monkeypatch.setattr(ldm.images, "write_image", lambda path, image: pytest.fail(f"{path} was drawn again"))
    command(tmp_path)
    assert rows_in(tmp_path) == before


def test_a_picture_that_was_deleted_is_drawn_again_and_more_can_be_added(finished, command, tmp_path):
    command(tmp_path)
    (tmp_path / "images" / "none" / "Ada Stone" / "0.png").unlink()
    command(tmp_path, "--group", "all", "--n_samples", 4)
    there = bytes_below(tmp_path)
    assert len(there) == 12
    for file in bytes_below(finished):
        drawn, before = (np.asarray(Image.open(folder / file)).astype(int) for folder in (tmp_path, finished))
        assert np.abs(drawn - before).max() <= 1  # the batches are others


@pytest.mark.parametrize(("flag", "value"), [("seed", 1), ("negative_prompt", ""), ("no-one_face", None)])
def test_pictures_of_other_settings_are_never_mixed(command, tmp_path, capsys, flag, value):
    command(tmp_path, "--n_samples", 1)
    before = bytes_below(tmp_path)
    said = sentence(capsys, command, tmp_path, "--n_samples", 1, f"--{flag}" if value is None else f"--{flag}={value}")
    assert "--no-resume" in said and bytes_below(tmp_path) == before


def test_people_whom_nobody_asked_for_are_refused(command, inputs, tmp_path, capsys):
    (tmp_path / "people.csv").write_text("name,group,attributes\nBen Wood,test,A chef\n")
    assert "nobody in the list" in sentence(capsys, command, tmp_path / "out", f"--people={tmp_path / 'people.csv'}")


def test_wrong_flags_end_with_a_sentence(command, tmp_path, capsys):
    assert "--devices: 'tpu'" in sentence(capsys, command, tmp_path, "--devices=tpu")
    assert "--face_pack none is not there" in sentence(capsys, command, tmp_path, "--face_pack=none")
    assert "--templates none is not there" in sentence(capsys, command, tmp_path, "--templates=none")
    assert "--n_samples" in sentence(capsys, command, tmp_path, "--n_samples=0")
