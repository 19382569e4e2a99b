"""Command lines: fast, without torch, checked before anything heavy, presets below flags."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from args import common
from args.paper_args import parse_paper_args
from args.test_fid_clip_score_args import parse_test_fid_clip_score_args
from args.test_id_args import parse_test_id_args
from args.train_args import parse_train_args

ROOT = Path(__file__).resolve().parents[2]
PAPER = {"iterations": 20_000, "lr": 1e-3, "batch_size": 1, "num_vectors": 10, "alpha": 1.0, "ddim_steps": 50,
         "eval_ddim_steps": 20, "scale": 7.0, "eval_samples": 4}


@pytest.fixture(autouse=True)
def world(tmp_path, monkeypatch):
    """A folder with every file and folder that a command can ask for, and a preset that names them."""
    for name in ("c.yaml", "m.ckpt", "p.csv", "t.txt", "g.npz", "e.pt", "faces/a.onnx", "ids/a.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    preset(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def preset(folder, **values):
    known = {"config_path": "c.yaml", "ckpt_path": "m.ckpt", "people": "p.csv", "templates": "t.txt",
             "gallery": "g.npz", "face_pack": "faces"}
    (folder / "preset.yaml").write_text(yaml.safe_dump(known | values))


def train(*flags):
    return parse_train_args(["--preset", "preset.yaml", *flags])


def test_id(*flags):
    return parse_test_id_args(["--preset", "preset.yaml", *flags])


test_id.__test__ = False


def sentence(capsys, parse, *flags):
    with pytest.raises(SystemExit) as stop:
        parse(*flags)
    output = capsys.readouterr()
    assert stop.value.code == 2 and output.out == "" and output.err.count("\n") == 1
    return output.err


@pytest.mark.parametrize("module", ["train_args", "test_id_args", "test_fid_clip_score_args", "benchmark_args", "paper_args"])
def test_help_answers_at_once_without_torch(module):
    script = (f"import sys\nfrom args.{module} import *\ntry:\n    parse_{module}(['--help'])\n"
              "except SystemExit as stop:\n    assert stop.code == 0\n"
              "heavy = {'torch', 'numpy', 'transformers', 'omegaconf'} & set(sys.modules)\nassert not heavy, heavy")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert shown.returncode == 0 and "--preset" in shown.stdout, shown.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5  # of processor time, in seconds


@pytest.mark.parametrize(("preset", "values"), [("mini", ("700", "0.003", "True")), ("sd-v1-5", ("20000", "0.001", "False"))])
def test_help_shows_the_values_of_the_preset(capsys, preset, values):
    with pytest.raises(SystemExit):
        train("--preset", preset, "--help")
    said = " ".join(capsys.readouterr().out.replace("-\n", "-").split())
    for flag, value in zip(("--iterations N", "--lr FLOAT", "--c2, --no-c2"), values, strict=True):
        assert f"(default: {value})" in said.split(f" {flag} ")[-1].split(" --")[0]
    assert "(default: [" not in said and "Path(" not in said


def test_defaults_are_the_papers():
    args = train()
    assert {name: getattr(args, name) for name in PAPER} == PAPER
    assert (args.train_method, args.out_dir, args.mix, args.resume) == ("apl", Path("runs/apl"), 0.5, True)
    args = test_id()
    assert (args.prompt_template, args.n_samples, args.ddim_steps, args.scale) == ("A close-up portrait of {name}", 4, 20, 7.0)


def test_the_template_has_a_flag_of_its_own_and_its_old_name_works_once_more(capsys, tmp_path):
    assert test_id("--prompt_template", "{name}!").prompt_template == test_id("--prompt", "{name}!").prompt_template == "{name}!"
    (tmp_path / "own.yaml").write_text("like: preset.yaml\ntest_id.prompt: Portrait of {name}\n")
    assert test_id("--preset", "own.yaml").prompt_template == "Portrait of {name}"
    with pytest.raises(SystemExit):
        test_id("--help")
    assert "--prompt_template TEXT" in (shown := capsys.readouterr().out) and "--prompt " not in shown


@pytest.mark.parametrize("name", ["sd-v1-5", "sd-v1-4", "realistic-vision-v5-1", "sdxl"])
def test_presets_carry_the_papers_values(name, monkeypatch):
    monkeypatch.setattr(sys.modules["args.train_args"], "check_paths", lambda *_: None)
    args = parse_train_args(["--preset", name])
    assert {key: getattr(args, key) for key in PAPER} == PAPER


@pytest.mark.parametrize("path", sorted(common.PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("command", [parse_train_args, parse_test_id_args, parse_test_fid_clip_score_args])
def test_every_preset_is_understood_by_every_command(path, command, monkeypatch):
    for module in (sys.modules[f"args.{name}_args"] for name in ("train", "test_id", "test_fid_clip_score")):
        monkeypatch.setattr(module, "check_paths", lambda *_: None)
    assert command(["--preset", path.stem]).preset == path.stem


def test_a_flag_wins_over_the_preset(world):
    preset(world, iterations=5, lr="2e-3", dry_run=True, resume=False)
    args = train("--iterations", "7")
    assert (args.iterations, args.lr, args.dry_run, args.resume) == (7, 2e-3, True, False)
    assert train("--resume").resume is True


def test_a_preset_key_can_be_for_one_command(world):
    preset(world, **{"train.batch_size": 3, "batch_size": 9, "test_id.batch_size": None, "test_id.det_size": [256, 128], "iterations": 5})
    assert (train().batch_size, test_id().batch_size, test_id().det_size) == (3, 9, [256, 128])


def test_paths_of_a_preset_are_found_from_any_folder(world):
    preset(world, templates="configs/presets/mini.yaml")
    assert train().templates == common.PRESETS / "mini.yaml"
    assert train().people == Path("p.csv")


def test_the_command_of_the_papers_readme_means_stable_diffusion(monkeypatch):
    monkeypatch.setattr(sys.modules["args.train_args"], "check_paths", lambda *_: None)
    args = parse_train_args("--prompt apl --train_method apl --iterations 1000 --lr 1e-3 --config_path c.yaml "
                            "--ckpt_path m.ckpt --devices 0,0 --ddim_steps 50".split())
    assert args.preset == "sd-v1-5" and parse_train_args([]).preset == "mini"
    assert (args.devices, args.lr, args.iterations, args.ddim_steps) == ("0", 1e-3, 1000, 50)


@pytest.mark.parametrize(("content", "message"), [
    ("iteration: 5", "sets 'iteration', which no command knows"),
    ("test_id.iterations: 5", "sets 'test_id.iterations', which no command knows"),
    ("help: true", "sets 'help'"),
    ("- 5", "holds a list"),
    ("a: [", "is not valid YAML"),
    ("iterations: many", "--iterations: got 'many'; give a whole number"),
    ("iterations: [1, 2]", "--iterations: got '[1, 2]'; give a whole number"),
    ("iterations: []", "--iterations: got '[]'; give a whole number"),
])
def test_a_wrong_preset_is_refused(world, capsys, content, message):
    (world / "preset.yaml").write_text(content)
    assert message in sentence(capsys, train)


def test_an_unknown_preset_is_refused_with_those_that_exist(capsys):
    assert "no preset 'tiny'; give one of mini, mini-sd-b, mini-sepia, " in sentence(capsys, train, "--preset", "tiny")


@pytest.mark.parametrize(("flags", "message"), [
    (["--iterations", "-5"], "--iterations: got '-5'; give a whole number of at least 1"),
    (["--iterations", "0.5"], "give a whole number"),
    (["--seed", "9" * 400], "give a whole number"),
    (["--lr", "0"], "give a number above 0"),
    (["--lr", "nan"], "give a number above 0"),
    (["--mix", "1.5"], "from 0 to 1"),
    (["--batch_size", "0"], "--batch_size"),
    (["--num_vectors", "61"], "from 1 to 60"),
    (["--ddim_steps", "1001"], "from 1 to 1000"),
    (["--seed", "-1"], "--seed"),
    (["--train_method", "magic"], "apl-released"),
    (["--train_method", "esd", "--n_identities", "3"], "--n_identities has no use with --train_method esd; leave it out"),
    (["--devices", "gpu"], "none of auto, cpu, cpu:2"),
    (["--prompt", "../apl"], "--prompt"),
    (["--iter", "5"], "unrecognized arguments"),
    (["word"], "unrecognized arguments: word"),
    (["--ckpt_path", "none.ckpt"], "--ckpt_path none.ckpt is not there; put the checkpoint there or give its path"),
    (["--config_path", "faces"], "--config_path faces is a folder; give a file"),
    (["--identity_images", "p.csv"], "--identity_images p.csv is a file; make them"),
    (["--identity_images", "empty"], "--identity_images empty is an empty folder"),
    (["--face_pack", "none"], "unpack an InsightFace pack"),
    (["--out_dir", "p.csv/run"], "--out_dir p.csv/run cannot be written"),
    (["--embeddings_dir", "p.csv"], "--embeddings_dir p.csv cannot be written"),
])
def test_wrong_train_flags_end_with_a_sentence(world, capsys, flags, message):
    (world / "empty").mkdir()
    assert message in sentence(capsys, train, *flags)


@pytest.mark.parametrize(("flags", "message"), [
    (["--prompt", "A portrait"], "has no place for the name"),
    (["--embedding", "e.pt", "none.pt"], "--embedding none.pt is not there"),
    (["--devices", "tpu"], "none of auto, cpu, cpu:2"),
    (["--group", "both"], "train"),
    (["--threshold", "2"], "from -1 to 1"),
    (["--det_size", "0"], "--det_size"),
    (["--n_samples", "0"], "--n_samples"),
])
def test_wrong_test_id_flags_end_with_a_sentence(capsys, flags, message):
    assert message in sentence(capsys, test_id, *flags)


def test_a_table_of_one_s_own_does_not_take_the_place_of_the_paper_s(world, capsys):
    (world / "other").mkdir()
    for name in ("table2.yaml", "mine.yaml", "other/mine.yaml"):
        (world / name).write_text("rows: []")
    for what in (["table2.yaml"], ["mine.yaml", "other/mine.yaml"], ["table3", str(ROOT / "configs/paper/table3.yaml")]):
        assert "would overwrite another" in sentence(capsys, lambda *flags: parse_paper_args([*flags]), *what)
    (world / "training.yaml").write_text("rows: []")
    said = sentence(capsys, lambda *flags: parse_paper_args([*flags]), "training.yaml")
    assert "would use the folder of the training of all tables" in said
    assert parse_paper_args([str(ROOT / "configs/paper/table3.yaml"), "mine.yaml"]).what[1] == "mine.yaml"


def test_what_is_needed_is_asked_for(world, capsys):
    (world / "preset.yaml").write_text("people: p.csv")
    assert "--config_path is missing" in sentence(capsys, train)
    assert "--face_pack is missing" in sentence(capsys, test_id)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which not even root may write")
def test_a_read_only_output_is_refused(capsys):
    assert "--out_dir /proc/run cannot be written" in sentence(capsys, train, "--out_dir", "/proc/run")


def test_images_need_no_model(world):
    (world / "m.ckpt").unlink()
    args = test_id("--images", "ids", "--embedding", "none.pt")
    assert (args.images, args.ckpt_path, args.config_path, args.embedding) == (Path("ids"), None, None, None)


def test_no_table_needs_no_face_pack(world):
    preset(world, face_pack="none")
    assert train("--eval_names", "0").face_pack is None


@pytest.mark.parametrize(("given", "kept"), [("auto", "auto"), ("cpu", "cpu"), ("cpu:2", "cpu:2"), ("0,1", "0,1"),
                                             ("1,1", "1"), ("cpu,cpu", "cpu:2"), ("cpu,cpu,cpu", "cpu:3")])
@pytest.mark.parametrize("command", [train, test_id])
def test_devices(command, given, kept):
    args = command("--devices", given, "--num_nodes", "2")
    assert (args.devices, args.num_nodes) == (kept, 2)


def test_a_preset_that_is_like_another_wins_over_it_in_every_command(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["args.test_id_args"], "check_paths", lambda *_: None)
    (tmp_path / "mine.yaml").write_text("like: mini-sepia\nddim_steps: 7\n")
    (tmp_path / "two.yaml").write_text("like: mine.yaml\nscale: 3\n")
    args = parse_test_id_args(["--preset", str(tmp_path / "two.yaml")])
    assert (args.ddim_steps, args.scale, args.edited_weights.name) == (7, 3, "mini-sepia.safetensors")
    assert args.embedding[0].name == "apl-mini.pt"  # of mini, by way of mini-sepia


@pytest.mark.parametrize(("text", "message"), [
    ("like: loop.yaml", "loop.yaml is like itself"), ("like: none", "which is not there; name one"),
    ("like: none.yaml", "which is not there; name one")])
def test_a_preset_that_is_like_none_is_refused(tmp_path, capsys, text, message):
    (tmp_path / "loop.yaml").write_text(text)
    assert message in sentence(capsys, test_id, "--preset", str(tmp_path / "loop.yaml"))
