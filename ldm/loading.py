"""Checkpoint file -> frozen model. The one door for foreign weights: strict, and with a sentence for a wrong file."""

import hashlib
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from yaml import YAMLError

from ldm.models.diffusion.ddpm import LatentDiffusion, is_ignored
from ldm.util import UserError, first_line, instantiate_from_config

PARTS = {"model.diffusion_model.": "U-Net", "first_stage_model.": "autoencoder", "cond_stage_model.": "text encoder"}
INPUT = "model.diffusion_model.input_blocks.0.0.weight"
LIGHTNING_CALLBACK = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
GIVE_CONFIG = "give a YAML file such as configs/stable-diffusion/v1-inference.yaml"
GIVE_PAIR = "give a checkpoint and a config that belong together"
GIVE_CHECKPOINT = "give a whole Stable Diffusion v1 checkpoint in the original (CompVis) format, and its config"

# What other files look like: the beginning of a key that only they have, and what they are. The first that fits is named.
OTHER_FILES = (
    ("conditioner.embedders.", "an SDXL checkpoint"),
    ("cond_stage_model.model.transformer.", "a Stable Diffusion 2 checkpoint"),
    ("model.diffusion_model.joint_blocks.", "a Stable Diffusion 3 checkpoint"),
    ("model.diffusion_model.double_blocks.", "a Flux checkpoint"),
    ("double_blocks.", "a Flux checkpoint"),
    ("control_model.", "a ControlNet"),
    ("lora_", "a LoRA"),
    ("unet.", "a LoRA"),
    ("string_to_param", "a prefix (textual inversion embedding)"),
    ("down_blocks.", "the U-Net from a diffusers folder"),
    ("decoder.mid_block.", "the autoencoder from a diffusers folder"),
    ("decoder.mid.block_1.", "an autoencoder alone"),
    ("text_model.encoder.layers.", "a text encoder alone"),
    ("transformer.resblocks.", "a CLIP model in open_clip's form"),
)


class LightningCallback:
    """Stands for the class that CompVis's checkpoints (sd-v1-4.ckpt) name beside their tensors; it does nothing."""


def load_frozen_model(config_path: str | Path, ckpt_path: str | Path, device: str | torch.device = "cpu",
                      dtype: torch.dtype = torch.float32) -> LatentDiffusion:
    """The model of a config with the weights of a checkpoint, in eval mode, without gradients.

    The model is built without memory and takes one tensor after the other out of what was read, so that the peak is about the
    larger of model and file; a mapped .ckpt adds pages that the system can take back. Any floating type becomes `dtype`.

    Raises:
        UserError: a file is missing, damaged, of another architecture, or incomplete.
    """
    config = read_config(config_path)
    with torch.device("meta"):
        model = instantiate_from_config(config)
    state = read_state_dict(ckpt_path)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    check_state(state, expected, ckpt_path, config_path)
    for key in expected:
        owner, _, name = key.rpartition(".")
        # A copy in any case: a parameter that shared the mapped file would change with it.
        value = state.pop(key).to(device=device, dtype=dtype, copy=True)
        setattr(model.get_submodule(owner), name, torch.nn.Parameter(value, requires_grad=False))
    return model.to(device).eval()  # the schedule and the position numbers


def read_config(config_path: str | Path) -> Mapping:
    """The `model:` entry (target, params) of a YAML config."""
    try:
        config = OmegaConf.to_container(OmegaConf.load(config_path), resolve=True)
    except FileNotFoundError:
        raise UserError(f"there is no model config {config_path}; {GIVE_CONFIG}") from None
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"the model config {config_path} is no valid YAML ({first_line(error)}); correct it") from None
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise UserError(f"the model config {config_path} has no entry 'model: {{target, params}}'; {GIVE_CONFIG}")
    return config["model"]


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file or a PyTorch checkpoint, by key, on the CPU; the latter mapped, not read, where possible.

    A wrapper `state_dict` is taken off. Nothing in the file is executed.

    Raises:
        UserError: the file is missing, damaged, without tensors, or a pickle that would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint file {path}; give the path of a .ckpt or .safetensors file")
    content = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise UserError(f"{path} is {describe(content) or 'a file'} without model weights; {GIVE_CHECKPOINT}")
    # Some merged checkpoints were saved by a transformers version whose text model had one level less.
    short, full = "cond_stage_model.transformer.", "cond_stage_model.transformer.text_model."
    return {key.replace(short, full) if key.startswith(short) and not key.startswith(full) else key: value
            for key, value in state.items()}


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], ckpt_path: str | Path,
                config_path: str | Path) -> None:
    """Raises UserError unless the checkpoint has all expected tensors in their shapes, and no unknown ones."""
    looks_like = describe(state)
    missing = [key for key in expected if key not in state]
    if missing:
        counts = ", ".join(f"{sum(key.startswith(part) for key in missing)} of the "
                           f"{sum(key.startswith(part) for key in expected)} {name} tensors"
                           for part, name in PARTS.items() if any(key.startswith(part) for key in missing))
        what = f"is {looks_like}: it lacks" if looks_like else "lacks"
        raise UserError(f"{ckpt_path} {what} {counts} of {config_path} (first: {missing[0]}); {GIVE_CHECKPOINT}")
    for key, shape in expected.items():
        found = tuple(state[key].shape)
        if found != shape:
            hint = ", as inpainting and image-editing models have it" if key == INPUT and found[0] == shape[0] else ""
            raise UserError(f"{ckpt_path} has {key} in shape {found}{hint}, but {config_path} needs {shape}; {GIVE_PAIR}")
    surplus = [key for key in state if key not in expected and not is_ignored(key)]
    if surplus:
        raise UserError(f"{ckpt_path} is {looks_like or 'of another architecture'}: {len(surplus)} of its tensors have no "
                        f"place in {config_path} (first: {surplus[0]}); {GIVE_PAIR}")


def describe(content: Mapping[str, object]) -> str | None:
    """What a file other than a Stable Diffusion v1 checkpoint probably is, by its keys; None if it looks like one."""
    if 0 < len(content) <= 2 and all(isinstance(value, Tensor) and value.dim() <= 2 for value in content.values()):
        return "a prefix (textual inversion embedding)"
    return next((name for mark, name in OTHER_FILES if any(key.startswith(mark) for key in content)), None)


def file_hash(path: str | Path) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path, backend="pread")  # mapped, the whole file would stay beside the model until the last tensor is taken
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or no safetensors file ({first_line(error)}); fetch it again") from None


def _pickled(path: Path) -> Mapping[str, object]:
    with open(path, "rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # the only container that can be mapped
    try:
        with torch.serialization.safe_globals([(LightningCallback, LIGHTNING_CALLBACK)]):
            content = torch.load(path, map_location="cpu", mmap=zipped, weights_only=True)
    except pickle.UnpicklingError as error:
        if "global" not in str(error).lower():
            raise UserError(f"{path} is damaged or no PyTorch checkpoint; fetch it again") from None
        raise UserError(f"{path} holds Python objects beside its tensors, which could run code, and was not loaded; "
                        "convert it to .safetensors or give a file of tensors only") from None
    except (RuntimeError, EOFError, OSError, struct.error, LookupError, ValueError, AttributeError, TypeError):
        raise UserError(f"{path} is damaged or no PyTorch checkpoint; fetch it again") from None
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path} holds a {type(content).__name__} and no tensors by name; {GIVE_CHECKPOINT}")
    return content
