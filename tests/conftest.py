"""A Stable Diffusion v1 in miniature's miniature: 2 U-Net levels, 32 channels, text width 32, 32 px; random weights."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from ldm.apl.launch import launch
from ldm.data.captions import CaptionImage
from ldm.data.identities import IdentityImage
from ldm.data.images import ImageSource
from ldm.edited_weights import write_edited_weights
from ldm.loading import file_hash
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.sdxl import DiffusionEngine
from ldm.util import instantiate_from_config
from tests.hub_server import hub  # noqa: F401  a fixture
from tests.scoring import write_people

torch.set_num_threads(1)  # of these small models no thread has enough to do, and two wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in the processes that tests start

TINY = {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": {
    "linear_start": 0.00085, "linear_end": 0.012, "timesteps": 1000, "image_size": 4, "channels": 4,
    "scale_factor": 0.18215,
    "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": {
        "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1, 2], "num_res_blocks": 1,
        "attention_resolutions": [1, 2], "num_heads": 2, "context_dim": 32, "norm_num_groups": 8}},
    "first_stage_config": {"target": "ldm.models.autoencoder.AutoencoderKL", "params": {"embed_dim": 4, "ddconfig": {
        "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 8, "ch_mult": [1, 2, 2, 2],
        "num_res_blocks": 1, "norm_num_groups": 2}}},
    "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder", "params": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}}}}


FIRST, SECOND, POOLED = 16, 24, 20  # widths of the text encoders and of the pooled text
TINY_XL = {"target": "ldm.models.diffusion.sdxl.DiffusionEngine", "params": {
    **{key: value for key, value in TINY["params"].items() if key != "cond_stage_config"}, "scale_factor": 0.13025,
    "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": {
        "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1, 2, 4], "num_res_blocks": 1,
        "attention_resolutions": [4, 2], "num_head_channels": 16, "transformer_depth": [1, 1, 2], "use_linear_in_transformer": True,
        "num_classes": "sequential", "adm_in_channels": POOLED + 6 * 256, "context_dim": FIRST + SECOND,
        "norm_num_groups": 8}},
    "conditioner_config": {"target": "ldm.modules.encoders.sdxl.GeneralConditioner", "params": {"emb_models": [
        {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder", "params": {
            "layer": "penultimate", "hidden_size": FIRST, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}},
        {"target": "ldm.modules.encoders.sdxl.FrozenOpenCLIPEmbedder2", "params": {
            "width": SECOND, "layers": 3, "heads": 4, "embed_dim": POOLED}}]}}}}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test comes first, so that no worker waits for it at the end."""
    items.sort(key=lambda item: item.path.name != "test_notebook.py")


@pytest.fixture(scope="session")
def tiny_model() -> LatentDiffusion:
    """Frozen, in eval mode; no weight is zero, so that every input matters."""
    return random_model(TINY)


@pytest.fixture(scope="session")
def tiny_xl_model() -> DiffusionEngine:
    """The same with SDXL's form."""
    return random_model(TINY_XL)


def random_model(config: dict) -> LatentDiffusion:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = instantiate_from_config(config)
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_files(tiny_model, tmp_path_factory) -> tuple[Path, Path]:
    """Config and checkpoint of `tiny_model`, (tiny.yaml, tiny.safetensors)."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.yaml").write_text(yaml.safe_dump({"model": TINY}), encoding="utf-8")
    save_file({key: value.clone() for key, value in tiny_model.state_dict().items()}, folder / "tiny.safetensors")
    return folder / "tiny.yaml", folder / "tiny.safetensors"


@pytest.fixture(scope="session")
def tiny_edited(tiny_model, tiny_files, tmp_path_factory) -> Path:
    """Edited weights for `tiny_files`: its cross-attention's keys and values, each a little larger."""
    changed = {key: 1.5 * value for key, value in tiny_model.state_dict().items() if ".attn2.to_k." in key or ".attn2.to_v." in key}
    path = tmp_path_factory.mktemp("edited") / "esd-4.safetensors"
    write_edited_weights(path, changed, base_model=file_hash(tiny_files[1]), train_method="esd")
    return path


@pytest.fixture(scope="session")
def tiny_xl_files(tiny_xl_model, tmp_path_factory) -> tuple[Path, Path]:
    """Config and fp16 checkpoint of `tiny_xl_model`, with what the public file has beside its weights."""
    folder = tmp_path_factory.mktemp("tiny-xl")
    (folder / "tiny-xl.yaml").write_text(yaml.safe_dump({"model": TINY_XL}), encoding="utf-8")
    state = {key: value.half() for key, value in tiny_xl_model.state_dict().items()}
    beside = {"conditioner.embedders.1.model.logit_scale": torch.ones(()), "denoiser.sigmas": torch.ones(1000),
              "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}
    save_file(state | beside, folder / "tiny-xl.safetensors")
    return folder / "tiny-xl.yaml", folder / "tiny-xl.safetensors"


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Two pictures of S_ID and two of S_Reg."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    sources = [ImageSource(folder / f"{number}.png") for number in range(4)]
    return ([IdentityImage(sources[0], "Ada Stone", "A female pilot"), IdentityImage(sources[1], "Ben Wood", "A male chef")],
            [CaptionImage(sources[2], "a red car"), CaptionImage(sources[3], "two blue boats")])


@pytest.fixture(scope="session")
def fabric():
    return launch("cpu", 1)


@pytest.fixture(scope="session")
def train_inputs(tmp_path_factory) -> Path:
    """A folder with people.csv, templates.txt, prompts.txt, gallery.npz, faces/, s_id/ and s_reg/."""
    people = {"Ada Stone": "train", "Ben Wood": "train", "Cleo Vance": "test"}
    folder = write_people(tmp_path_factory.mktemp("inputs"), people)
    (folder / "templates.txt").write_text("{}\na photo of {}\n")
    (folder / "prompts.txt").write_text("a red car\ntwo blue boats\n")
    random = np.random.default_rng(0)
    for name in ("s_id/Ada Stone/1", "s_id/Ben Wood/1", "s_reg/1", "s_reg/2"):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (32, 32, 3), np.uint8)).save(path)
    for number in (1, 2):
        (folder / "s_reg" / f"{number}.txt").write_text(f"{number} red cars")
    return folder
