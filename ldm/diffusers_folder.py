"""Reads a pipeline folder of diffusers (model_index.json, unet/, vae/, text_encoder/, text_encoder_2/) under the public checkpoints' keys.

diffusers itself is not needed, and torch only to read the tensors: the command line checks folders before torch is imported.
"""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ldm.diffusers_names import prefixes, to_public
from ldm.util import UserError

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model_index.json"
VARIANTS = ("", ".fp16", ".bf16")  # in order of preference
GIVE_FOLDER = "give the folder or file of Stable Diffusion v1 or SDXL base, or of a model fine-tuned from one"
FETCH_PART = "fetch the folder again, with all its parts"
# diffusers' defaults of settings that a folder need not give
SCHEDULER = {"beta_start": 0.0001, "beta_end": 0.02, "num_train_timesteps": 1000, "beta_schedule": "linear",
             "rescale_betas_zero_snr": False}
SCALING_FACTOR = 0.18215


class MissingPart(UserError):
    """A file of a folder is missing or damaged."""


def is_model_folder(path: Path) -> bool:
    """Whether `path` is a pipeline folder of diffusers, or the folder of an autoencoder."""
    config = path / "config.json"
    return (path / INDEX).is_file() or config.is_file() and _read_json(config).get("_class_name") == "AutoencoderKL"


def is_sdxl(folder: Path) -> bool:
    """Whether a pipeline folder holds SDXL rather than Stable Diffusion v1; UserError if it holds neither, or does not predict noise."""
    index = _read_json(folder / INDEX)
    name, parts = index.get("_class_name"), {part for part, kind in index.items() if isinstance(kind, list) and kind[-1:] != [None]}
    two = "text_encoder_2" in parts
    if not str(name).startswith("StableDiffusion") or "3" in str(name):
        _refuse(folder, f"a model of the class {name}")
    channels = _config(folder, "unet").get("in_channels", 4)
    if channels != 4:
        kind = {9: "an inpainting model", 8: "an image-editing model"}.get(channels, "another kind of model")
        _refuse(folder, f"{kind}, whose U-Net has {channels} input channels instead of 4")
    if two and "text_encoder" not in parts:
        _refuse(folder, "an SDXL refiner")
    if not two and _config(folder, "text_encoder").get("hidden_size") == 1024:
        _refuse(folder, "Stable Diffusion 2")
    predicts = _config(folder, "scheduler", "scheduler_config.json").get("prediction_type", "epsilon")
    if predicts != "epsilon":
        _refuse(folder, f"a {str(predicts).replace('_', '-')} model, and the anonymization prompt is learned on models that predict the "
                        "noise")
    return two


def weights_files(folder: Path, exists: Callable[[Path], bool] = Path.is_file) -> dict[str, list[Path]]:
    """Weights files that are read from a folder, by part ("unet", ...); of a folder without model_index.json, by "vae".

    Prefers full precision, then .safetensors; `exists` says which files there are. UserError if a part has none or cannot be used.
    """
    if not (folder / INDEX).is_file():
        return {"vae": _weights_of(folder, exists)}
    parts = ["unet", "vae", "text_encoder"] + ["text_encoder_2"] * is_sdxl(folder)
    return {part: _weights_of(folder / part, exists) for part in parts}


def read_folder(folder: Path, read: Callable[[Path], Mapping[str, "Tensor"]], parts: Collection[str] | None = None) -> dict[str, "Tensor"]:
    """Tensors of a folder by the keys of the public checkpoints, on the CPU; `read` gives those of a file. See `to_public`.

    `parts` are those that are read, by default all.
    """
    files = weights_files(folder)
    state: dict[str, Tensor] = {}
    # The second text encoder first: what it no longer needs after its parts are joined serves the others. No name here keeps it alive.
    for part, prefix in reversed(prefixes("text_encoder_2" in files).items()):
        paths = files.get(part, []) if parts is None or part in parts else []
        public = to_public(part, {key: value for path in paths for key, value in read(path).items()})
        state |= {f"{prefix}{key}": value for key, value in public.items()}
    return state


def check_settings(folder: Path, params: Mapping[str, Any], config_path: Path) -> None:
    """Raise a UserError unless the noise schedule and the autoencoder's scale of a folder are those of a model config's params."""
    pairs = []
    if (folder / INDEX).is_file():
        ours = {"beta_start": params.get("linear_start"), "beta_end": params.get("linear_end"),
                "num_train_timesteps": params.get("timesteps", 1000), "beta_schedule": "scaled_linear", "rescale_betas_zero_snr": False}
        theirs = SCHEDULER | _config(folder, "scheduler", "scheduler_config.json")
        pairs = [(f"{name} of its scheduler", theirs[name], value) for name, value in ours.items()]
    scale = _config(folder, "vae" if pairs else "").get("scaling_factor", SCALING_FACTOR)
    pairs.append(("scaling_factor of its autoencoder", scale, params.get("scale_factor")))
    for what, found, expected in pairs:
        if found != expected:
            raise UserError(f"{folder} is a diffusers folder with {found} as the {what}, but {config_path} has {expected}; "
                            "give a folder and a config that belong together")


def _weights_of(folder: Path, exists: Callable[[Path], bool]) -> list[Path]:
    safe, pickled = ("model", "pytorch_model") if folder.name.startswith("text_encoder") else ("diffusion_pytorch_model",) * 2
    for variant in VARIANTS:
        for stem, suffix in ((safe, "safetensors"), (pickled, "bin")):
            if exists(file := folder / f"{stem}{variant}.{suffix}"):
                return [file]
            if exists(index := folder / f"{stem}.{suffix}.index{variant}.json"):
                shards = _read_json(index).get("weight_map")
                if not isinstance(shards, dict) or not shards:
                    raise MissingPart(f"{index} does not name the files of the weights; {FETCH_PART}")
                return [folder / Path(name).name for name in sorted({str(name) for name in shards.values()})]
    raise MissingPart(f"there are no weights in {folder} of a diffusers folder (such as {safe}.safetensors); {FETCH_PART}")


def _config(folder: Path, part: str, name: str = "config.json") -> dict:
    return _read_json(folder / part / name)


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise MissingPart(f"{path} of a diffusers folder is {'damaged' if path.exists() else 'missing'}; {FETCH_PART}")
    return content


def _refuse(folder: Path, what: str) -> NoReturn:
    raise UserError(f"{folder} is a diffusers folder of {what}; {GIVE_FOLDER}")
