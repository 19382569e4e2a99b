"""Loads checkpoints into frozen models. All foreign weights are loaded here, strictly and with clear errors."""

import hashlib
import pickle
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
from ldm.containers import SAFETENSORS, WHOLE_MODEL, ZIP, container_of, damaged, kind_of, named_by_content
from ldm.contents import file_hash
from ldm.diffusers_folder import check_settings, is_model_folder, is_sdxl, read_folder
from ldm.finite import FETCH_AGAIN, check_finite
from ldm.hub import folder_name, local_model
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
    """Inert substitute for a class that CompVis's checkpoints (sd-v1-4.ckpt) refer to."""


@dataclass(frozen=True)
class ModelFiles:
    """Files of a frozen model, named like the flags of every command."""

    config_path: Path
    ckpt_path: Path
    vae_path: Path | None = None        # replaces the checkpoint's autoencoder
    edited_weights: Path | None = None  # replaces some of the checkpoint's tensors

    @property
    def name(self) -> str:
        """Name of the model in tables."""
        path = self.edited_weights or local_model(self.ckpt_path)
        return folder_name(path) if path.is_dir() else path.stem

    def hash(self) -> str:
        """Hash of all weights files, 16 hexadecimal digits; for a checkpoint alone its `file_hash`."""
        others = {flag: file_hash(path) for flag, path in (("vae_path", self.vae_path), ("edited_weights", self.edited_weights)) if path}
        base = file_hash(self.ckpt_path)
        return hashlib.sha256(f"{base} {others}".encode()).hexdigest()[:16] if others else base

    def load(self, device: str | torch.device = "cpu") -> LatentDiffusion:
        """Load the model, see `load_frozen_model`."""
        return load_frozen_model(self.config_path, self.ckpt_path, device, vae_path=self.vae_path, edited_weights=self.edited_weights)


def load_frozen_model(config_path: str | Path | None, ckpt_path: str | Path, device: str | torch.device = "cpu",
                      dtype: torch.dtype = torch.float32, *, vae_path: str | Path | None = None,
                      edited_weights: str | Path | None = None) -> LatentDiffusion:
    """Build the model of a config and load a checkpoint (.safetensors, PyTorch, diffusers folder, or owner/name of the Hub, see
    ldm/hub.py); returns it frozen, in eval mode.

    The model is built on the meta device and its tensors are moved out of the state dict one by one, so that the peak memory is about
    the larger of model and file; a memory-mapped .ckpt adds pages that the system can reclaim. UserError if a file is missing, damaged,
    of another architecture, or incomplete, or a weight is not finite.

    Args:
        config_path: None for that of Stable Diffusion v1 or SDXL, whichever a diffusers folder or a model of the Hub is.
        dtype: type of the model; every floating type is converted to it.
        vae_path: file of an autoencoder, alone or in a checkpoint, or a diffusers folder or model of the Hub; replaces the checkpoint's.
        edited_weights: .safetensors of some of the model's tensors, which replace the checkpoint's.
    """
    ckpt_path = local_model(ckpt_path)
    if config_path is None:
        if not is_model_folder(ckpt_path):
            raise UserError(f"there is no config for {ckpt_path}; {GIVE_CONFIG}")
        config_path = CONFIGS[SDXL if is_sdxl(ckpt_path) else V1]
    config_path, vae_path = found(config_path), None if vae_path is None else local_model(vae_path, "vae")
    edited_weights = None if edited_weights is None else found(edited_weights)
    config = read_config(config_path)
    with torch.device("meta"):
        model = instantiate_from_config(config)
    expected = shapes_of(model)
    state = read_state_dict(ckpt_path)
    check_metadata(state, ckpt_path)
    if vae_path is not None:
        state |= read_autoencoder(vae_path, expected)
    # Some training checkpoints contain only the moving averages of the U-Net.
    averages = {key: "model_ema." + key.removeprefix("model.").replace(".", "") for key in expected if key not in state}
    state |= {key: state[average] for key, average in averages.items() if average in state}
    if edited_weights is not None:
        state |= read_edited_weights(edited_weights, expected, ckpt_path)
    check_state(state, expected, ckpt_path, config_path)
    for path in (ckpt_path, vae_path):
        if path is not None and is_model_folder(path):
            check_settings(path, config["params"], config_path)
    files = " with ".join(str(path) for path in (ckpt_path, vae_path, edited_weights) if path)
    for key in expected:
        owner, _, name = key.rpartition(".")
        value = state.pop(key)
        if not value.is_floating_point():
            raise UserError(f"{files} has '{key}' as {str(value.dtype).removeprefix('torch.')}, as quantized models have their weights; "
                            "give weights that are floating-point numbers")
        # Always copy: a parameter that shared the memory-mapped file would change with it.
        value = value.to(device=device, dtype=dtype, copy=True)
        check_finite({key: value}, files, FETCH_AGAIN)
        setattr(model.get_submodule(owner), name, torch.nn.Parameter(value, requires_grad=False))
    return model.to(device).eval()  # moves the buffers


