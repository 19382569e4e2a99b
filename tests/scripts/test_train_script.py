"""train.py from its command line, on a tiny model with random weights: what it writes, and what it says to bad input."""

import csv
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import train
from ldm.apl.training_run import of_first_people
from ldm.logbook import Logbook
from ldm.modules.context_map import ContextMap
from ldm.modules.embedding_file import read_embedding_file, write_embedding_file
from tests.apl.test_trainer import prepared
from tests.as_script import run_script
from tests.forked import Command
from tests.refusals import refusal
from tests.scoring import PixelAnalyzer
from tests.test_logbook import TITLE, stand_in  # noqa: F401


@pytest.fixture(scope="module")
def inputs(train_inputs) -> Path:
    return train_inputs


@pytest.fixture(scope="module")
def command(inputs, tiny_files):
    """Flags of train.py for the tiny model: command(*more)."""
    def flags(*more: object) -> list[str]:
        return [str(flag) for flag in (
            "--config_path", tiny_files[0], "--ckpt_path", tiny_files[1], "--people", inputs / "people.csv",
            "--templates", inputs / "templates.txt", "--identity_images", inputs / "s_id", "--caption_images", inputs / "s_reg",
            "--prompts_file", inputs / "prompts.txt", "--gallery", inputs / "gallery.npz", "--face_pack", inputs / "faces",
            "--num_vectors", 2, "--iterations", 4, "--batch_size", 2, "--save_every", 2, "--val_every", 4, "--log_every", 2,
            "--eval_names", 1, "--eval_samples", 1, "--eval_ddim_steps", 2, "--devices", "cpu", *more)]
    return flags


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ldm.evaluation.faces.FaceAnalyzer", PixelAnalyzer)
    monkeypatch.setattr("ldm.experiments.identity_table.FaceAnalyzer", PixelAnalyzer, raising=False)


def sentence(capsys, argv: list[str]) -> str:
    """What the command says on stderr before it ends with status 2: one line."""
    return refusal(capsys, train.main, argv)


def test_a_run_writes_prefixes_log_pictures_arguments_and_the_final_table(command, tmp_path, capsys):
    train.main(command())
    assert sorted(path.name for path in (tmp_path / "embeddings").iterdir()) == ["apl-2.pt", "apl-4.pt", "apl.json"]
    file = read_embedding_file(tmp_path / "embeddings" / "apl-4.pt")
    assert file.vectors["*"].shape == (2, 32) and file.metadata["step"] == 4 and file.metadata["train_method"] == "apl"
    run = tmp_path / "runs" / "apl"
    assert [row["step"] for row in csv.DictReader((run / "log.csv").open())] == ["2", "4"]
    record = json.loads((run / "arguments.json").read_text())
    assert record["arguments"]["eval_names"] == 1 and record["learned_from"]["lr"] == 1e-3 and record["versions"]["torch"]
    assert (run / "pictures" / "step-000004.png").exists() and (run / "before-after.png").exists()
    assert list((run / "tensorboard").iterdir())

    rows = json.loads((run / "results.json").read_text())
    identity, drift = [row for row in rows if "group" in row], [row for row in rows if "mse" in row]
    assert [(row["prefix"], row["group"]) for row in identity] == [
        ("none", "train"), ("none", "test"), ("embeddings/apl-4.pt", "train"), ("embeddings/apl-4.pt", "test")]
    assert [(row["prefix"], row["prompts"]) for row in drift] == [
        ("none", "prompts"), ("none, other noise", "prompts"), ("embeddings/apl-4.pt", "prompts")]
    assert drift[0]["mse"] == 0 < drift[1]["mse"]
    printed = capsys.readouterr().out
    assert "id_acc_mean" in printed and "other noise" in printed and "S_ID" in printed


def test_losses_and_the_image_grid_arrive_at_the_loggers_that_are_asked_for(command, tmp_path, stand_in):  # noqa: F811
    train.main(command("--log_to", "csv,wandb", "--eval_names", 0))
    [(arguments, (step, losses), second, image, finished)] = stand_in.runs.values()
    assert arguments["lr"] == 1e-3 and step == 2 and {"loss", "loss_id"} <= set(losses) and image[:2] == (4, TITLE)
    assert (tmp_path / "runs/apl/log.csv").read_text().count("\n") == 3 and not (tmp_path / "runs/apl/tensorboard").exists()


