"""Checkpoint file -> frozen model. The one door for foreign weights: strict, and with a sentence for a wrong file."""

import argparse
import hashlib
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from yaml import YAMLError

from args.paths import found
from ldm.containers import SAFETENSORS, SINGLE_FILE, ZIP, container_of, damaged, kind_of, named_by_content
from ldm.contents import file_hash
from ldm.finite import FETCH_AGAIN, check_finite
from ldm.models.diffusion.ddpm import LatentDiffusion, is_ignored
from ldm.modules.embedding_file import with_own
from ldm.modules.file_kinds import PARTS_OF_FOLDER, SDXL, V1, describe
from ldm.util import UserError, first_line, instantiate_from_config

AUTOENCODER = "first_stage_model."
PARTS = {"model.diffusion_model.": "U-Net", AUTOENCODER: "autoencoder", "cond_stage_model.": "text encoder",
         "conditioner.embedders.0.": "first text encoder", "conditioner.embedders.1.": "second text encoder"}
INPUT = "model.diffusion_model.input_blocks.0.0.weight"
LIGHTNING_CALLBACK = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
CONFIGS = {V1: "configs/stable-diffusion/v1-inference.yaml", SDXL: "configs/stable-diffusion/sdxl-base.yaml"}
GIVE_CONFIG = "give a YAML file such as configs/stable-diffusion/v1-inference.yaml"
GIVE_PAIR = "give a checkpoint and a config that belong together"
GIVE_CHECKPOINT = "give a whole Stable Diffusion v1 or SDXL checkpoint in the original (CompVis) format, and its config"


class LightningCallback:
    """Stands for the class that CompVis's checkpoints (sd-v1-4.ckpt) name beside their tensors; it does nothing."""


@dataclass(frozen=True)
class ModelFiles:
    """The files of a frozen model, named as the flags of every command."""

    config_path: Path
    ckpt_path: Path
    vae_path: Path | None = None        # an autoencoder in place of the checkpoint's
    edited_weights: Path | None = None  # tensors in place of the checkpoint's

    @classmethod
    def of(cls, args: argparse.Namespace) -> "ModelFiles":
        return cls(*(getattr(args, field.name) for field in fields(cls)))

    @property
    def name(self) -> str:
        """Of the model in tables."""
        return (self.edited_weights or self.ckpt_path).stem

    def hash(self) -> str:
        """16 hexadecimal digits that stand for the content of all weights, each in its place; of a checkpoint alone its `file_hash`."""
        others = {flag: file_hash(path) for flag, path in (("vae_path", self.vae_path), ("edited_weights", self.edited_weights)) if path}
        base = file_hash(self.ckpt_path)
        return hashlib.sha256(f"{base} {others}".encode()).hexdigest()[:16] if others else base

    def load(self, device: str | torch.device = "cpu") -> LatentDiffusion:
        """See `load_frozen_model`."""
        return load_frozen_model(self.config_path, self.ckpt_path, device, vae_path=self.vae_path, edited_weights=self.edited_weights)


def load_frozen_model(config_path: str | Path, ckpt_path: str | Path, device: str | torch.device = "cpu",
                      dtype: torch.dtype = torch.float32, *, vae_path: str | Path | None = None,
                      edited_weights: str | Path | None = None) -> LatentDiffusion:
    """The model of a config with the weights of a checkpoint, in eval mode, without gradients.

    The model is built without memory and takes one tensor after the other out of what was read, so that the peak is about the
    larger of model and file; a mapped .ckpt adds pages that the system can take back. Any floating type becomes `dtype`.

    Args:
        vae_path: file of an autoencoder, alone or in a checkpoint, which takes the place of the checkpoint's.
        edited_weights: .safetensors of some of the model's tensors, which take the place of the checkpoint's.

    Raises:
        UserError: a file is missing, damaged, of another architecture, or incomplete, or a weight is not finite.
    """
    config_path, ckpt_path = found(config_path), found(ckpt_path)
    vae_path, edited_weights = (None if path is None else found(path) for path in (vae_path, edited_weights))
    config = read_config(config_path)
    with torch.device("meta"):
        model = instantiate_from_config(config)
    expected = shapes_of(model)
    state = read_state_dict(ckpt_path)
    check_metadata(state, ckpt_path)
    if vae_path is not None:
        state |= read_autoencoder(vae_path, expected)
    state |= {key: state[ema] for key in expected if key not in state and (ema := averaged(key)) in state}
    if edited_weights is not None:
        state |= read_edited_weights(edited_weights, expected, ckpt_path)
    check_state(state, expected, ckpt_path, config_path)
    files = " with ".join(str(path) for path in (ckpt_path, vae_path, edited_weights) if path)
    for key in expected:
        owner, _, name = key.rpartition(".")
        value = state.pop(key)
        if not value.is_floating_point():
            raise UserError(f"{files} has '{key}' as {str(value.dtype).removeprefix('torch.')}, as quantized models have their weights; "
                            "give weights that are floating-point numbers")
        # A copy in any case: a parameter that shared the mapped file would change with it.
        value = value.to(device=device, dtype=dtype, copy=True)
        check_finite({key: value}, files, FETCH_AGAIN)
        setattr(model.get_submodule(owner), name, torch.nn.Parameter(value, requires_grad=False))
    return model.to(device).eval()  # the schedule and the position numbers


