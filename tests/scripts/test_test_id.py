"""test_id.py from its command line, on a tiny model with random weights and a recogniser that looks at pixels."""

import csv
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import ldm.images
import test_id
from ldm.apl.prefix import build_prefix
from ldm.evaluation.faces import FaceAnalyzer
from ldm.experiments import identity_table
from ldm.images import read_image, write_image
from ldm.mini.people import named_people, sample_view
from ldm.mini.portraits import draw_portrait
from ldm.modules.embedding_file import write_embedding_file
from ldm.modules.embedding_manager import EmbeddingManager
from tests.as_script import run_script
from tests.refusals import refusal
from tests.scoring import PixelAnalyzer, bytes_below, flags_for, rows_in, write_people

MINI = Path(test_id.__file__).parent / "data" / "mini"
PEOPLE = {"Ada Lovelace": "train", "Ben O'Neil": "train", "Zoë / Z.": "test"}
PUBLIC = ["model", "prefix", "group", "id_acc_mean", "id_acc_max", "detection_rate", "rank1", "n_identities",
          "n_images"]


@pytest.fixture(autouse=True)
def pixel_analyzer(monkeypatch):
    monkeypatch.setattr(identity_table, "FaceAnalyzer", PixelAnalyzer)


@pytest.fixture(scope="module")
def inputs(tiny_model, tiny_files, tmp_path_factory) -> Path:
    """A folder with people.csv, gallery.npz, apl.pt and faces/."""
    folder = write_people(tmp_path_factory.mktemp("inputs"), PEOPLE)
    EmbeddingManager(tiny_model.cond_stage_model, num_vectors_per_token=3).save(folder / "apl.pt")
    return folder


