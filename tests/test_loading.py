"""Checkpoints of every public form load tensor for tensor; a wrong file gives one sentence that says what it is."""

import os
import sys
import types

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm.loading import ModelFiles, file_hash, load_frozen_model, read_config, read_state_dict
from ldm.modules.file_kinds import describe
from ldm.util import UserError, instantiate_from_config

INPUT = "model.diffusion_model.input_blocks.0.0.weight"


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.fixture(scope="module")
def config(tiny_files):
    return tiny_files[0]


@pytest.fixture(scope="module")
def state(tiny_files):
    return load_file(tiny_files[1])


def refused(config, path) -> str:
    with pytest.raises(UserError) as error:
        load_frozen_model(config, path)
    return str(error.value)


def beside(state) -> dict:
    """What public checkpoints hold beside their weights."""
    return {"betas": torch.ones(1000), "alphas_cumprod": torch.ones(1000), "model_ema.decay": torch.tensor(0.9),
            "model_ema.diffusion_modelout2weight": torch.ones(3), "scale_factor": torch.tensor(1.0),
            "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
            "cond_stage_model.text_projection": torch.ones(2, 2), "cond_stage_model.logit_scale": torch.ones(())}


@pytest.mark.parametrize("form", ["safetensors", "safetensors fp16", "ckpt", "ckpt wrapped fp16", "ckpt legacy container",
                                  "safetensors with buffers", "ckpt with buffers", "ckpt of one level less"])
def test_form_loads_every_tensor(config, state, tmp_path, form):
    saved = {key: value.half() for key, value in state.items()} if "fp16" in form else dict(state)
    expected = {key: value.float() for key, value in saved.items()}
    if "buffers" in form:
        saved |= beside(state)
    if "one level less" in form:
        saved = {key.replace(".text_model.", "."): value for key, value in saved.items()}
    path = tmp_path / ("model.safetensors" if "safetensors" in form else "model.ckpt")
    if path.suffix == ".safetensors":
        save_file(saved, path)
    else:
        torch.save({"state_dict": saved, "global_step": 7} if "wrapped" in form else saved, path,
                   _use_new_zipfile_serialization="legacy" not in form)
    model = load_frozen_model(config, path)
    loaded = model.state_dict()
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[key], expected[key]) for key in expected)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def test_loaded_model_predicts_what_the_saved_one_did(tiny_model, tiny_files):
    model = load_frozen_model(*tiny_files)
    latent, timestep = torch.randn(1, 4, 4, 4), torch.tensor([10])
    assert torch.equal(model.apply_model(latent, timestep, model.get_learned_conditioning("a person")),
                       tiny_model.apply_model(latent, timestep, tiny_model.get_learned_conditioning("a person")))


def test_dtype_is_the_one_asked_for(tiny_files):
    model = load_frozen_model(*tiny_files, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16} and model.betas.dtype == torch.float32


