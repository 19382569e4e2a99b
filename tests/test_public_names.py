"""What the public scripts import from `ldm` is provided or refused with a sentence, and the helpers of `ldm.util` do what they did."""

import importlib
import subprocess
import sys

import pytest
import torch

from ldm.public_names import INSTEAD
from ldm.util import (
    UserError,
    count_params,
    default,
    exists,
    get_obj_from_str,
    instantiate_from_config,
    isimage,
    ismap,
    log_txt_as_img,
    mean_flat,
)

UTIL = "exists default isimage ismap mean_flat count_params get_obj_from_str instantiate_from_config log_txt_as_img"
PROVIDED = {  # by repository: module and the names that its scripts, notebooks and configs take from it
    "CompVis/stable-diffusion": [
        ("ldm.util", UTIL), ("ldm.models.diffusion.ddim", "DDIMSampler"), ("ldm.models.diffusion.plms", "PLMSSampler"),
        ("ldm.models.diffusion.dpm_solver", "DPMSolverSampler"), ("ldm.models.diffusion.ddpm", "LatentDiffusion"),
        ("ldm.models.autoencoder", "AutoencoderKL"), ("ldm.modules.diffusionmodules.openaimodel", "UNetModel"),
        ("ldm.modules.encoders.modules", "FrozenCLIPEmbedder")],
    "rinongal/textual_inversion": [
        ("ldm.util", "instantiate_from_config"), ("ldm.models.diffusion.ddim", "DDIMSampler"),
        ("ldm.models.diffusion.plms", "PLMSSampler"), ("ldm.modules.encoders.modules", "FrozenCLIPEmbedder"),
        ("ldm.modules.embedding_manager", "EmbeddingManager")],
    "shiliang26/APL": [
        ("ldm.util", "instantiate_from_config default"), ("ldm.models.diffusion.ddim", "DDIMSampler"),
        ("ldm.modules.embedding_manager", "EmbeddingManager")]}
REFUSED = {
    "CompVis/stable-diffusion": [
        ("ldm.util", "parallel_data_prefetch", "concurrent.futures"), ("ldm.data.base", "Txt2ImgIterableBaseDataset", "train.py"),
        ("ldm.data.imagenet", "ImageNetTrain", "train.py"), ("ldm.data.lsun", "LSUNBedroomsTrain", "train.py"),
        ("ldm.lr_scheduler", "LambdaLinearScheduler", "torch.optim.lr_scheduler"),
        ("ldm.models.autoencoder", "VQModel VQModelInterface IdentityFirstStage", "AutoencoderKL"),
        ("ldm.models.diffusion.ddpm", "DDPM", "LatentDiffusion"),
        ("ldm.models.diffusion.classifier", "NoisyLatentImageClassifier", "LatentDiffusion"),
        ("ldm.modules.diffusionmodules.openaimodel", "EncoderUNetModel", "UNetModel"),
        ("ldm.modules.diffusionmodules.util", "make_ddim_sampling_parameters make_ddim_timesteps noise_like", "make_schedule"),
        ("ldm.modules.ema", "LitEma", "ema_scope"), ("ldm.modules.losses", "LPIPSWithDiscriminator", "torch.nn.Identity"),
        ("ldm.modules.losses.vqperceptual", "VQLPIPSWithDiscriminator", "torch.nn.Identity"),
        ("ldm.modules.image_degradation", "degradation_fn_bsr", "LatentDiffusion"),
        ("ldm.modules.encoders.modules", "FrozenClipImageEmbedder FrozenCLIPTextEmbedder", "open_clip"),
        ("ldm.modules.encoders.modules", "ClassEmbedder SpatialRescaler", "FrozenCLIPEmbedder")],
    "rinongal/textual_inversion": [
        ("ldm.data.base", "Txt2ImgIterableBaseDataset", "train.py"), ("ldm.data.personalized", "PersonalizedBase", "train.py"),
        ("ldm.data.personalized_style", "PersonalizedBase", "train.py"),
        ("ldm.modules.embedding_shuffler", "EmbeddingShuffler", "EmbeddingManager"),
        ("ldm.modules.encoders.modules", "BERTEmbedder", "FrozenCLIPEmbedder")],
    "shiliang26/APL": [
        ("ldm.data.laion", "LAION", "train.py"), ("ldm.modules.x_transformer", "Encoder", "FrozenCLIPEmbedder"),
        ("ldm.modules.diffusionmodules.original_openaimodel", "UNetModel", "openaimodel.UNetModel"),
        ("ldm.models.diffusion.sampling_util", "norm_thresholding", "make_schedule"),
        ("ldm.thirdp.psp.id_loss", "IDLoss", "ldm.evaluation.faces")]}