@pytest.fixture(scope="module")
def command(inputs, tiny_files):
    """Flags of test_id.py for the tiny model: command(out_dir, *more)."""
    return lambda out_dir, *more: flags_for(tiny_files, inputs, out_dir, "--gallery", inputs / "gallery.npz", "--embedding",
                                            inputs / "apl.pt", "--precision", "fp32", *more)


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory) -> Path:
    """The output folder of one whole run; read only."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity_table, "FaceAnalyzer", PixelAnalyzer)
        test_id.main(command(folder))
    return folder


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of the finished folder that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def sentence(capsys, *argv: str) -> str:
    """What the command says on stderr before it ends with status 2: one line."""
    return refusal(capsys, test_id.main, list(argv))


def test_there_is_a_row_for_each_prefix_and_group(finished, inputs):
    rows = rows_in(finished)
    assert [(row["prefix"], row["group"]) for row in rows] == [
        ("none", "train"), ("none", "test"), (str(inputs / "apl.pt"), "train"), (str(inputs / "apl.pt"), "test")]
    assert all(list(row)[:len(PUBLIC)] == PUBLIC and row["model"] == "tiny" for row in rows)
    assert [(row["n_identities"], row["n_images"]) for row in rows] == [(2, 4), (1, 2)] * 2


def test_the_folder_holds_pictures_tables_grid_and_how_they_were_made(finished):
    assert len(list(finished.glob("images/none/Ada Lovelace/[01].png"))) == 2
    assert len(list(finished.glob("images/apl/*/*.png"))) == 6
    assert read_image(finished / "grid.png").std() > 1
    with (finished / "images.csv").open(encoding="utf-8") as file:
        pictures = list(csv.DictReader(file))
    assert len(pictures) == 12 and {row["name"] for row in pictures} == set(PEOPLE)
    assert all((finished / row["image"]).exists() for row in pictures)
    assert (finished / "results.md").read_text().count("\n") == 6
    assert json.loads((finished / "arguments.json").read_text())["arguments"]["seed"] == 0
    assert json.loads((finished / "manifest.json").read_text())["settings"]["ddim_steps"] == 2


def test_pictures_of_the_person_score_one_and_the_prefix_moves_away(finished, command, tmp_path):
    drawn = finished / "images" / "none"
    own = {name: read_image(next(drawn.glob(f"{name[:3]}*/0.png"))) for name in PEOPLE}
    np.savez(tmp_path / "own.npz", **{name: PixelAnalyzer().analyze(image).embedding for name, image in own.items()})
    test_id.main(command(shutil.copytree(finished, tmp_path / "copy"), "--gallery", tmp_path / "own.npz"))
    base, prefixed = (next(row for row in rows_in(tmp_path / "copy") if (row["prefix"] == "none") == plain)
                      for plain in (True, False))
    assert base["id_acc_max"] == pytest.approx(1.0, abs=1e-5) and base["rank1"] >= 0.5
    assert prefixed["id_acc_max"] < base["id_acc_max"]


def test_the_noise_is_the_same_with_and_without_the_prefix(command, tmp_path):
    test_id.main(command(tmp_path, "--scale", 0, "--n_names", 1))  # guidance 0 ignores prompt and prefix
    drawn = bytes_below(tmp_path / "images" / "none")
    assert drawn == bytes_below(tmp_path / "images" / "apl") and len(set(drawn.values())) == len(drawn) == 4


def test_the_precision_reaches_the_pictures_and_the_manifest(finished, copied, command, tmp_path, capsys):
    test_id.main(command(tmp_path / "bf16", "--precision", "bf16"))
    full, half = (bytes_below(folder / "images" / "none") for folder in (finished, tmp_path / "bf16"))
    assert full.keys() == half.keys() and full != half
    assert "precision" in sentence(capsys, *command(copied, "--precision", "bf16"))


def test_name_and_prefix_reach_the_pictures(finished):
    drawn = bytes_below(finished / "images")
    assert len(set(drawn.values())) == len(drawn) == 12


def test_a_resumed_run_ends_with_the_same_bytes(finished, copied, command):
    (copied / "images" / "none" / "Ada Lovelace" / "1.png").unlink()
    shutil.rmtree(copied / "images" / "apl")
    kept = copied / "images" / "none" / "Ada Lovelace" / "0.png"
    written = kept.stat().st_mtime_ns
    test_id.main(command(copied))
    assert bytes_below(copied) == bytes_below(finished) and kept.stat().st_mtime_ns == written
    assert rows_in(copied) == rows_in(finished)


def test_a_finished_run_draws_nothing_again(copied, command, monkeypatch):
    monkeypatch.setattr(ldm.images, "write_image", lambda path, image: pytest.fail(f"{path} was drawn again"))
    before = rows_in(copied)
    test_id.main(command(copied))
    assert rows_in(copied) == before


def test_a_run_that_is_killed_between_pictures_goes_on(finished, command, tmp_path, monkeypatch):
    def killed(path, image):
        if len(bytes_below(tmp_path)) == 4:
            raise KeyboardInterrupt
        write_image(path, image)

    monkeypatch.setattr(ldm.images, "write_image", killed)
    with pytest.raises(SystemExit) as stopped:
        test_id.main(command(tmp_path))
    assert stopped.value.code == 130 and len(bytes_below(tmp_path)) == 4
    monkeypatch.undo()
    monkeypatch.setattr(identity_table, "FaceAnalyzer", PixelAnalyzer)
    test_id.main(command(tmp_path))
    assert bytes_below(tmp_path) == bytes_below(finished)


def test_two_processes_go_on_where_one_was_killed_and_make_the_same_bytes(finished, copied, command):
    shutil.rmtree(copied / "images" / "apl")
    for picture in copied.glob("images/none/Zo*/*.png"):
        picture.unlink()
    run_script("test_id", command(copied, "--devices", "cpu,cpu"))
    assert bytes_below(copied) == bytes_below(finished)
    for table in ("images.csv", "identities.csv", "results.json"):
        assert (copied / table).read_bytes() == (finished / table).read_bytes(), table


@pytest.mark.parametrize(("flag", "value"),
                         [("--seed", 1), ("--scale", 3), ("--ddim_steps", 3), ("--prompt", "{name}")])
def test_pictures_of_other_settings_are_never_scored(copied, command, capsys, flag, value):
    before = bytes_below(copied)
    said = sentence(capsys, *command(copied, flag, value))
    assert flag[2:] in said and "--out_dir" in said and "--no-resume" in said
    assert bytes_below(copied) == before


def test_no_resume_draws_everything_anew(finished, copied, command):
    test_id.main(command(copied, "--no-resume", "--seed", 1))
    before, after = bytes_below(finished), bytes_below(copied)
    assert before.keys() == after.keys() and not any(before[file] == after[file] for file in before)
    assert json.loads((copied / "manifest.json").read_text())["settings"]["seed"] == 1


def test_a_prefix_that_changed_under_its_name_is_never_scored(copied, command, inputs, tiny_model, tmp_path, capsys):
    EmbeddingManager(tiny_model.cond_stage_model, num_vectors_per_token=2).save(tmp_path / "apl.pt")
    assert "another prefix" in sentence(capsys, *command(copied, "--embedding", tmp_path / "apl.pt"))


@pytest.mark.parametrize(("flag", "value"), [("--c2", ()), ("--target", ["1"])])
def test_people_without_attributes_cannot_be_drawn_by_them(command, inputs, tmp_path, capsys, flag, value):
    people = (inputs / "people.csv").read_text(encoding="utf-8").replace("Ada Lovelace,train,A person", "Ada Lovelace,train,")
    (tmp_path / "people.csv").write_text(people, encoding="utf-8")
    said = sentence(capsys, *command(tmp_path / "out", "--people", tmp_path / "people.csv", flag, *value))
    assert "no attributes (c2) for Ada Lovelace" in said and not (tmp_path / "out" / "images").exists()


def test_a_prefix_called_as_a_row_of_the_table_is_refused(command, inputs, tmp_path, capsys):
    shutil.copy(inputs / "apl.pt", tmp_path / "c2.pt")
    assert "name of another row, 'c2'" in sentence(capsys, *command(tmp_path / "out", "--embedding", tmp_path / "c2.pt"))


def test_the_target_of_eq_5_is_a_row_that_resumes_and_alpha_zero_is_c2_from_the_noise_of_the_name(copied, command):
    more = "--target", "0,1.5"
    test_id.main(command(copied, *more))
    rows = {row["prefix"] for row in rows_in(copied)}
    assert {"c2", "target, alpha 0", "target, alpha 1.5", "none"} <= rows and len(rows) == 5
    name, none, other = (bytes_below(copied / "images" / label) for label in ("target, alpha 0", "none", "target, alpha 1.5"))
    assert name.keys() == none.keys() == other.keys() and not any(name[file] in (none[file], other[file]) for file in none)
    (copied / "images" / "target, alpha 1.5" / "Ada Lovelace" / "0.png").unlink()
    test_id.main(command(copied, *more))
    assert bytes_below(copied / "images" / "target, alpha 1.5") == other


def test_more_samples_are_added_to_the_pictures_that_are_there(copied, command):
    kept = copied / "images" / "none" / "Ada Lovelace" / "0.png"
    written = kept.stat().st_mtime_ns
    test_id.main(command(copied, "--n_samples", 3))
    assert [row["n_images"] for row in rows_in(copied)] == [6, 3, 6, 3] and kept.stat().st_mtime_ns == written


def test_existing_pictures_score_as_they_did_when_they_were_drawn(finished, inputs, tmp_path):
    test_id.main(["--images", str(finished / "images" / "none"), "--people", str(inputs / "people.csv"), "--gallery",
                  str(inputs / "gallery.npz"), "--face_pack", str(inputs / "faces"), "--out_dir", str(tmp_path)])
    numbers = [[row[key] for key in PUBLIC[3:]] for folder in (finished, tmp_path) for row in rows_in(folder)]
    assert numbers[:2] == numbers[4:] and read_image(tmp_path / "grid.png").std() > 1


def test_a_picture_without_a_face_is_counted_and_not_scored(finished, inputs, tmp_path):
    pictures = Path(shutil.copytree(finished / "images" / "none", tmp_path / "pictures"))
    write_image(pictures / "Ada Lovelace" / "2.png", np.zeros((32, 32, 3), np.uint8))
    test_id.main([*only_images(inputs, pictures), "--group", "train", "--out_dir", str(tmp_path)])
    [row], before = rows_in(tmp_path), rows_in(finished)[0]
    assert row["detection_rate"] == 0.8 and row["n_images"] == 5 and row["id_acc_mean"] == before["id_acc_mean"]


def test_linked_folders_are_scored_and_what_is_not_is_listed(finished, inputs, tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "Ada Lovelace").symlink_to(finished / "images" / "none" / "Ada Lovelace")
    (tmp_path / "pictures" / "a.heic").touch()
    test_id.main([*only_images(inputs, tmp_path / "pictures"), "--group", "train", "--out_dir", str(tmp_path / "out")])
    assert [row["n_images"] for row in rows_in(tmp_path / "out")] == [2]
    assert "left out: 1 x other format" in capsys.readouterr().out and (tmp_path / "out" / "left_out.csv").exists()


def only_images(inputs: Path, pictures: Path) -> list[str]:
    return ["--preset", "mini", "--images", str(pictures), "--people", str(inputs / "people.csv"), "--gallery",
            str(inputs / "gallery.npz"), "--face_pack", str(inputs / "faces")]


@pytest.mark.weights
@pytest.mark.skipif(not (MINI / "gallery.npz").exists(), reason="the miniature's gallery is not there")
def test_the_miniatures_own_recogniser_knows_drawn_people(tmp_path, monkeypatch):
    monkeypatch.setattr(identity_table, "FaceAnalyzer", FaceAnalyzer)
    for name, person in list(named_people().items())[:4]:
        image = draw_portrait(person, sample_view(random.Random(name))).image
        write_image(tmp_path / "pictures" / name / "0.png", image)
    test_id.main(["--preset", "mini", "--images", str(tmp_path / "pictures"), "--out_dir", str(tmp_path)])
    assert all(row["detection_rate"] == 1 and row["id_acc_mean"] > 0.5 for row in rows_in(tmp_path))


def test_no_diffusion_model_is_imported_for_existing_pictures(finished, inputs, tmp_path):
    argv = [*only_images(inputs, finished / "images" / "apl"), "--out_dir", str(tmp_path)]
    code = ("import sys, types, test_id; from ldm.experiments import identity_table\n"
            "identity_table.FaceAnalyzer = lambda *_, **__: types.SimpleNamespace(analyze=lambda image: None)\n"
            f"test_id.main({argv!r})\n"
            "assert not [name for name in sys.modules if name.startswith(('ldm.mo', 'transformers'))]")
    subprocess.run([sys.executable, "-c", code], cwd=Path(test_id.__file__).parent, check=True, capture_output=True)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n cut"])
def test_a_corrupt_picture_is_named(inputs, tmp_path, capsys, content):
    (tmp_path / "pictures" / "Ada_Lovelace").mkdir(parents=True)
    (tmp_path / "pictures" / "Ada_Lovelace" / "1.png").write_bytes(content)
    argv = [*only_images(inputs, tmp_path / "pictures"), "--out_dir", str(tmp_path)]
    assert "1.png cannot be read" in sentence(capsys, *argv)


def test_a_folder_without_pictures_is_refused(inputs, tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    argv = [*only_images(inputs, tmp_path / "pictures"), "--out_dir", str(tmp_path / "out")]
    assert "empty folder" in sentence(capsys, *argv)
    (tmp_path / "pictures" / "Ada Lovelace").mkdir()
    assert "holds no images" in sentence(capsys, *argv)


def test_pictures_of_somebody_unknown_are_refused(inputs, tmp_path, capsys):
    write_image(tmp_path / "pictures" / "Nobody" / "1.png", np.zeros((8, 8, 3), np.uint8))
    argv = [*only_images(inputs, tmp_path / "pictures"), "--out_dir", str(tmp_path)]
    assert "'Nobody'" in sentence(capsys, *argv)


def test_a_name_that_the_gallery_lacks_is_named(inputs, command, tmp_path, capsys):
    np.savez(tmp_path / "gallery.npz", **{"Ada Lovelace": np.ones(512)})
    assert "Ben O'Neil" in sentence(capsys, *command(tmp_path, "--gallery", tmp_path / "gallery.npz"))


def test_a_checkpoint_that_is_missing_is_named(command, tmp_path, capsys):
    assert "none.ckpt" in sentence(capsys, *command(tmp_path, "--ckpt_path", tmp_path / "none.ckpt"))


def test_a_prefix_of_another_width_is_refused_with_both_widths(command, tmp_path, capsys):
    write_embedding_file(tmp_path / "wide.pt", {"alz": torch.zeros(2, 768)}, {"alz": 41128})
    said = sentence(capsys, *command(tmp_path, "--embedding", tmp_path / "wide.pt"))
    assert "768" in said and "32" in said


def test_two_prefixes_of_one_name_are_refused(command, inputs, tmp_path, capsys):
    shutil.copy(inputs / "apl.pt", tmp_path / "apl.pt")
    argv = command(tmp_path, "--embedding", inputs / "apl.pt", tmp_path / "apl.pt")
    assert "rename" in sentence(capsys, *argv)


def test_a_device_that_is_not_there_is_refused(command, tmp_path, capsys):
    assert "asks for GPU 977" in sentence(capsys, *command(tmp_path, "--devices", "977"))


def test_an_output_folder_that_cannot_be_written_is_refused(command, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "--out_dir" in sentence(capsys, *command(tmp_path / "file" / "out"))
    sentence(capsys, *command(Path("/proc/1/nothing_can_be_made_here")))


@pytest.fixture(scope="module")
def several(command, tiny_files, tiny_xl_files, tiny_xl_model, tmp_path_factory) -> tuple[Path, list[str]]:
    """A finished comparison of two checkpoints and a preset of SDXL's form with a prefix for each form, and its flags."""
    folder = tmp_path_factory.mktemp("several")
    state = load_file(tiny_files[1])
    save_file({key: value + 0.01 * torch.ones_like(value) for key, value in state.items()}, folder / "other.safetensors")
    (folder / "xl.yaml").write_text(yaml.safe_dump({"config_path": str(tiny_xl_files[0]), "ckpt_path": str(tiny_xl_files[1])}))
    build_prefix(tiny_xl_model, num_vectors=3).save(folder / "pair.safetensors")
    flags = command(folder / "out")
    flags += ["--models", str(tiny_files[1]), str(folder / "other.safetensors"), str(folder / "xl.yaml"),
              "--embedding", flags[flags.index("--embedding") + 1], str(folder / "pair.safetensors")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity_table, "FaceAnalyzer", PixelAnalyzer)
        test_id.main(flags)
    return folder / "out", flags