def test_load_state_dict_as_existing_scripts_call_it(config, state):
    model = instantiate_from_config(read_config(config))
    missing, unexpected = model.load_state_dict(state | beside(state), strict=False)
    assert missing == [] and unexpected == []
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_checkpoint_stays_usable_when_the_file_changes(config, state, tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save(state, path)
    model = load_frozen_model(config, path)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(model.state_dict()[INPUT], state[INPUT])


@pytest.mark.parametrize(("changed", "sentence"), [
    ({"conditioner.embedders.0.x": 1}, "is an SDXL checkpoint: it lacks 1 of the"),
    ({"cond_stage_model.model.transformer.resblocks.0.x": 1}, "is a Stable Diffusion 2 checkpoint"),
    ({"model.diffusion_model.joint_blocks.0.x": 1}, "is a Stable Diffusion 3 checkpoint"),
    ({"double_blocks.0.x": 1}, "is a Flux checkpoint"),
    ({"lora_unet_x.lora_down.weight": 1}, "is a LoRA"),
    ({"down_blocks.0.x": 1}, "is the U-Net from a diffusers folder"),
    ({"decoder.mid.block_1.x": 1}, "is an autoencoder alone"),
    ({"text_model.encoder.layers.0.x": 1}, "is a text encoder alone"),
    ({}, "lacks 1 of the"),
])
def test_incomplete_checkpoint_is_named(config, state, tmp_path, changed, sentence):
    saved = {key: value for key, value in state.items() if key != INPUT} | {key: torch.ones(1, 1, 1) for key in changed}
    save_file(saved, tmp_path / "other.safetensors")
    message = refused(config, tmp_path / "other.safetensors")
    assert sentence in message and f"U-Net tensors of {config} (first: {INPUT})" in message
    assert ("belong together" in message) == (not changed)  # a model of this kind may be whole, and its config another one


def test_inpainting_checkpoint_is_named(config, state, tmp_path):
    save_file(state | {INPUT: torch.ones(32, 9, 3, 3)}, tmp_path / "other.safetensors")
    assert "in shape (32, 9, 3, 3), as inpainting and image-editing models have it" in \
        refused(config, tmp_path / "other.safetensors")


def test_surplus_tensors_are_refused(config, state, tmp_path):
    save_file(state | {"control_model.x": torch.ones(1)}, tmp_path / "other.safetensors")
    assert "is a ControlNet: 1 of its tensors have no place in" in refused(config, tmp_path / "other.safetensors")


@pytest.mark.parametrize("content", [{"string_to_param": {"*": torch.ones(2, 32)}, "string_to_token": {"*": 1}},
                                     {"<alz>": torch.ones(2, 32)}, {"emb_params": torch.ones(2, 32)}])
def test_prefix_in_place_of_a_checkpoint_is_named(config, tmp_path, content):
    torch.save(content, tmp_path / "prefix.pt")
    assert "is a prefix (textual inversion embedding)" in refused(config, tmp_path / "prefix.pt")


def test_checkpoint_without_tensors_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(UserError, match="holds a list instead of tensors by name"):
        read_state_dict(tmp_path / "list.ckpt")


def test_lightning_checkpoint_with_its_callback_loads(config, state, tmp_path, monkeypatch):
    """As training wrote sd-v1-4.ckpt: the state of a callback, by the callback's class."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    torch.save({"state_dict": state, "callbacks": {module.ModelCheckpoint: {"best_model_path": ""}}}, tmp_path / "model.ckpt")
    assert load_frozen_model(config, tmp_path / "model.ckpt").state_dict().keys() == state.keys()


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_that_would_run_code_does_not_run(config, state, tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": state, "callbacks": RunsCode()}, "evil.ckpt", _use_new_zipfile_serialization=zipped)
    assert "holds Python objects besides its tensors, which could run code" in refused(config, "evil.ckpt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("form", ["model.safetensors", "model.ckpt", "legacy.ckpt"])
@pytest.mark.parametrize("part", [0.0, 0.0001, 0.5, 0.999])
def test_truncated_checkpoint_is_refused(config, state, tmp_path, form, part):
    path = tmp_path / form
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "model.ckpt")
    os.truncate(path, int(part * path.stat().st_size))
    assert f"{path} is damaged or no" in refused(config, path)


def test_missing_files_are_named(config, tmp_path):
    assert refused(config, tmp_path / "none.ckpt").startswith(f"there is no checkpoint file {tmp_path / 'none.ckpt'}")
    assert refused(tmp_path / "none.yaml", tmp_path / "none.ckpt").startswith(f"there is no model config {tmp_path}")


@pytest.mark.parametrize(("text", "sentence"), [
    ("a: [", "cannot be read as YAML"), ("404", "cannot be read as YAML"), ("a: 1", "no entry 'model"),
    ("model: {params: {}}", "no 'target'"), ("model: {target: ldm.nothing.Nothing}", "cannot be imported")])
def test_wrong_config_is_refused(tmp_path, text, sentence):
    (tmp_path / "wrong.yaml").write_text(text)
    assert sentence in refused(tmp_path / "wrong.yaml", tmp_path / "none.ckpt")


def test_hash_is_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    assert file_hash(tmp_path / "a") == "e3b0c44298fc1c14"


AUTOENCODER = "first_stage_model."


def test_autoencoder_of_its_own_takes_the_place_of_the_checkpoints_or_of_none(config, state, tmp_path):
    """As community checkpoints come: with a baked VAE or none; a VAE comes alone, or in a checkpoint."""
    other = {key: value + 1 for key, value in state.items() if key.startswith(AUTOENCODER)}
    without = {key: value for key, value in state.items() if not key.startswith(AUTOENCODER)}
    save_file(without, tmp_path / "without.safetensors")
    save_file(state, tmp_path / "baked.safetensors")
    alone = {key.removeprefix(AUTOENCODER): value for key, value in other.items()}
    torch.save({"state_dict": alone | {"loss.logvar": torch.ones(1)}}, tmp_path / "vae.ckpt")
    save_file(other | {INPUT: torch.ones(1)}, tmp_path / "checkpoint.safetensors")
    for checkpoint in ("without", "baked"):
        for vae in ("vae.ckpt", "checkpoint.safetensors"):
            loaded = load_frozen_model(config, tmp_path / f"{checkpoint}.safetensors", vae_path=tmp_path / vae).state_dict()
            assert all(torch.equal(loaded[key], (without | other)[key]) for key in state)
    assert "has no autoencoder (VAE), as some community checkpoints; give --vae_path" in refused(config, tmp_path / "without.safetensors")
    part = dict(list(other.items())[:3])
    save_file(part, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match="part.safetensors is not an autoencoder of this model: .* tensors are missing or have"):
        load_frozen_model(config, tmp_path / "baked.safetensors", vae_path=tmp_path / "part.safetensors")
    with pytest.raises(UserError, match="without.safetensors is a Stable Diffusion v1 checkpoint: .* give an autoencoder in the original"):
        load_frozen_model(config, tmp_path / "baked.safetensors", vae_path=tmp_path / "without.safetensors")


def test_averaged_weights_stand_in_where_a_checkpoint_has_no_others(config, state, tmp_path):
    unet = {key: value for key, value in state.items() if key.startswith("model.")}
    averaged = {"model_ema." + key.removeprefix("model.").replace(".", ""): value + 1 for key, value in unet.items()}
    rest = {key: value for key, value in state.items() if key not in unet}
    save_file(rest | averaged, tmp_path / "ema.safetensors")
    loaded = load_frozen_model(config, tmp_path / "ema.safetensors").state_dict()
    assert all(torch.equal(loaded[key], unet[key] + 1) for key in unet)
    save_file(rest | averaged | unet, tmp_path / "both.safetensors")
    assert torch.equal(load_frozen_model(config, tmp_path / "both.safetensors").state_dict()[INPUT], unet[INPUT])


def test_edited_weights_take_the_place_of_the_checkpoints(config, state, tiny_files, tmp_path):
    edited = {INPUT: state[INPUT] + 1}
    save_file(edited, tmp_path / "edited.safetensors", metadata={"base_model": file_hash(tiny_files[1])})
    files = ModelFiles(*tiny_files, edited_weights=tmp_path / "edited.safetensors")
    loaded = files.load().state_dict()
    assert all(torch.equal(loaded[key], (state | edited)[key]) for key in state)
    with pytest.raises(UserError, match="edited.safetensors holds edited weights, a few of a model's tensors; give it as --edited_weights"):
        load_frozen_model(config, tmp_path / "edited.safetensors")
    assert files.name == "edited" and ModelFiles(*tiny_files).hash() == file_hash(tiny_files[1]) != files.hash()
    in_another_place = ModelFiles(*tiny_files, vae_path=tmp_path / "edited.safetensors")
    assert len({files.hash(), in_another_place.hash(), ModelFiles(*tiny_files).hash()}) == 3


@pytest.mark.parametrize(("changed", "base", "sentence"), [
    ({INPUT: torch.ones(1, 1, 1, 1)}, None, "1 of its 1 tensors are not those of the model"),
    ({"lora_unet_x.lora_down.weight": torch.ones(4, 4), "lora_unet_x.alpha": torch.ones(1), "lora_x": torch.ones(1)}, None,
     "is a LoRA: 3 of its 3"), ({}, "0123456789abcdef", "was made for another checkpoint, of hash 0123456789abcdef, than")])
def test_edited_weights_of_another_model_are_refused(tiny_files, state, tmp_path, changed, base, sentence):
    save_file(changed or {INPUT: state[INPUT]}, tmp_path / "edited.safetensors", metadata=base and {"base_model": base})
    with pytest.raises(UserError, match=sentence):
        ModelFiles(*tiny_files, edited_weights=tmp_path / "edited.safetensors").load()


@pytest.mark.parametrize("says", ["key", "header"])
def test_v_prediction_is_refused_where_the_file_says_so(config, state, tmp_path, says):
    save_file(state | ({"v_pred": torch.ones(0)} if says == "key" else {}), tmp_path / "v.safetensors",
              metadata={"modelspec.prediction_type": "v"} if says == "header" else None)
    assert "v.safetensors is a v-prediction model" in refused(config, tmp_path / "v.safetensors")


@pytest.mark.parametrize(("key", "what"), [
    ("conditioner.embedders.0.model.ln_final.weight", "an SDXL refiner"), ("lora_te1_x.lora_up.weight", "a LoRA"),
    ("base_model.model.x.lora_A.weight", "a LoRA"), ("unet.down_blocks.0.to_k.lora.up.weight", "a LoRA"),
    ("text_encoder.q_proj.lora_linear_layer.down.weight", "a LoRA"), ("lycoris_te1_x.hada_w1_a", "a LoRA"),
    ("joint_blocks.0.x", "a Stable Diffusion 3 checkpoint")])
def test_what_other_files_are(key, what):
    assert describe({"a": torch.ones(3, dtype=torch.int64)}) is None
    assert describe({key: torch.ones(2, 2), "b": torch.ones(2), "c": torch.ones(2)}) == what
