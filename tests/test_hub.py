"""A model of the Hub is named like a path: fetched once with only the files that are read, then used without the network."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants
from safetensors.torch import load, save

from args.common import Parser, add_model_arguments, add_preset_argument, parse_with_preset
from args.test_id_args import parse_test_id_args
from args.train_args import parse_train_args, train_inputs
from ldm.benchmark.diffusers_twin import diffusers_pipeline
from ldm.hub import is_hub_id, local_model
from ldm.loading import ModelFiles, load_frozen_model
from ldm.util import UserError
from tests.conftest import TINY
from tests.hub_server import Files
from tests.test_diffusers_folder import same

CONFIGS = ["model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json", "unet/config.json", "vae/config.json"]
WEIGHTS = ["text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"]
UNET = WEIGHTS[1]
OTHERS = ["README.md", "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors", "v1-5.ckpt",
          "text_encoder/flax_model.msgpack", "vae_decoder/model.onnx", "safety_checker/config.json", "safety_checker/model.safetensors"]
ID = "someone/tiny-v1.5"


@pytest.fixture(scope="module")
def files(tiny_model, tmp_path_factory) -> Files:
    """A model as people upload it."""
    folder = tmp_path_factory.mktemp("pipeline")
    diffusers_pipeline(tiny_model, TINY).save_pretrained(folder)
    ours = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return ours | dict.fromkeys(OTHERS, b"unused")


def refused(path, **others) -> str:
    with pytest.raises(UserError) as error:
        local_model(path, **others)
    assert "\n" not in str(error.value) and ";" in str(error.value)
    return str(error.value)


def without_network(monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if hasattr(constants, "is_offline_mode"):
        assert constants.is_offline_mode()


def test_only_the_files_that_are_read_are_downloaded_and_only_once(hub, files, tiny_files, tiny_model, monkeypatch):
    commit = hub.add(ID, files)
    assert same(load_frozen_model(tiny_files[0], ID), tiny_model)
    assert sorted(hub.downloads) == sorted(CONFIGS + WEIGHTS)
    hub.requests.clear()
    assert same(load_frozen_model(tiny_files[0], ID), tiny_model) and hub.requests == []
    without_network(monkeypatch)
    assert local_model(ID).name == commit


def test_a_cache_that_another_program_filled_serves_without_the_network(hub, files, tiny_files, tiny_model, monkeypatch):
    folder = Path(constants.HF_HUB_CACHE, "models--someone--tiny-v1.5")
    for name in CONFIGS + WEIGHTS:
        path = folder / "snapshots" / ("c" * 40) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[name])
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("c" * 40)
    without_network(monkeypatch)
    assert same(load_frozen_model(tiny_files[0], Path(ID)), tiny_model) and hub.requests == []
    (folder / "snapshots" / ("c" * 40) / UNET).unlink()
    assert "not complete in the Hub's cache, and the Hub did not do what was asked" in refused("someone/tiny-v1.5@" + "c" * 40)


def test_a_file_that_the_cache_lacks_is_downloaded(hub, files, tiny_files, tiny_model):
    commit = hub.add(ID, files | {"unet/diffusion_pytorch_model.bin": b"x"})
    (local_model(ID) / UNET).resolve().unlink()
    hub.requests.clear()
    assert local_model(ID).name == commit and UNET in hub.downloads and WEIGHTS[0] not in hub.downloads


def test_a_revision_is_a_branch_a_tag_or_a_commit_and_is_recorded(hub, files, tiny_files):
    changed = {key: value + 1 for key, value in load(files[UNET]).items()}
    first, second = hub.add(ID, files), hub.add(ID, files | {UNET: save(changed)}, ref="v2")
    by_tag, by_commit = (ModelFiles(tiny_files[0], local_model(f"{ID}@{revision}")) for revision in ("v2", second))
    latest = ModelFiles(tiny_files[0], local_model(ID))
    assert by_tag.ckpt_path == by_commit.ckpt_path and by_tag.ckpt_path.name == second and latest.ckpt_path.name == first
    assert by_tag.hash() != latest.hash() == ModelFiles(tiny_files[0], Path(ID)).hash()
    assert latest.name == ModelFiles(tiny_files[0], Path(ID)).name == f"tiny-v1.5@{first[:7]}"
    args = parse_test_id_args(["--preset", "mini", "--ckpt_path", f"{ID}@v2"])
    assert args.ckpt_path == by_tag.ckpt_path  # what arguments.json will have


def test_what_cannot_be_had_is_said_in_one_sentence(hub, files, monkeypatch):
    hub.add(ID, files)
    hub.add("someone/closed", files)
    hub.closed.add("someone/closed")
    hub.add("someone/single", {"sd.ckpt": b"1", "README.md": b""})
    hub.add("someone/sd2", files | {"text_encoder/config.json": json.dumps({"hidden_size": 1024}).encode()})
    hub.add("someone/half", {name: content for name, content in files.items() if not name.startswith("vae/")})
    assert "the Hub has no such model" in refused("someone/nothing")
    assert "has no revision v9" in refused(f"{ID}@v9")
    assert "accept its conditions" in refused("someone/closed")
    assert "or one of its files, such as someone/single/sd.ckpt" in refused("someone/single")
    assert "has no file" in refused("someone/single/other.ckpt")
    assert "of Stable Diffusion 2;" in refused("someone/sd2")
    assert "/vae of a diffusers folder" in refused("someone/half")
    assert not [name for name in hub.downloads if name.endswith((".safetensors", ".ckpt", ".bin"))]
    without_network(monkeypatch)
    assert "the Hub did not do what was asked" in refused(ID) and "HF_HUB_OFFLINE" in refused(ID)


def test_a_hub_that_does_not_answer_is_named(hub, files, monkeypatch):
    hub.close()
    assert f"{ID} is no folder here and not complete in the Hub's cache, and the Hub did not do what was asked" in refused(ID)


def test_one_file_of_a_model_is_a_checkpoint(hub, tiny_files, tiny_model, monkeypatch):
    commit = hub.add("someone/single", {"x/tiny.safetensors": tiny_files[1].read_bytes(), "other.ckpt": b"1"})
    files = ModelFiles(tiny_files[0], local_model("someone/single/x/tiny.safetensors"))
    assert same(files.load(), tiny_model) and hub.downloads == ["x/tiny.safetensors"] and files.name == "tiny"
    hub.requests.clear()
    assert local_model(f"someone/single@{commit}/x/tiny.safetensors") == files.ckpt_path and hub.requests == []


def test_an_existing_path_wins_and_a_missing_file_is_not_asked_for(hub, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hub.add(ID, files)
    assert is_hub_id(ID)
    (tmp_path / ID).mkdir(parents=True)
    assert local_model(ID) == Path(ID)
    for path in ("models/sd-v1-4.ckpt", "someone/other", "/someone/tiny", "../someone/tiny", "a/b/c", "a.safetensors", "configs/new.yaml",
                 "data/new/x.safetensors"):
        assert not is_hub_id(path), path
    assert hub.requests == []


def test_an_autoencoder_is_fetched_without_the_rest(hub, files, tiny_files, tiny_model):
    alone = {name.removeprefix("vae/"): content for name, content in files.items() if name.startswith("vae/")}
    hub.add(ID, files)
    hub.add("someone/tiny-vae", alone)
    for repo in (ID, "someone/tiny-vae"):
        hub.requests.clear()
        assert same(load_frozen_model(*tiny_files, vae_path=repo), tiny_model)
        assert [name for name in hub.downloads if name.endswith(".safetensors")] == [
            "vae/diffusion_pytorch_model.safetensors" if repo == ID else "diffusion_pytorch_model.safetensors"]


def test_flags_are_checked_before_anything_is_downloaded(hub, files, capsys):
    hub.add(ID, files)
    with pytest.raises(SystemExit):
        parse_test_id_args(["--preset", "mini", "--ckpt_path", ID, "--people", "none.csv"])
    assert "none.csv is not there" in capsys.readouterr().err and hub.requests == []
    with pytest.raises(SystemExit):
        parse_test_id_args(["--preset", "mini", "--ckpt_path", "someone/nothing"])
    assert "error: test_id.py: --ckpt_path: there is no folder someone/nothing" in capsys.readouterr().err
    hub.requests.clear()
    args = parse_train_args(["--preset", "mini", "--ckpt_path", ID, "--dry_run"])
    assert hub.requests == [] and [given.flaw for given in train_inputs(args) if given.flag == "ckpt_path"] == [None]


def test_the_preset_is_chosen_by_the_kind_from_the_configs_alone(hub, files):
    hub.add(ID, files)
    index = json.loads(files["model_index.json"]) | {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}
    hub.add("someone/xl", files | {"model_index.json": json.dumps(index).encode(), "text_encoder_2/config.json": b"{}"})
    for repo, preset in ((ID, "sd-v1-5"), ("someone/xl", "sdxl")):
        parser = Parser(prog="test_id.py")
        add_preset_argument(parser)
        add_model_arguments(parser)
        assert parse_with_preset(parser, ["--ckpt_path", repo]).preset == preset
    assert not [name for name in hub.downloads if name.endswith(".safetensors")]