def read_config(config_path: str | Path) -> Mapping:
    """The `model:` entry (target, params) of a YAML config; UserError if there is none."""
    try:
        config = OmegaConf.to_container(OmegaConf.load(config_path), resolve=True)
    except FileNotFoundError:
        raise UserError(f"there is no model config {config_path}; {GIVE_CONFIG}") from None
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:  # OSError: also for a file with only a number
        raise UserError(f"the model config {config_path} cannot be read as YAML ({first_line(error)}); correct it") from None
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise UserError(f"the model config {config_path} has no entry 'model: {{target, params}}'; {GIVE_CONFIG}")
    return config["model"]


def has_two_encoders(config_path: str | Path) -> bool:
    """Whether a config describes a model with two text encoders, such as SDXL."""
    return "conditioner_config" in (read_config(config_path).get("params") or {})


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file or a PyTorch checkpoint, by key, on the CPU. PyTorch checkpoints are memory-mapped if possible.

    A diffusers folder is read under the keys of a checkpoint. An outer `state_dict` entry is unwrapped. Nothing in the file is executed.
    UserError if the file is missing, damaged, without tensors, or a pickle that would run code.
    """
    path = Path(path)
    if is_model_folder(path):
        return read_folder(path, read_state_dict)
    container = container_of(path, "checkpoint file", GIVE_CHECKPOINT)
    try:  # memory-mapped, the whole file would stay resident until the last tensor is moved
        content = load_file(path, backend="pread") if container == SAFETENSORS else _pickled(path, container)
    except SafetensorError as error:
        raise damaged(path, "safetensors file", first_line(error)) from None
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise UserError(f"{path} is {describe(content) or 'a file'} without model weights; {GIVE_CHECKPOINT}")
    # Some merged checkpoints were saved by a transformers version without the level `text_model`.
    short, full = "cond_stage_model.transformer.", "cond_stage_model.transformer.text_model."
    return {key.replace(short, full) if key.startswith(short) and not key.startswith(full) else key: value
            for key, value in state.items()}


def read_autoencoder(path: str | Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors of an autoencoder, alone or in a checkpoint, by their keys there; UserError if one is missing or of another shape."""
    pipeline = is_model_folder(Path(path)) and Path(path, "vae").is_dir()
    state = read_state_dict(Path(path, "vae") if pipeline else path)  # of a pipeline's folder only this part
    found = {key: state.get(key, state.get(key.removeprefix(AUTOENCODER))) for key in expected if key.startswith(AUTOENCODER)}
    wrong = [key for key, value in found.items() if value is None or tuple(value.shape) != expected[key]]
    if wrong:
        raise UserError(f"{path} is {describe(state) or 'not an autoencoder of this model'}: {len(wrong)} of its {len(found)} tensors "
                        f"are missing or have another shape (first: {wrong[0]}); give an autoencoder in the original (CompVis) format, "
                        "alone or in a checkpoint, or a diffusers folder")
    return {key: value for key, value in found.items() if value is not None}


