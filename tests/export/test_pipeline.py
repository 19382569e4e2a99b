"""An exported model is one that diffusers' own pipeline samples as our sampler does; what diffusers cannot express is said."""

import copy

import diffusers
import numpy as np
import pytest
import torch
import transformers
import yaml
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig

from args.paths import ROOT
from ldm.export.__main__ import main
from ldm.export.pipeline import check_expressible, parts_of
from ldm.generation import generate, image_noise
from ldm.loading import load_frozen_model
from ldm.util import UserError, instantiate_from_config
from tests.conftest import TINY, random_model
from tests.refusals import refusal
from tests.test_diffusers_folder import same

JOBS, STEPS, SCALE, SEED = [("A close-up portrait of Ada", 0), ("a red car", 0)], 4, 5.0, 3


def exported(ckpt_path, config_path, target):
    main(["--ckpt_path", str(ckpt_path), "--config_path", str(config_path), str(target), "--format", "diffusers-pipeline"])
    return target


@pytest.mark.parametrize("name", ["mini-next", "mini-xl-next"])
def test_diffusers_samples_the_second_edition_as_we_do(name, tmp_path, capsys):
    config_path = ROOT / f"configs/stable-diffusion/{name}.yaml"
    model = random_model(yaml.safe_load(config_path.read_text())["model"])
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "model.safetensors")
    folder = exported(tmp_path / "model.safetensors", config_path, tmp_path / "pipeline")
    assert f"DiffusionPipeline.from_pretrained({folder.as_posix()!r})" in capsys.readouterr().out
    assert same(load_frozen_model(config_path, folder), model)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.scheduler.__class__.__name__ == "DDIMScheduler" and getattr(pipeline, "safety_checker", None) is None
    shape = (model.channels, model.image_size, model.image_size)
    noise = torch.stack([image_noise(SEED, *job, shape) for job in JOBS])
    side = 8 * model.image_size  # which diffusers must find out itself
    theirs = pipeline([prompt for prompt, _ in JOBS], num_inference_steps=STEPS, guidance_scale=SCALE, latents=noise).images
    ours = [image for _, image in generate(model, JOBS, ddim_steps=STEPS, scale=SCALE, seed=SEED, batch_size=2)]
    assert theirs[0].size == (side, side) and np.std(ours) > 10
    assert np.abs(np.stack([np.asarray(image) for image in theirs]).astype(int) - np.stack(ours).astype(int)).max() <= 1


@pytest.mark.parametrize("name", ["v1-inference", "sdxl-base"])
def test_the_public_models_get_the_keys_and_shapes_of_diffusers(name):
    config = yaml.safe_load((ROOT / f"configs/stable-diffusion/{name}.yaml").read_text())["model"]
    check_expressible(config["params"], name)
    with torch.device("meta"):
        for part, (theirs, tensors) in parts_of(instantiate_from_config(config), config["params"]).items():
            if part.startswith("text"):
                model = getattr(transformers, theirs["architectures"][0])(CLIPTextConfig(**theirs))
            else:
                model = getattr(diffusers, theirs["_class_name"]).from_config(theirs)
            expected = {key.removeprefix("text_model."): value.shape for key, value in model.state_dict().items()}
            found = {key.removeprefix("text_model."): value.shape for key, value in tensors.items()}
            assert found == {key: shape for key, shape in expected.items() if not key.endswith("position_ids")}, part


def test_a_preset_is_exported_with_its_edited_weights_in_files_that_others_may_read(tiny_files, tiny_edited, tmp_path):
    files, folder = [*map(str, tiny_files), str(tiny_edited)], tmp_path / "pipeline"
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(dict(zip(("config_path", "ckpt_path", "edited_weights"), files, strict=True))))
    main(["--model", str(tmp_path / "my.yaml"), str(folder), "--format", "diffusers-pipeline"])
    assert same(load_frozen_model(tiny_files[0], folder), load_frozen_model(*tiny_files, edited_weights=tiny_edited))
    (tmp_path / "new").touch()
    assert {path.stat().st_mode for path in folder.rglob("*") if path.is_file()} == {(tmp_path / "new").stat().st_mode}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(("part", "change", "sentence"), [
    ("unet_config", {"norm_num_groups": {32: 8, 64: 16}}, "group normalizations with a number of groups for each width"),
    ("unet_config", {"channel_mult": [2, 4]}, "a first level that is wider than the layer before it"),
    ("first_stage_config", {"embed_dim": 3}, "an embed_dim other than z_channels"),
    ("cond_stage_config", {"layer": "penultimate"}, "the text encoder's penultimate layer")])
def test_what_diffusers_cannot_express_is_named(tiny_files, part, change, sentence):
    params = copy.deepcopy(TINY["params"])
    check_expressible(params, tiny_files[0])
    params[part]["params"] |= change
    with pytest.raises(UserError, match=f"{sentence}, which diffusers cannot express"):
        check_expressible(params, tiny_files[0])


def test_nothing_is_left_or_written_over_where_the_export_is_refused(tiny_files, tmp_path, capsys):
    flags = ["--config_path", str(tiny_files[0]), "--format", "diffusers-pipeline"]
    save_file({key: value / 0 for key, value in load_file(tiny_files[1]).items()}, tmp_path / "nan.safetensors")
    assert "NaN or infinity" in refusal(capsys, main, ["--ckpt_path", str(tmp_path / "nan.safetensors"), str(tmp_path / "out"), *flags])
    assert [path.name for path in tmp_path.iterdir()] == ["nan.safetensors"]
    said = refusal(capsys, main, ["--ckpt_path", str(tiny_files[1]), str(tmp_path), *flags])
    assert f"OUT {tmp_path} is there and was not overwritten" in said


@pytest.mark.parametrize(("words", "sentence"), [
    (["out", "--format", "diffusers-pipeline"], "there is no model; give --model PRESET, or --ckpt_path PATH"),
    (["in.pt", "out", "--model", "mini", "--format", "diffusers-pipeline"], "exports a model, not the prefix IN"),
    (["out", "--model", "nonsense", "--format", "diffusers-pipeline"], "there is no preset 'nonsense'"),
    (["out", "--ckpt_path", "none.ckpt", "--format", "diffusers-pipeline"], "--ckpt_path none.ckpt is not there"),
    (["in.pt", "out.pt", "--model", "mini", "--format", "universal"], "--model has no use with --format universal"),
    (["out.pt", "--format", "universal"], "give IN and OUT")])
def test_wrong_flags_of_a_model_end_with_a_sentence(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sentence in refusal(capsys, main, words)
    assert not list(tmp_path.iterdir())