def read_config(config_path: str | Path) -> Mapping:
    """The `model:` entry (target, params) of a YAML config."""
    try:
        config = OmegaConf.to_container(OmegaConf.load(config_path), resolve=True)
    except FileNotFoundError:
        raise UserError(f"there is no model config {config_path}; {GIVE_CONFIG}") from None
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:  # OSError: also a number alone
        raise UserError(f"the model config {config_path} cannot be read as YAML ({first_line(error)}); correct it") from None
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise UserError(f"the model config {config_path} has no entry 'model: {{target, params}}'; {GIVE_CONFIG}")
    return config["model"]


def has_two_encoders(config_path: str | Path) -> bool:
    """Whether a config is of SDXL's form, with two text encoders."""
    return "conditioner_config" in (read_config(config_path).get("params") or {})


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file or a PyTorch checkpoint, by key, on the CPU; the latter mapped, not read, where possible.

    A wrapper `state_dict` is taken off. Nothing in the file is executed.

    Raises:
        UserError: the file is missing, damaged, without tensors, or a pickle that would run code.
    """
    path = Path(path)
    container = container_of(path, "checkpoint file", GIVE_CHECKPOINT)
    content = _safetensors(path) if container == SAFETENSORS else _pickled(path, container)
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise UserError(f"{path} is {describe(content) or 'a file'} without model weights; {GIVE_CHECKPOINT}")
    # Some merged checkpoints were saved by a transformers version whose text model had one level less.
    short, full = "cond_stage_model.transformer.", "cond_stage_model.transformer.text_model."
    return {key.replace(short, full) if key.startswith(short) and not key.startswith(full) else key: value
            for key, value in state.items()}


def read_autoencoder(path: str | Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors of an autoencoder by their keys in a checkpoint; `path` holds an autoencoder alone, or a checkpoint that has one.

    Raises:
        UserError: it lacks one of the model's, or has it in another shape.
    """
    state = read_state_dict(path)
    found = {key: state.get(key, state.get(key.removeprefix(AUTOENCODER))) for key in expected if key.startswith(AUTOENCODER)}
    wrong = [key for key, value in found.items() if value is None or tuple(value.shape) != expected[key]]
    if wrong:
        raise UserError(f"{path} is {describe(state) or 'no autoencoder of this model'}: {len(wrong)} of the {len(found)} tensors of one "
                        f"are not there or have another shape (first: {wrong[0]}); give an autoencoder in the original (CompVis) format, "
                        "alone or in a checkpoint")
    return {key: value for key, value in found.items() if value is not None}