def shapes_of(model: LatentDiffusion) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of the model, by its key in a checkpoint."""
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def read_edited_weights(path: str | Path, expected: Mapping[str, tuple[int, ...]], ckpt_path: str | Path) -> dict[str, Tensor]:
    """Tensors of an edited-weights file by key; UserError if some are not in this model, or the file was made for another checkpoint."""
    to_do = "give a .safetensors file, or a prefix as --embedding"
    if (kind := container_of(path, "file of edited weights", to_do)) != SAFETENSORS:
        raise UserError(f"{path} is {kind}, but edited weights are a .safetensors file; {to_do}")
    state, metadata = read_state_dict(path), safetensors_metadata(path)
    foreign = [key for key, value in state.items() if tuple(value.shape) != expected.get(key)]
    if foreign:
        raise UserError(f"{path} is {describe(state) or 'of another model'}: {len(foreign)} of its {len(state)} tensors are not those of "
                        f"the model (first: {foreign[0]}); give edited weights made for {ckpt_path}")
    is_same = metadata.get("base_model") in (None, file_hash(ckpt_path))
    if not is_same and "base_weights" in metadata:  # the same weights may lie in a file or folder of another kind
        is_same = metadata["base_weights"] == weights_hash(read_state_dict(ckpt_path), expected)
    if not is_same:
        raise UserError(f"{path} was made for another checkpoint, of hash {metadata['base_model']}, than {ckpt_path}, of hash "
                        f"{file_hash(ckpt_path)}; give the one that it was made for")
    check_finite(state, path, FETCH_AGAIN)
    return state


def weights_hash(state: Mapping[str, Tensor], keys: Iterable[str]) -> str:
    """Hash of the values of those tensors that are there, in float32, 16 hexadecimal digits: equal for all files and folders of a model."""
    content = hashlib.sha256()
    for key in sorted(key for key in keys if key in state):
        content.update(f"{key} {tuple(state[key].shape)}".encode())
        content.update(state[key].float().cpu().numpy().tobytes())
    return content.hexdigest()[:16]


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], ckpt_path: str | Path,
                config_path: str | Path) -> None:
    """Raise a UserError unless the checkpoint has all expected tensors in the expected shapes, and no unknown ones.

    The message says which model the file seems to be and which config fits.
    """
    is_same_kind = describe(state) == describe(expected)
    looks_like = None if is_same_kind else describe(state)
    missing = [key for key in expected if key not in state]
    if missing and all(key.startswith(AUTOENCODER) for key in missing) and not any(key.startswith(AUTOENCODER) for key in state):
        raise UserError(f"{ckpt_path} has no autoencoder (VAE), as some community checkpoints; give --vae_path with the file of one")
    if missing:
        counts = ", ".join(f"{sum(key.startswith(part) for key in missing)} of the "
                           f"{sum(key.startswith(part) for key in expected)} {name} tensors"
                           for part, name in PARTS.items() if any(key.startswith(part) for key in missing))
        what = f"is {looks_like}: it lacks" if looks_like else "lacks"
        to_do = (f"give --config_path {CONFIGS[looks_like]} with it" if looks_like in CONFIGS else
                 WHOLE_MODEL if looks_like in PARTS_OF_FOLDER else GIVE_PAIR if is_same_kind else GIVE_CHECKPOINT)
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
    """Raise a UserError if a file declares v-prediction, which many such models do not, or edited weights."""
    metadata = safetensors_metadata(path)
    if "v_pred" in state or metadata.get("modelspec.prediction_type", "epsilon") != "epsilon":
        raise UserError(f"{path} is a v-prediction model, and the anonymization prompt is learned on models that predict the noise "
                        "(eps); give another checkpoint")
    if "base_model" in metadata:
        raise UserError(f"{path} holds edited weights, a few of a model's tensors; give it as --edited_weights, together with the "
                        "checkpoint that it was made for")


def safetensors_metadata(path: str | Path) -> dict[str, Any]:
    """Metadata in the header of a .safetensors file, including our own entries; empty for other files."""
    if Path(path).is_dir() or kind_of(path) != SAFETENSORS:
        return {}
    with safe_open(path, framework="pt") as file:
        return with_own(file.metadata() or {})


def _pickled(path: Path, container: str) -> Mapping[str, object]:
    try:
        with torch.serialization.safe_globals([(LightningCallback, LIGHTNING_CALLBACK)]), named_by_content(path, container) as file:
            content = torch.load(file, map_location="cpu", mmap=container == ZIP, weights_only=True)  # only zip files can be mapped
    except pickle.UnpicklingError as error:
        if "global" not in str(error).lower():
            raise damaged(path, "PyTorch checkpoint") from None
        raise UserError(f"{path} holds Python objects besides its tensors, which could run code, and was not loaded; "
                        "convert it to .safetensors or give a file of tensors only") from None
    except (RuntimeError, EOFError, OSError, struct.error, LookupError, ValueError, AttributeError, TypeError):
        raise damaged(path, "PyTorch checkpoint") from None
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path} holds a {type(content).__name__} instead of tensors by name; {GIVE_CHECKPOINT}")
    return content