def test_several_models_come_in_one_table_each_with_the_prefixes_that_fit(several, finished):
    out, _ = several
    rows = [(row["model"], Path(row["prefix"]).stem, row["group"]) for row in rows_in(out)]
    assert rows == [(model, prefix, group) for model, fitting in (("tiny", "apl"), ("other", "apl"), ("tiny-xl", "pair"))
                    for prefix in ("none", fitting) for group in ("train", "test")]
    same = [row | {"model": "tiny"} for row in rows_in(finished)]
    assert rows_in(out)[:4] == same  # as the command for one model has them
    table = json.loads((out / "table1.json").read_text())
    assert [row["model"] for row in table] == ["tiny", "other", "tiny-xl"]
    assert table[0]["train base"] == same[0]["id_acc_mean"] and table[0]["test + APL max"] == same[3]["id_acc_max"]
    assert read_image(out / "figure3.png").std() > 1


def test_a_finished_comparison_draws_nothing_again(several, monkeypatch):
    monkeypatch.setattr("ldm.experiments.pipeline.generate", lambda model, jobs, **_: iter(()) if not list(jobs) else 1 / 0)
    test_id.main(several[1])


def test_a_model_for_which_no_prefix_is_given_stays_in_the_table(several, capsys):
    out, flags = several
    test_id.main(flags[:-1])  # without the pair
    assert "none of the prefixes given is for two text encoders, which tiny-xl has; it runs without a prefix" in capsys.readouterr().err
    table = json.loads((out / "table1.json").read_text())
    assert table[2]["model"] == "tiny-xl" and table[2]["prefix"] == "none" and table[2]["train base"] == rows_in(out)[-2]["id_acc_mean"]
    assert table[2]["train + APL"] is None and table[0]["train + APL"] is not None


def test_what_fits_no_model_and_models_alike_are_refused(several, tiny_files, capsys):
    out, flags = several
    start = flags.index("--models")
    only = [*flags[:start], "--models", str(tiny_files[1]), *flags[start + 4:]]
    assert "pair.safetensors is for two text encoders, and none of the models asked for has as many" in sentence(capsys, *only)
    assert "gives two models one name" in sentence(capsys, *flags[:start], "--models", *[str(tiny_files[1])] * 2)
    assert "--models generates images, and --images scores" in sentence(capsys, *flags, "--images", str(out))
    assert "--edited_weights has no use with --models" in sentence(capsys, *flags, "--edited_weights", str(tiny_files[1]))
    assert "--vae_path has no use with presets" in sentence(capsys, *flags[:start], "--models", "mini", "--vae_path", str(tiny_files[1]))
    assert "there is no preset 'nonsense'" in sentence(capsys, *flags[:start], "--models", "nonsense")
    assert "--ckpt_path none.ckpt is not there" in sentence(capsys, *flags[:start], "--models", "none.ckpt")