def test_a_context_map_has_a_file_a_table_and_a_description_of_its_own(command, tmp_path, capsys):
    flags = command("--train_method", "apl-map", "--map_rank", 3)
    at = flags.index("--num_vectors")
    assert "--num_vectors has no use with --train_method apl-map; leave it out" in sentence(capsys, flags)
    train.main(flags[:at] + flags[at + 2:])
    assert sorted(path.name for path in (tmp_path / "embeddings").iterdir()) == ["apl-map-2.safetensors", "apl-map-4.safetensors",
                                                                                "apl-map.json"]
    learned = ContextMap.of_file(tmp_path / "embeddings" / "apl-map-4.safetensors")
    assert learned.map_down.shape == (3, 32) and learned.metadata["step"] == 4 and learned.metadata["map_rank"] == 3
    assert {"seed", "base_model", "text_encoder", "train_method"} <= set(learned.metadata)
    rows = json.loads((tmp_path / "runs" / "apl-map" / "results.json").read_text())
    assert {row["prefix"] for row in rows if "group" in row} == {"none", "embeddings/apl-map-4.safetensors"}
    printed = capsys.readouterr().out
    assert "map       of the context, rank 3, started from the identity" in printed and "vectors" not in printed


def test_a_prefix_from_texts_needs_no_image_of_the_people(command, tmp_path, capsys):
    flags = command("--train_method", "apl-text", "--iterations", 4, "--save_every", 2, "--eval_names", 0)
    assert "--identity_images has no use with --train_method apl-text; leave it out" in sentence(capsys, flags)
    at = flags.index("--identity_images")
    flags = flags[:at] + flags[at + 2:]
    assert "--dry_run has no use" in sentence(capsys, [*flags, "--dry_run"])
    train.main(flags)
    file = read_embedding_file(tmp_path / "embeddings" / "apl-text-4.pt")
    assert file.vectors["*"].shape == (2, 32) and file.metadata["train_method"] == "apl-text" and file.metadata["alpha"] == 1
    assert "apl-text, alpha 1; 4 steps" in capsys.readouterr().out
    train.main(command("--init", tmp_path / "embeddings" / "apl-text-4.pt", "--eval_names", 0))  # a warm start for apl
    assert (tmp_path / "embeddings" / "apl-4.pt").exists()


def test_the_same_command_again_changes_nothing_and_brings_back_a_lost_prefix(command, tmp_path):
    train.main(command("--out_dir", "run"))
    names = ("embeddings/apl-4.pt", "log.csv", "results.json", "state.pt")
    content = {name: (tmp_path / "run" / name).read_bytes() for name in names}
    (tmp_path / "run" / names[0]).unlink()
    train.main(command("--out_dir", "run"))
    assert content == {name: (tmp_path / "run" / name).read_bytes() for name in names}


