"""Command line of dataset_generation.py: four subcommands, help without torch, presets below flags."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from args import common, dataset_generation_args
from args.dataset_generation_args import COMMANDS, build_parser, parse_dataset_generation_args

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def anywhere(monkeypatch):
    """No path needs to be there."""
    monkeypatch.setattr(dataset_generation_args, "check_paths", lambda *_: None)


def sentence(capsys, *argv):
    with pytest.raises(SystemExit) as stopped:
        parse_dataset_generation_args(list(argv))
    said = capsys.readouterr()
    assert stopped.value.code == 2 and said.out == "" and said.err.count("\n") == 1
    return said.err


def test_help_names_the_subcommands_and_needs_no_torch():
    code = ("import sys\ntry:\n    import dataset_generation\n    dataset_generation.main(['--help'])\n"
            "except SystemExit as stop:\n    assert stop.code == 0\n"
            "heavy = {'torch', 'numpy', 'PIL', 'transformers'} & set(sys.modules)\nassert not heavy, heavy")
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0 and all(command in shown.stdout for command in COMMANDS), shown.stderr


@pytest.mark.parametrize(("command", "flags"), [
    ("attributes", ["--names", "--answers", "--base_url"]), ("faces", ["--templates", "--negative_prompt", "--one_face"]),
    ("gallery", ["--photos", "--identity_meta"]), ("captions", ["--images", "--captions", "--min_size"])])
def test_the_help_of_a_subcommand_shows_its_own_flags(capsys, command, flags):
    with pytest.raises(SystemExit) as stopped:
        parse_dataset_generation_args([command, "--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0 and all(flag in shown for flag in (*flags, "--preset", "--out_dir"))
    assert ("--ddim_steps" in shown) == (command == "faces")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("preset", sorted(path.stem for path in common.PRESETS.glob("*.yaml")))
def test_every_preset_is_understood_by_every_subcommand(anywhere, preset, command):
    argv = [command, "--preset", preset, *(["--images", "a", "--out_dir", "b"] if command == "captions" else [])]
    assert parse_dataset_generation_args(argv).command == command


def test_the_released_codes_settings_are_the_defaults(anywhere):
    args = parse_dataset_generation_args(["faces", "--preset", "sd-v1-5"])
    assert (args.n_samples, args.ddim_steps, args.scale, args.one_face, args.group) == (100, 20, 7.0, True, "train")
    assert "blurry" in args.negative_prompt


def test_a_preset_key_can_be_for_this_command(anywhere, tmp_path):
    values = {"dataset_generation.n_samples": 3, "n_samples": 9, "dataset_generation.one_face": False, "lr": 0.1, "scale": 2}
    (tmp_path / "preset.yaml").write_text(yaml.safe_dump(values))
    args = parse_dataset_generation_args(["faces", "--preset", str(tmp_path / "preset.yaml"), "--scale", "5"])
    assert (args.n_samples, args.one_face, args.scale, args.face_pack) == (3, False, 5.0, None)


def test_all_flags_together_are_one_parser_with_each_flag_once():
    names = [option for action in build_parser()._actions for option in action.option_strings]
    assert len(names) == len(set(names)) and {"--names", "--templates", "--photos", "--captions"} <= set(names)


@pytest.mark.parametrize(("argv", "message"), [
    ([], "required: COMMAND"), (["images"], "choose from"), (["attributes"], "--names is missing"), (["faces", "--lr", "1"], "--lr"),
    (["gallery", "--photos", "none"], "--photos none is not there"), (["captions", "--min_size", "0"], "--min_size"),
    (["faces", "--max_redraws", "-1"], "--max_redraws"), (["faces", "--n_samples", "1000000000"], "give a whole number from 1 to 10000")])
def test_wrong_command_lines_end_with_a_sentence(capsys, argv, message):
    assert message in sentence(capsys, *argv)