def shapes_of(model: LatentDiffusion) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor by its key in a checkpoint."""
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def averaged(key: str) -> str:
    """Where a checkpoint keeps the moving average of a tensor of the U-Net; those saved for training may have nothing else."""
    return "model_ema." + key.removeprefix("model.").replace(".", "")


def read_edited_weights(path: str | Path, expected: Mapping[str, tuple[int, ...]], ckpt_path: str | Path) -> dict[str, Tensor]:
    """Tensors that take the place of a checkpoint's.

    Raises:
        UserError: the file has tensors that this model lacks, or says that it was made for another checkpoint.
    """
    to_do = "give a .safetensors file, or a prefix as --embedding"
    if (kind := container_of(path, "file of edited weights", to_do)) != SAFETENSORS:
        raise UserError(f"{path} is {kind} and no .safetensors, as edited weights are; {to_do}")
    state, metadata = read_state_dict(path), safetensors_metadata(path)
    foreign = [key for key, value in state.items() if tuple(value.shape) != expected.get(key)]
    if foreign:
        raise UserError(f"{path} is {describe(state) or 'of another model'}: {len(foreign)} of its {len(state)} tensors are not those of "
                        f"the model (first: {foreign[0]}); give edited weights made for {ckpt_path}")
    if metadata.get("base_model") not in (None, file_hash(ckpt_path)):
        raise UserError(f"{path} was made for another checkpoint, of hash {metadata['base_model']}, than {ckpt_path}, of hash "
                        f"{file_hash(ckpt_path)}; give the one that it was made for")
    check_finite(state, path, FETCH_AGAIN)
    return state


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], ckpt_path: str | Path,
                config_path: str | Path) -> None:
    """Raises UserError unless the checkpoint has all expected tensors in their shapes, and no unknown ones."""
    looks_like = describe(state)
    if looks_like == describe(expected):
        looks_like = None
    missing = [key for key in expected if key not in state]
    if missing and all(key.startswith(AUTOENCODER) for key in missing) and not any(key.startswith(AUTOENCODER) for key in state):
        raise UserError(f"{ckpt_path} has no autoencoder (VAE), as some community checkpoints; give --vae_path with the file of one")
    if missing:
        counts = ", ".join(f"{sum(key.startswith(part) for key in missing)} of the "
                           f"{sum(key.startswith(part) for key in expected)} {name} tensors"
                           for part, name in PARTS.items() if any(key.startswith(part) for key in missing))
        what = f"is {looks_like}: it lacks" if looks_like else "lacks"
        to_do = (f"give --config_path {CONFIGS[looks_like]} with it" if looks_like in CONFIGS else
                 SINGLE_FILE if looks_like in PARTS_OF_FOLDER else GIVE_CHECKPOINT)
        raise UserError(f"{ckpt_path} {what} {counts} of {config_path} (first: {missing[0]}); {to_do}")
    for key, shape in expected.items():
        found = tuple(state[key].shape)
        if found != shape:
            hint = ", as inpainting and image-editing models have it" if key == INPUT and found[0] == shape[0] else ""
            raise UserError(f"{ckpt_path} has {key} in shape {found}{hint}, but {config_path} needs {shape}; {GIVE_PAIR}")
    surplus = [key for key in state if key not in expected and not is_ignored(key)]
    if surplus:
        raise UserError(f"{ckpt_path} is {looks_like or 'of another architecture'}: {len(surplus)} of its tensors have no "
                        f"place in {config_path} (first: {surplus[0]}); {GIVE_PAIR}")


def check_metadata(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Raises UserError for a file that says it predicts v (many do not say, and cannot be told from their weights), or edits another."""
    metadata = safetensors_metadata(path)
    if "v_pred" in state or metadata.get("modelspec.prediction_type", "epsilon") != "epsilon":
        raise UserError(f"{path} is a v-prediction model, and the anonymization prompt is learned on models that predict the noise "
                        "(eps); give another checkpoint")
    if "base_model" in metadata:
        raise UserError(f"{path} holds edited weights, a few of a model's tensors; give it as --edited_weights, beside the checkpoint "
                        "that it was made for")


def safetensors_metadata(path: str | Path) -> dict[str, Any]:
    """What the header of a .safetensors file says beside its tensors, our own entries among the rest; nothing for another file."""
    if kind_of(path) != SAFETENSORS:
        return {}
    with safe_open(path, framework="pt") as file:
        return with_own(file.metadata() or {})


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path, backend="pread")  # mapped, the whole file would stay beside the model until the last tensor is taken
    except SafetensorError as error:
        raise damaged(path, "safetensors file", first_line(error)) from None


def _pickled(path: Path, container: str) -> Mapping[str, object]:
    try:
        with torch.serialization.safe_globals([(LightningCallback, LIGHTNING_CALLBACK)]), named_by_content(path, container) as file:
            content = torch.load(file, map_location="cpu", mmap=container == ZIP, weights_only=True)  # no other can be mapped
    except pickle.UnpicklingError as error:
        if "global" not in str(error).lower():
            raise damaged(path, "PyTorch checkpoint") from None
        raise UserError(f"{path} holds Python objects beside its tensors, which could run code, and was not loaded; "
                        "convert it to .safetensors or give a file of tensors only") from None
    except (RuntimeError, EOFError, OSError, struct.error, LookupError, ValueError, AttributeError, TypeError):
        raise damaged(path, "PyTorch checkpoint") from None
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path} holds a {type(content).__name__} and no tensors by name; {GIVE_CHECKPOINT}")
    return content