def test_a_run_killed_by_a_signal_ends_with_the_same_bytes(command, tmp_path):
    argv = command("--iterations", 60, "--save_every", 20, "--val_every", 0, "--log_every", 1, "--eval_names", 0)
    whole, killed = (Command(train.main, [*argv, "--out_dir", name]) for name in ("whole", "killed"))
    log = tmp_path / "killed" / "log.csv"
    while killed.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > 25):
        time.sleep(0.01)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL and whole.wait() == 0
    assert Command(train.main, [*argv, "--out_dir", "killed"]).wait() == 0
    for name in ("embeddings/apl-60.pt", "log.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_two_processes_train_one_prefix(command, tmp_path):
    run_script("train", command("--devices", "cpu,cpu", "--iterations", 8, "--val_every", 0, "--out_dir", "two"), forked=False)
    train.main(command("--iterations", 8, "--val_every", 0, "--out_dir", "one"))
    two, one = (read_embedding_file(tmp_path / folder / "embeddings/apl-8.pt").vectors["*"] for folder in ("two", "one"))
    torch.testing.assert_close(two, one, rtol=0, atol=1e-5)
    rows = list(csv.DictReader((tmp_path / "two" / "log.csv").open()))
    assert [float(row["samples_id"]) + float(row["samples_reg"]) for row in rows] == [4] * 4
    two, one = (json.loads((tmp_path / folder / "results.json").read_text()) for folder in ("two", "one"))
    assert [row["prompts" if "mse" in row else "group"] for row in two] == ["train", "test", "train", "test", *["prompts"] * 3]
    two, one = ([row for row in rows if "none" in row["prefix"]] for rows in (two, one))
    assert [{key: round_(value) for key, value in row.items()} for row in two] == [
        {key: round_(value) for key, value in row.items()} for row in one]


def test_a_prefix_that_withstands_attacks_starts_from_a_trained_one_and_is_a_prefix_file(command, tmp_path, capsys):
    train.main(command("--eval_names", 0, "--val_every", 0))
    warm = ("--train_method", "apl-robust", "--init", "embeddings/apl-4.pt", "--attack_vectors", 3, "--attack_steps", 2)
    train.main(command(*warm, "--attack_radius", 0.1))
    printed = capsys.readouterr().out
    assert "3 vectors behind the prefix in half of S_ID, 2 inner steps, within 0.1 of a token" in printed
    assert "per sample 1 U-Net calls in addition to 3.5" in printed
    first, learned = (read_embedding_file(tmp_path / f"embeddings/{name}-4.pt") for name in ("apl", "apl-robust"))
    assert learned.metadata["attack_vectors"] == 3 and learned.metadata["attack_radius"] == 0.1 and "attack_vectors" not in first.metadata
    assert 0 < (learned.vectors["*"] - first.vectors["*"]).abs().max() < 0.01  # 4 steps of Adam with rate 1e-3
    rows = json.loads((tmp_path / "runs" / "apl-robust" / "results.json").read_text())
    assert {row["prefix"] for row in rows if "group" in row} == {"none", "embeddings/apl-robust-4.pt"}
    assert "attack_radius" in sentence(capsys, command(*warm))  # another attack in the same folder


def test_the_alternating_form_learns_tokens_in_rounds_and_resumes_to_the_same_bytes(command, tmp_path, capsys, monkeypatch):
    flags = command("--train_method", "apl-robust", "--robust_form", "alternating", "--attack_vectors", 3, "--attack_steps", 2,
                    "--attack_rounds", 2, "--attack_names", 2, "--val_every", 0, "--eval_names", 0)
    train.main([*flags, "--out_dir", "whole"])
    assert "3 vectors behind the prefix in half of S_ID, 2 steps per token of 2 people in each of 2 rounds" in capsys.readouterr().out
    monkeypatch.setattr(Logbook, "state_is_due", lambda self: True)
    monkeypatch.setattr(Logbook, "save_state", lambda *given, save=Logbook.save_state: save(*given) or stop())
    for _ in range(2):  # after step 2, the last of the first round, and after step 4
        with pytest.raises(SystemExit):
            train.main([*flags, "--out_dir", "killed"])
    train.main([*flags, "--out_dir", "killed"])
    whole, killed = (tmp_path / folder / "embeddings/apl-robust-4.pt" for folder in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()
    assert read_embedding_file(whole).metadata["robust_form"] == "alternating"


def stop():
    raise KeyboardInterrupt


def test_two_processes_train_one_prefix_that_withstands_attacks(command, tmp_path):
    """In the alternating form, whose tokens both learn; the inner steps belong to a sample like everything else in a step."""
    flags = command("--train_method", "apl-robust", "--robust_form", "alternating", "--attack_steps", 2, "--attack_rounds", 2,
                    "--attack_names", 2, "--iterations", 2, "--val_every", 0, "--eval_names", 0)
    run_script("train", [*flags, "--devices", "cpu,cpu", "--out_dir", "two"])
    train.main([*flags, "--out_dir", "one"])
    two, one = (read_embedding_file(tmp_path / folder / "embeddings/apl-robust-2.pt").vectors["*"] for folder in ("two", "one"))
    torch.testing.assert_close(two, one, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("flags", "said"), [
    (("--attack_vectors", 3), "--attack_vectors has no use with --train_method apl; leave it out"),
    (("--train_method", "apl-robust", "--attack_vectors", 0), "argument --attack_vectors: got '0'; give a whole number of at least 1"),
    (("--train_method", "apl-robust", "--attack_vectors", 59), "--attack_vectors 59 and --num_vectors 2 leave no room for the prompt; give "
                                                               "at most 60 together"),
    (("--train_method", "apl-robust", "--attack_steps", -1), "argument --attack_steps: got '-1'; give a whole number of at least 0"),
    (("--train_method", "apl-robust", "--attack_radius", "inf"), "argument --attack_radius: got 'inf'; give a number of at least 0"),
    (("--train_method", "apl-robust", "--cuda_graphs"), "--cuda_graphs has no use with --train_method apl-robust; leave it out"),
    (("--train_method", "apl-robust", "--attack_rounds", 2), "--attack_rounds has no use with --robust_form inner; leave it out"),
    (("--train_method", "apl-robust", "--robust_form", "alternating", "--attack_radius", 1), "--attack_radius has no use with"),
    (("--train_method", "apl-robust", "--robust_form", "alternating", "--attack_rounds", 9), "9 are more than --iterations 4; give at"),
    (("--train_method", "apl-robust", "--robust_form", "alternating", "--attack_names", 3),
     "S_ID shows 2 people where --attack_names asks for 3; give a smaller number"),
    (("--train_method", "apl-robust", "--robust_form", "alternating", "--placeholder", "sks", "--attack_names", 2),
     "--placeholder sks is the word of the attack's tokens; give another word"),
    (("--preset", "mini-xl", "--train_method", "apl-robust"), "attacks one text encoder, and")])
def test_wrong_values_of_an_attack_are_answered_with_a_sentence(command, capsys, flags, said):
    argv = list(map(str, flags)) if "--preset" in flags else command(*flags)
    assert said in sentence(capsys, argv)


def round_(value):
    """Six digits of a number: with torch 2.6 the last bit of a mean differs."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def test_the_plan_is_printed_and_nothing_is_written(command, tmp_path, capsys):
    train.main(command("--dry_run"))
    printed = capsys.readouterr().out
    assert "2 images of 2 people, 2 templates" in printed and "4 steps of 2 samples" in printed
    assert not list(tmp_path.iterdir())


def test_the_first_people_of_the_list_alone_are_learned_from(command, inputs):
    plan = prepared(*command("--n_identities", 1))[1]
    assert [image.name for image in plan.identities] == ["Ada Stone"] and len(plan.captions) == 2 and plan.mixture.n_identity == 1
    everybody = prepared(*command())[1].identities
    assert prepared(*command("--n_identities", 2))[1].identities == everybody
    people = {name: None for name in ("Ben Wood", "Cleo Vance", "Ada Stone")}  # of Cleo there is no picture
    assert [image.name for image in of_first_people(everybody, people, 1)] == ["Ben Wood"]
    assert of_first_people(everybody, people, 2) == everybody


def test_names_that_may_be_shown_are_half_of_s_reg_with_the_name_in_both_prompts(command, inputs, tmp_path, capsys):
    (tmp_path / "people.csv").write_text((inputs / "people.csv").read_text() + "Dora Lane,keep,\n")
    (tmp_path / "mixed.txt").write_text("Dora Lane\nben  WOOD\n")
    keeping = "--people", "people.csv", "--keep_names", "people.csv", "--eval_names", 0, "--val_every", 0
    plan, without = prepared(*command(*keeping))[1], prepared(*command())[1]
    assert plan.captions[:2] == without.captions and {image.caption for image in plan.captions[2:]} <= {"Dora Lane", "a photo of Dora Lane"}
    assert (plan.mixture.n_caption, plan.identities, plan.kept_names) == (4, without.identities, ["Dora Lane"])
    train.main(command(*keeping))
    assert "4 images with captions, half of which name the 1 people of S_keep, sampled with probability 0.5" in capsys.readouterr().out
    assert "captions or templates had other words" in sentence(capsys, command("--eval_names", 0, "--val_every", 0))
    assert "'Ben Wood' is to be erased and is also on the list mixed.txt" in sentence(capsys, command("--keep_names", "mixed.txt"))
    assert "--keep_names has no use with --mix 1" in sentence(capsys, command("--keep_names", "mixed.txt", "--mix", 1))
    without_reg = command("--keep_names", "mixed.txt", "--train_method", "apl-no-reg")
    assert "--keep_names has no use with --train_method apl-no-reg" in sentence(capsys, without_reg)


def test_another_learning_rate_in_the_same_folder_is_refused(command, capsys):
    train.main(command("--eval_names", 0, "--val_every", 0))
    assert "lr 0.001 instead of 0.1" in sentence(capsys, command("--lr", 0.1))


@pytest.fixture
def own_images(tmp_path, inputs):
    """Copies of S_ID and S_Reg, and their flags."""
    for name in ("s_id", "s_reg"):
        shutil.copytree(inputs / name, tmp_path / "own" / name)
    own = tmp_path / "own"
    return ["--eval_names", 0, "--val_every", 0, "--identity_images", own / "s_id", "--caption_images", own / "s_reg"]


@pytest.mark.parametrize(("file", "said"), [
    ("s_id/Ada Stone/1.png", "the training images had other bytes"), ("s_reg/1.txt", "captions or templates had other words")])
def test_a_finished_run_is_refused_once_an_image_or_text_has_other_bytes(command, own_images, tmp_path, capsys, file, said):
    train.main(command(*own_images))
    path = tmp_path / "own" / file
    content, changed = bytearray(path.read_bytes()), path.stat().st_mtime_ns
    content[0 if path.suffix == ".txt" else -30] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(changed, changed))  # of the same size and time
    refused = sentence(capsys, command(*own_images))
    assert said in refused and "--no-resume" in refused and "--out_dir" in refused


def test_the_same_images_under_another_path_are_the_same_run(command, own_images, tmp_path, capsys):
    train.main(command(*own_images))
    before = (tmp_path / "runs" / "apl" / "state.pt").read_bytes()
    (tmp_path / "own").rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to(tmp_path / "moved")
    for place in ("moved", "link", tmp_path / "moved", "./link/../moved"):
        train.main(command(*own_images[:4], "--identity_images", f"{place}/s_id/", "--caption_images", f"{place}/s_reg"))
    assert (tmp_path / "runs" / "apl" / "state.pt").read_bytes() == before


@pytest.mark.parametrize(("flags", "message"), [
    (["--ckpt_path", "absent.ckpt"], "absent.ckpt is not there"), (["--devices", "977"], "asks for GPU 977"),
    (["--iterations", "-5"], "'-5'"), (["--lookahead", "0"], "'0'"), (["--grad_accum", "3"], "need more than --batch_size 2"),
    (["--target_cache", "/proc/targets"], "/proc/targets cannot be written"), (["--data_seed", "-1"], "'-1'"),
    (["--batch_size", "3", "--devices", "cpu:2"], "cannot be shared evenly"), (["--n_identities", "0"], "--n_identities"),
    (["--n_identities", "3"], "S_ID shows 2 people where --n_identities asks for 3; give a smaller number"),
    (["--caption_images", "empty"], "empty folder"), (["--out_dir", "/proc/run"], "/proc/run cannot be written"),
    (["--placeholder", "anonymization"], "one ordinary token"), (["--init", "absent.pt"], "'absent.pt' is neither")])
def test_wrong_flags_end_with_a_sentence(command, capsys, tmp_path, flags, message):
    (tmp_path / "empty").mkdir()
    assert message in sentence(capsys, command(*flags))


@pytest.mark.parametrize(("shape", "message"), [((2, 768), "768 wide"), ((5, 32), "5 vectors where --num_vectors 2")])
def test_a_first_prefix_of_another_shape_is_refused(command, capsys, shape, message):
    write_embedding_file("other.pt", {"alz": torch.ones(shape)}, {"alz": 41128})
    assert message in sentence(capsys, command("--init", "other.pt"))


def test_training_starts_from_a_prefix_file(command, tmp_path):
    vectors = torch.full((2, 32), 0.25)
    write_embedding_file("first.pt", {"alz": vectors}, {"alz": 41128})
    train.main(command("--init", "first.pt", "--iterations", 1, "--eval_names", 0, "--lr", 1e-6))
    torch.testing.assert_close(read_embedding_file("embeddings/apl-1.pt").vectors["*"], vectors, rtol=0, atol=1e-5)


def test_a_first_prefix_counts_by_its_content(command, capsys, tmp_path):
    argv = command("--iterations", 1, "--eval_names", 0, "--val_every", 0)
    write_embedding_file("first.pt", {"alz": torch.full((2, 32), 0.25)}, {"alz": 41128})
    train.main([*argv, "--init", "first.pt"])
    train.main([*argv, "--init", str(tmp_path / "first.pt")])
    write_embedding_file("first.pt", {"alz": torch.full((2, 32), 0.5)}, {"alz": 41128})
    assert "started with other arguments or inputs (init" in sentence(capsys, [*argv, "--init", "first.pt"])


def test_a_sweep_shares_a_target_cache_from_the_command_line(command, tmp_path, monkeypatch):
    argv = command("--eval_names", 0, "--val_every", 0, "--lookahead", 2)
    train.main([*argv, "--out_dir", "alone", "--alpha", "2"])
    train.main([*argv, "--out_dir", "first", "--target_cache", "targets"])
    kept = sorted(path.name for path in (tmp_path / "targets").rglob("*.safetensors"))
    monkeypatch.setattr("ldm.apl.look_ahead.frozen_predictions", None)
    train.main([*argv, "--out_dir", "sweep", "--target_cache", "targets", "--alpha", "2", "--seed", "1", "--data_seed", "0"])
    train.main([*argv, "--out_dir", "second", "--target_cache", "targets", "--alpha", "2"])
    assert kept == ["0000000-0000001.safetensors", "0000002-0000003.safetensors"] and len(list((tmp_path / "targets").iterdir())) == 1
    alone, second, sweep = ((tmp_path / name / "embeddings/apl-4.pt").read_bytes() for name in ("alone", "second", "sweep"))
    assert alone == second != sweep


def test_a_truncated_checkpoint_is_refused(command, capsys, tmp_path, tiny_files):
    (tmp_path / "cut.safetensors").write_bytes(tiny_files[1].read_bytes()[:5000])
    assert "cut.safetensors is damaged" in sentence(capsys, command("--ckpt_path", "cut.safetensors"))


def test_a_checkpoint_of_another_architecture_is_refused(command, capsys):
    save_file({"conditioner.embedders.0.transformer.x": torch.zeros(1), "b": torch.zeros(1), "c": torch.zeros(1)}, "xl.safetensors")
    assert "is an SDXL checkpoint" in sentence(capsys, command("--ckpt_path", "xl.safetensors"))


def test_a_corrupt_image_is_named_and_nothing_is_lost(command, capsys, tmp_path, inputs):
    for name in ("1", "2"):
        (tmp_path / "s_reg").mkdir(exist_ok=True)
        (tmp_path / "s_reg" / f"{name}.png").write_bytes((inputs / "s_reg" / f"{name}.png").read_bytes()[:100])
        (tmp_path / "s_reg" / f"{name}.txt").write_text("a red car")
    assert ".png cannot be read as an image" in sentence(capsys, command("--caption_images", "s_reg"))


def test_a_name_without_attributes_is_named(command, capsys, tmp_path, inputs):
    (tmp_path / "s_id" / "Dan Fox").mkdir(parents=True)
    (tmp_path / "s_id" / "Dan Fox" / "1.png").write_bytes((inputs / "s_reg" / "1.png").read_bytes())
    assert "'Dan Fox'" in sentence(capsys, command("--identity_images", "s_id"))


def test_a_gallery_without_a_face_is_found_out_before_training(command, capsys, tmp_path):
    np.savez("gallery.npz", **{"Ada Stone": np.ones(512, np.float32)})
    assert "no face for 'Cleo Vance'" in sentence(capsys, command("--gallery", "gallery.npz"))
    assert not (tmp_path / "embeddings").exists()


def test_the_prefixes_of_both_text_encoders_of_sdxl_are_learned(command, tiny_xl_files, tmp_path):
    flags = command("--config_path", tiny_xl_files[0], "--ckpt_path", tiny_xl_files[1])
    train.main(flags)
    file = read_embedding_file(tmp_path / "embeddings" / "apl-4.safetensors")
    first = read_embedding_file(tmp_path / "embeddings" / "apl-2.safetensors")
    assert {key: tuple(vectors.shape) for key, vectors in file.vectors.items()} == {"clip_l": (2, 16), "clip_g": (2, 24)}
    assert not any(torch.equal(file.vectors[key], first.vectors[key]) for key in file.vectors)
    assert file.metadata["step"] == 4 and file.metadata["train_method"] == "apl"
    rows = json.loads((tmp_path / "runs" / "apl" / "results.json").read_text())
    assert {row["prefix"] for row in rows} >= {"none", "embeddings/apl-4.safetensors"}
