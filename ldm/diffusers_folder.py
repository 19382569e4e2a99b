"""Reads a pipeline folder of diffusers (model_index.json, unet/, vae/, text_encoder/, text_encoder_2/) under the public checkpoints' keys.

diffusers itself is not needed, and torch only to read the tensors: the command line checks folders before torch is imported.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ldm.util import UserError

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model_index.json"
VARIANTS = ("", ".fp16", ".bf16")  # in order of preference
GIVE_FOLDER = "give the folder or file of Stable Diffusion v1 or SDXL base, or of a model fine-tuned from one"
FETCH_PART = "fetch the folder again, with all its parts"
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
UNET = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "conv_norm_out": "out.0", "conv_out": "out.2"}
VAE = {"downsamplers.0": "downsample", "upsamplers.0": "upsample", "mid_block.attentions.0": "mid.attn_1",
       "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2", "resnets": "block",
       "down_blocks": "down", "conv_norm_out": "norm_out",
       "conv_shortcut": "nin_shortcut", "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
       "query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"}  # the last four in files of before diffusers 0.18
OPEN_CLIP = {"embeddings.token_embedding": "token_embedding", "embeddings.position_embedding.weight": "positional_embedding",
             "encoder.layers": "transformer.resblocks", "final_layer_norm": "ln_final", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
             "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn": "attn", "text_projection.weight": "text_projection"}
BLOCK = re.compile(r"(down|mid|up)_blocks?(?:\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


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
        _refuse(folder, f"a {predicts.replace('_', '-')} model, and the anonymization prompt is learned on models that predict the noise")
    return two


def weights_files(folder: Path, exists: Callable[[Path], bool] = Path.is_file) -> dict[str, list[Path]]:
    """Weights files that are read from a folder, by part ("unet", ...); of a folder without model_index.json, by "vae".

    Prefers full precision, then .safetensors; `exists` says which files there are. UserError if a part has none or cannot be used.
    """
    if not (folder / INDEX).is_file():
        return {"vae": _weights_of(folder, exists)}
    parts = ["unet", "vae", "text_encoder"] + ["text_encoder_2"] * is_sdxl(folder)
    return {part: _weights_of(folder / part, exists) for part in parts}


def read_folder(folder: Path, read: Callable[[Path], Mapping[str, "Tensor"]]) -> dict[str, "Tensor"]:
    """Tensors of a folder by the keys of the public checkpoints, on the CPU; `read` gives those of a file.

    Only the parts that diffusers splits (query, key and value of SDXL's second text encoder) are copied.
    """
    files = weights_files(folder)
    state: dict[str, Tensor] = {}
    two = "text_encoder_2" in files
    for part, paths in files.items():
        tensors = {key.removeprefix("text_model."): value for path in paths for key, value in read(path).items()}
        if part == "unet":
            state |= {f"model.diffusion_model.{_unet_key(key, tensors)}": value for key, value in tensors.items()}
        elif part == "vae":
            state |= _vae(tensors)
        elif part == "text_encoder_2":
            state |= {f"conditioner.embedders.1.model.{key}": value for key, value in _open_clip(tensors).items()}
        else:
            prefix = "conditioner.embedders.0" if two else "cond_stage_model"
            state |= {f"{prefix}.transformer.text_model.{key}": value for key, value in tensors.items()}
    return state


def _unet_key(key: str, keys: Mapping[str, object]) -> str:
    if (match := BLOCK.fullmatch(key)) is None:
        return _renamed(key, UNET)
    side, level, kind, number, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    rest = _renamed(rest, RESNET) if kind == "resnets" else rest
    if side == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * number}.{rest}"
    blocks = sum(bool(re.fullmatch(r"down_blocks\.0\.resnets\.\d+\.conv1\.weight", one)) for one in keys)
    place = level * (blocks + 1) + (blocks if kind.endswith("samplers") else number)
    if side == "down":
        return f"input_blocks.{place + 1}.{int(kind == 'attentions')}.{rest.replace('conv.', 'op.') if kind == 'downsamplers' else rest}"
    attends = any(one.startswith(f"up_blocks.{level}.attentions.") for one in keys)
    position = {"resnets": 0, "attentions": 1}.get(kind, 1 + attends)  # an upsampler is last
    return f"output_blocks.{place}.{position}.{rest}"


def _vae(tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """The autoencoder's tensors; the linear layers of its attention become convolutions of 1 x 1."""
    levels = 1 + max((int(key.split(".")[2]) for key in tensors if key.startswith("decoder.up_blocks.")), default=0)
    state = {}
    for key, value in tensors.items():
        new = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{levels - 1 - int(match[1])}", _renamed(key, VAE))
        is_linear = ".attn_1." in new and new.endswith(".weight") and value.dim() == 2
        state[f"first_stage_model.{new}"] = value[:, :, None, None] if is_linear else value
    return state


def _open_clip(tensors: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
    """The tensors of transformers' CLIPTextModelWithProjection under OpenCLIP's names."""
    import torch

    state = {}
    for key in list(tensors):
        if key not in tensors:
            continue  # joined to an earlier one
        if match := re.fullmatch(r"(.*\.self_attn\.)[qkv]_proj\.(weight|bias)", key):
            three = [tensors.pop(name) for letter in "qkv" if (name := f"{match[1]}{letter}_proj.{match[2]}") in tensors]
            state[_renamed(f"{match[1]}in_proj_{match[2]}", OPEN_CLIP)] = torch.cat(three)
        else:
            value = tensors.pop(key)
            state[_renamed(key, OPEN_CLIP)] = value.T.contiguous() if key == "text_projection.weight" else value
    return state


def _renamed(key: str, names: Mapping[str, str]) -> str:
    """The key with each of its names replaced; a name is one or more whole components."""
    for theirs, ours in names.items():
        key = re.sub(rf"(^|(?<=\.)){re.escape(theirs)}(?=\.|$)", ours, key)
    return key


def _weights_of(folder: Path, exists: Callable[[Path], bool]) -> list[Path]:
    safe, pickled = ("model", "pytorch_model") if folder.name.startswith("text_encoder") else ("diffusion_pytorch_model",) * 2
    for variant in VARIANTS:
        for stem, suffix in ((safe, "safetensors"), (pickled, "bin")):
            if exists(file := folder / f"{stem}{variant}.{suffix}"):
                return [file]
            if exists(index := folder / f"{stem}.{suffix}.index{variant}.json"):
                shards = _read_json(index).get("weight_map")
                if not isinstance(shards, dict) or not shards:
                    raise UserError(f"{index} does not name the files of the weights; {FETCH_PART}")
                return [folder / Path(name).name for name in sorted({str(name) for name in shards.values()})]
    raise UserError(f"there are no weights in {folder} of a diffusers folder (such as {safe}.safetensors); {FETCH_PART}")


def _config(folder: Path, part: str, name: str = "config.json") -> dict:
    return _read_json(folder / part / name)


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} of a diffusers folder is {'damaged' if path.exists() else 'missing'}; {FETCH_PART}")
    return content


def _refuse(folder: Path, what: str) -> NoReturn:
    raise UserError(f"{folder} is a diffusers folder of {what}; {GIVE_FOLDER}")
