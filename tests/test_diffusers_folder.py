"""A folder that diffusers saved loads as the single file of the same model, in each form; a wrong one gives one sentence."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from args.common import Parser, add_model_arguments, add_preset_argument, parse_with_preset
from args.test_id_args import parse_test_id_args
from ldm.benchmark.diffusers_twin import diffusers_pipeline
from ldm.contents import digest_of
from ldm.edited_weights import write_edited_weights
from ldm.generation import generate
from ldm.loading import ModelFiles, file_hash, load_frozen_model, read_state_dict, shapes_of, weights_hash
from ldm.util import UserError
from tests.conftest import TINY, TINY_XL
from tests.test_loading import RunsCode

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline") / "tiny-v1.5"
    diffusers_pipeline(tiny_model, TINY).save_pretrained(path)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def refused(config, path) -> str:
    with pytest.raises(UserError) as error:
        load_frozen_model(config, path)
    message = str(error.value)
    assert "\n" not in message and str(path) in message
    return message


def same(loaded, expected) -> bool:
    ours, theirs = loaded.state_dict(), expected.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_folder_loads_as_the_single_file_and_generates_the_same_bytes(folder, tiny_files):
    models = [load_frozen_model(tiny_files[0], path) for path in (folder, tiny_files[1])]
    assert same(*models) and not any(tensor.is_meta for tensor in models[0].parameters())
    images = [[image for _, image in generate(model, [("a person", 0)], ddim_steps=3, scale=3.0, seed=1, batch_size=1)] for model in models]
    assert np.array_equal(*images)


def test_hash_is_of_the_weights_that_are_read_and_the_name_is_the_folders(folder, copy, tiny_files):
    files, other = ModelFiles(tiny_files[0], folder), ModelFiles(tiny_files[0], copy)
    assert files.name == "tiny-v1.5" and files.hash() == other.hash()
    (copy / "README.md").write_text("unrelated")
    assert files.hash() == other.hash()
    state = load_file(copy / UNET)
    save_file(state | {"conv_in.bias": state["conv_in.bias"] + 1}, copy / UNET)
    assert files.hash() != other.hash()


def test_edited_weights_of_a_single_file_are_those_of_its_folder_too(folder, copy, tiny_files, tiny_model, tmp_path):
    key, path = "model.diffusion_model.out.2.bias", tmp_path / "edited.safetensors"
    base = {"base_model": file_hash(tiny_files[1]), "base_weights": weights_hash(tiny_model.state_dict(), shapes_of(tiny_model))}
    write_edited_weights(path, {key: torch.full((4,), 7.0)}, **base)
    assert load_frozen_model(tiny_files[0], folder, edited_weights=path).state_dict()[key].eq(7).all()
    state = load_file(copy / UNET)
    save_file(state | {"conv_in.bias": state["conv_in.bias"] + 1}, copy / UNET)
    with pytest.raises(UserError, match="was made for another checkpoint"):
        load_frozen_model(tiny_files[0], copy, edited_weights=path)


def test_names_of_before_diffusers_0_18_load(copy, tiny_model, tiny_files):
    path = copy / "vae/diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(path)
    for new, old in names.items():
        state = {key.replace(f".{new}.", f".{old}."): value for key, value in state.items()}
    save_file(state, path)
    text = load_file(copy / "text_encoder/model.safetensors")
    text = {f"text_model.{key}": value for key, value in text.items()} | {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    save_file(text, copy / "text_encoder/model.safetensors")
    assert same(load_frozen_model(tiny_files[0], copy), tiny_model)


@pytest.mark.parametrize(("removed", "sentence"), [
    (UNET, "there are no weights in .*/unet of a diffusers folder"), ("vae", "there are no weights in .*/vae"),
    ("unet/config.json", "unet/config.json of a diffusers folder is missing"),
    ("text_encoder", "text_encoder/config.json of a diffusers folder is missing"),
    ("model_index.json", "there is no checkpoint file .*: it is a part of a diffusers folder")])
def test_missing_part_is_named(copy, tiny_files, removed, sentence):
    shutil.rmtree(copy / removed) if (copy / removed).is_dir() else (copy / removed).unlink()
    with pytest.raises(UserError, match=sentence):
        load_frozen_model(tiny_files[0], copy)


@pytest.mark.parametrize("part", [0.0, 0.0001, 0.5, 0.999])
@pytest.mark.parametrize("file", [UNET, "text_encoder/model.safetensors"])
def test_truncated_part_is_named(copy, tiny_files, file, part):
    os.truncate(copy / file, int(part * (copy / file).stat().st_size))
    assert f"{copy / file} is damaged or no" in refused(tiny_files[0], copy)


def test_wrong_content_is_named(copy, tiny_files):
    state = load_file(copy / UNET)
    save_file({key: value for key, value in state.items() if key != "conv_in.weight"}, copy / UNET)
    assert "lacks 1 of the" in refused(tiny_files[0], copy)
    save_file(state | {"extra.weight": torch.ones(1)}, copy / UNET)
    assert "(first: model.diffusion_model.extra.weight)" in refused(tiny_files[0], copy)
    save_file(state | {"conv_out.bias": torch.full((4,), float("nan"))}, copy / UNET)
    assert "NaN or infinity in the tensor 'model.diffusion_model.out.2.bias'" in refused(tiny_files[0], copy)
    (copy / "model_index.json").write_text("{")
    assert "model_index.json of a diffusers folder is damaged" in refused(tiny_files[0], copy)


FORMS = [{"safe_serialization": False}, {"max_shard_size": "500KB"}, {"safe_serialization": False, "max_shard_size": "500KB"},
         {"variant": "fp16"}, {"variant": "fp16", "max_shard_size": "500KB"}]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_form_of_the_weights_loads_every_tensor(tiny_model, tiny_files, tmp_path, form):
    pipeline = diffusers_pipeline(tiny_model, TINY)
    pipeline.save_pretrained(tmp_path / "form", **form)
    loaded = load_frozen_model(tiny_files[0], tmp_path / "form")
    assert same(loaded, tiny_model)
    keys = shapes_of(loaded)
    states = loaded.state_dict(), *map(read_state_dict, (tmp_path / "form", tiny_files[1]))
    assert len({weights_hash(state, keys) for state in states}) == 1


def test_text_encoder_as_pickle_loads(copy, tiny_model, tiny_files):
    """transformers no longer writes this form, but many folders have it."""
    path = copy / "text_encoder/model.safetensors"
    torch.save({f"text_model.{key}": value for key, value in load_file(path).items()}, copy / "text_encoder/pytorch_model.bin")
    path.unlink()
    assert same(load_frozen_model(tiny_files[0], copy), tiny_model)


def test_full_precision_is_preferred(copy, tiny_model, tiny_files):
    state = load_file(copy / UNET)
    save_file({key: value.half() for key, value in state.items()}, copy / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert same(load_frozen_model(tiny_files[0], copy), tiny_model)
    (copy / UNET).unlink()
    half = load_frozen_model(tiny_files[0], copy).model.state_dict()
    assert all(torch.equal(half[key], value.half().float()) for key, value in tiny_model.model.state_dict().items())


def test_pickle_is_not_executed(copy, tiny_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (copy / UNET).unlink()
    torch.save({"conv_in.weight": torch.ones(1), "x": RunsCode()}, copy / "unet/diffusion_pytorch_model.bin")
    assert "could run code, and was not loaded" in refused(tiny_files[0], copy)
    assert not (tmp_path / "executed").exists()


def test_damaged_shards_are_named(tiny_model, tiny_files, tmp_path):
    diffusers_pipeline(tiny_model, TINY).save_pretrained(tmp_path / "form", max_shard_size="500KB")
    shard = sorted((tmp_path / "form/unet").glob("*-00002-of-*.safetensors"))[0]
    os.truncate(shard, shard.stat().st_size // 2)
    assert f"{shard} is damaged" in refused(tiny_files[0], tmp_path / "form")
    shard.unlink()
    assert f"there is no checkpoint file {shard}" in refused(tiny_files[0], tmp_path / "form")
    index = tmp_path / "form/unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text("{}")
    assert f"{index} does not name the files of the weights" in refused(tiny_files[0], tmp_path / "form")


@pytest.mark.parametrize("form", [{}, {"max_shard_size": "500KB"}], ids=str)
def test_sdxl_folder_loads_every_tensor(tiny_xl_model, tiny_xl_files, tmp_path, form):
    """The q, k and v of an attention of the second text encoder may lie in different shards."""
    diffusers_pipeline(tiny_xl_model, TINY_XL).save_pretrained(tmp_path / "xl", **form)
    assert same(load_frozen_model(tiny_xl_files[0], tmp_path / "xl"), tiny_xl_model)


def test_folder_of_another_kind_than_the_config_names_the_config(folder, tiny_xl_files):
    assert "is a Stable Diffusion v1 checkpoint: it lacks" in refused(tiny_xl_files[0], folder)


@pytest.mark.parametrize(("file", "changed", "sentence"), [
    ("model_index.json", {"_class_name": "StableDiffusion3Pipeline"}, "of a model of the class StableDiffusion3Pipeline"),
    ("model_index.json", {"_class_name": "FluxPipeline"}, "of a model of the class FluxPipeline"),
    ("model_index.json", {"text_encoder": [None, None], "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]},
     "an SDXL refiner"),
    ("unet/config.json", {"in_channels": 9}, "an inpainting model, whose U-Net has 9 input channels instead of 4"),
    ("unet/config.json", {"in_channels": 8}, "an image-editing model"),
    ("text_encoder/config.json", {"hidden_size": 1024}, "of Stable Diffusion 2;"),
    ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, "a v-prediction model, and the anonymization prompt")])
def test_kind_that_cannot_be_used_is_named(copy, tiny_files, capsys, file, changed, sentence):
    (copy / file).write_text(json.dumps(json.loads((copy / file).read_text()) | changed))
    assert sentence in refused(tiny_files[0], copy)
    with pytest.raises(SystemExit):  # before anything is loaded
        parse_test_id_args(["--preset", "mini", "--ckpt_path", str(copy)])
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(("file", "changed", "sentence"), [
    ("scheduler/scheduler_config.json", {"beta_end": 0.02}, "with 0.02 as the beta_end of its scheduler, but .* has 0.012;"),
    ("scheduler/scheduler_config.json", {"beta_schedule": "linear"}, "with linear as the beta_schedule"),
    ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "with True as the rescale_betas_zero_snr"),
    ("vae/config.json", {"scaling_factor": 0.13025}, "with 0.13025 as the scaling_factor of its autoencoder, but .* has 0.18215;")])
def test_settings_of_another_model_than_the_config_are_named(copy, tiny_files, file, changed, sentence):
    (copy / file).write_text(json.dumps(json.loads((copy / file).read_text()) | changed))
    assert re.search(sentence, refused(tiny_files[0], copy))
    if file.startswith("vae"):
        with pytest.raises(UserError, match=sentence):
            load_frozen_model(*tiny_files, vae_path=copy / "vae")


def test_folder_is_a_flag_of_every_command_and_known_by_its_weights(folder, copy):
    args = parse_test_id_args(["--preset", "mini", "--ckpt_path", str(folder)])
    (copy / "README.md").write_text("unrelated")
    assert args.ckpt_path == folder and digest_of({"ckpt_path": folder}) == digest_of({"ckpt_path": copy})


def test_vae_path_takes_a_pipeline_or_an_autoencoder_alone(folder, copy, tiny_model, tiny_files):
    path = copy / "vae/diffusion_pytorch_model.safetensors"
    save_file({key: value + 1 for key, value in load_file(path).items()}, path)
    shutil.rmtree(copy / "unet")
    for vae_path in (copy, copy / "vae"):
        loaded = ModelFiles(*tiny_files, vae_path=vae_path).load().state_dict()
        assert all(torch.equal(loaded[key], value + key.startswith("first_stage_model.")) for key, value in tiny_model.state_dict().items())
    path.unlink()
    with pytest.raises(UserError, match="there are no weights in .*/vae"):
        load_frozen_model(*tiny_files, vae_path=copy / "vae")


@pytest.mark.parametrize(("sdxl", "config"), [(False, "v1-inference.yaml"), (True, "sdxl-base.yaml")])
def test_config_is_chosen_by_the_kind_of_the_folder(copy, sdxl, config):
    if sdxl:
        index = copy / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}))
        shutil.copytree(copy / "text_encoder", copy / "text_encoder_2")
    parser = Parser(prog="test_id.py")
    add_preset_argument(parser)
    add_model_arguments(parser)
    args = parse_with_preset(parser, ["--ckpt_path", str(copy)])
    assert args.config_path.name == config and args.preset == ("sdxl" if sdxl else "sd-v1-5")
    assert config in refused(None, copy)  # this model is smaller than the config says


def test_config_of_a_file_must_be_given(tiny_files):
    assert "there is no config for" in refused(None, tiny_files[1])