def lines(table):
    return [pytest.param(module, name, *rest,
                         id=f"{repository}: from {module} import {name}")
            for repository, entries in table.items() for module, names, *rest in entries for name in names.split()]


@pytest.mark.parametrize(("module", "name"), lines(PROVIDED))
def test_provided(module, name):
    namespace = {}
    exec(f"from {module} import {name}", namespace)
    assert callable(namespace[name])


@pytest.mark.parametrize(("module", "name", "instead"), lines(REFUSED))
def test_refused_with_a_sentence_that_says_what_to_use(module, name, instead):
    with pytest.raises(ImportError, match=rf"^{module.split('.vqp')[0].split('.psp')[0]}.* is not part of this repository: .*{instead}"):
        exec(f"from {module} import {name}")
    with pytest.raises(UserError, match=f"target '{module}.{name}' cannot be imported .*{instead}"):
        instantiate_from_config({"target": f"{module}.{name}"})


def test_every_refused_name_is_absent_and_every_replacement_of_ours_is_there():
    for name in INSTEAD:
        module, _, last = name.rpartition(".")
        with pytest.raises(ImportError, match=f"^{name} is not part of this repository"):
            exec(f"from {module} import {last}")
    for word in {word.strip(";,:()") for sentence in INSTEAD.values() for word in sentence.split() if word.startswith("ldm.")}:
        try:
            importlib.import_module(word)
        except ModuleNotFoundError:
            get_obj_from_str(word)


@pytest.mark.parametrize("statement", ["import ldm.data.base", "from ldm.data import base", "import ldm.lr_scheduler as schedules"])
def test_every_way_to_import_a_missing_module_ends_with_the_sentence(statement):
    with pytest.raises(ImportError, match="is not part of this repository: it trains"):
        exec(statement)


def test_names_that_nobody_has_fail_as_python_words_it():
    with pytest.raises(ModuleNotFoundError, match="No module named 'ldm.nothing'"):
        importlib.import_module("ldm.nothing")
    with pytest.raises(ImportError, match="cannot import name 'nothing' from 'ldm.util'"):
        exec("from ldm.util import nothing")
    assert not hasattr(importlib.import_module("ldm.util"), "nothing")


def test_util_comes_without_torch():
    code = "import sys, ldm.util; assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_default_calls_a_function_and_nothing_else():
    assert exists(0) and not exists(None)
    assert default(0, 1) == 0 and default(None, 1) == 1 and default(None, lambda: 2) == 2
    assert default(None, dict) is dict


@pytest.mark.parametrize(("x", "image", "feature_map"), [
    (torch.zeros(2, 3, 4, 4), True, False), (torch.zeros(2, 1, 4, 4), True, False), (torch.zeros(2, 4, 4, 4), False, True),
    (torch.zeros(2, 2, 4, 4), False, False), (torch.zeros(3, 4, 4), False, False), ([[1]], False, False), (None, False, False)])
def test_batches_of_images_and_of_feature_maps_are_told_apart(x, image, feature_map):
    assert isimage(x) is image and ismap(x) is feature_map


def test_small_helpers(capsys):
    assert mean_flat(torch.arange(12.0).view(2, 3, 2)).tolist() == [2.5, 8.5]
    assert count_params(torch.nn.Linear(3, 2)) == 8 and capsys.readouterr().out == ""
    assert count_params(torch.nn.Linear(1000, 1000), verbose=True) == 1_001_000
    assert capsys.readouterr().out == "Linear has 1.00 M params.\n"
    assert get_obj_from_str("collections.OrderedDict", reload=False) is importlib.import_module("collections").OrderedDict
    assert get_obj_from_str("colorsys.rgb_to_hsv", reload=True) is importlib.import_module("colorsys").rgb_to_hsv


def test_texts_become_images():
    images = log_txt_as_img((64, 32), ["a person", "", "日本 " * 40])
    assert images.shape == (3, 3, 32, 64) and images.min() == -1 and images.max() == 1
    assert torch.equal(images[1], torch.ones(3, 32, 64)) and not torch.equal(images[0], images[1])


@pytest.mark.parametrize("marker", ["__is_first_stage__", "__is_unconditional__"])
def test_a_model_without_a_text_encoder_is_refused(marker):
    assert instantiate_from_config(marker) is None
    with pytest.raises(UserError, match=f"cond_stage_config='{marker}' but needs a text encoder"):
        instantiate_from_config({"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": {
            "unet_config": {}, "first_stage_config": {}, "cond_stage_config": marker, "linear_start": 0.1, "linear_end": 0.2}})


@pytest.mark.parametrize("config", ["ldm.util.exists", None, ["target"], {}])
def test_a_config_without_a_target_is_refused(config):
    with pytest.raises(UserError, match="but no 'target'; add 'target: package.module.Class'"):
        instantiate_from_config(config)
