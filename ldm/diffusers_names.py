"""Names of a model's tensors in a pipeline folder of diffusers and in the public checkpoints, in both directions.

A part ("unet", "vae", "text_encoder", "text_encoder_2") is what diffusers keeps in a folder of its own.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ldm.util import UserError

if TYPE_CHECKING:
    from torch import Tensor

# diffusers' names, each one or more whole components of a key, and the public checkpoints'
UNET = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "conv_norm_out": "out.0", "conv_out": "out.2"}
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
VAE = {"downsamplers.0": "downsample", "upsamplers.0": "upsample", "mid_block.attentions.0": "mid.attn_1",
       "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2", "resnets": "block",
       "down_blocks": "down", "conv_norm_out": "norm_out",
       "conv_shortcut": "nin_shortcut", "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OLD_VAE = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # names of before diffusers 0.18, and today's
OPEN_CLIP = {"embeddings.token_embedding": "token_embedding", "embeddings.position_embedding.weight": "positional_embedding",
             "encoder.layers": "transformer.resblocks", "final_layer_norm": "ln_final", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
             "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn": "attn", "text_projection.weight": "text_projection"}
TEXT_MODEL = "text_model."  # some versions of transformers write text encoders under this name


def prefixes(two_encoders: bool) -> dict[str, str]:
    """Beginning of the public checkpoint's keys of each part."""
    text = {"text_encoder": "conditioner.embedders.0.transformer.text_model.", "text_encoder_2": "conditioner.embedders.1.model."}
    return {"unet": "model.diffusion_model.", "vae": "first_stage_model.",
            **(text if two_encoders else {"text_encoder": "cond_stage_model.transformer.text_model."})}


def to_public(part: str, tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Tensors of a part under the public checkpoints' keys, without their `prefixes`; unknown keys stay as they are.

    Only what OpenCLIP joins (query, key and value of an attention) or transposes is copied.
    """
    tensors = {key.removeprefix(TEXT_MODEL): value for key, value in tensors.items()}
    if part == "unet":
        blocks = sum(bool(re.fullmatch(r"down_blocks\.0\.resnets\.\d+\.conv1\.weight", key)) for key in tensors)
        levels, attend = _levels(tensors, r"up_blocks\.(\d+)\."), _levels(tensors, r"up_blocks\.(\d+)\.attentions\.")
        names = unet_names(blocks, [level in attend for level in sorted(levels)])
        return {_moved(key, names): value for key, value in tensors.items()}
    if part == "vae":
        return _public_vae(tensors)
    return _joined(tensors) if part == "text_encoder_2" else tensors


def to_diffusers(part: str, tensors: Mapping[str, "Tensor"], blocks: int, attends: Sequence[bool]) -> dict[str, "Tensor"]:
    """The reverse of `to_public`; views of the tensors.

    Args:
        blocks: residual blocks per level of the U-Net.
        attends: per level of the U-Net, from the finest, whether it has attention.
    """
    if part == "unet":
        names = _inverse(unet_names(blocks, attends[::-1]))
        return {_moved(key, names): value for key, value in tensors.items()}
    if part == "vae":
        return _diffusers_vae(tensors)
    if part == "text_encoder_2":
        tensors = _split(tensors)
    return {key if key.startswith("text_projection.") else f"{TEXT_MODEL}{key}": value for key, value in tensors.items()}


def unet_names(blocks: int, up_attends: Sequence[bool]) -> dict[str, str]:
    """Beginnings of diffusers' keys of a U-Net -> the public ones, for a number of residual blocks per level.

    `up_attends` says of each level on the way up, from the coarsest, whether it has attention.
    """
    names = UNET | _resnet("mid_block.resnets.0", "middle_block.0") | _resnet("mid_block.resnets.1", "middle_block.2")
    names["mid_block.attentions.0"] = "middle_block.1"
    for level, attends in enumerate(up_attends):
        first = level * (blocks + 1)
        for number in range(blocks):
            theirs, ours = f"down_blocks.{level}", f"input_blocks.{first + 1 + number}"
            names |= _resnet(f"{theirs}.resnets.{number}", f"{ours}.0") | {f"{theirs}.attentions.{number}": f"{ours}.1"}
        names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{first + 1 + blocks}.0.op"
        for number in range(blocks + 1):
            theirs, ours = f"up_blocks.{level}", f"output_blocks.{first + number}"
            names |= _resnet(f"{theirs}.resnets.{number}", f"{ours}.0")
            if attends:
                names[f"{theirs}.attentions.{number}"] = f"{ours}.1"
        names[f"up_blocks.{level}.upsamplers.0"] = f"output_blocks.{first + blocks}.{1 + attends}"  # the last of its block
    return names


def _resnet(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.{their_name}": f"{ours}.{our_name}" for their_name, our_name in RESNET.items()}


def _moved(key: str, names: Mapping[str, str]) -> str:
    """The key with its longest beginning (of whole components) that has a new name replaced by it."""
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        if (new := names.get(".".join(parts[:end]))) is not None:
            return ".".join([new, *parts[end:]])
    return key


def _renamed(key: str, names: Mapping[str, str]) -> str:
    """The key with each of its names replaced, wherever it is."""
    for old, new in names.items():
        key = re.sub(rf"(^|(?<=\.)){re.escape(old)}(?=\.|$)", new, key)
    return key


def _inverse(names: Mapping[str, str]) -> dict[str, str]:
    return {ours: theirs for theirs, ours in names.items()}


def _public_vae(tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """The autoencoder's tensors; the linear layers of its attention become convolutions of 1 x 1."""
    last, state = max(_levels(tensors, r"decoder\.up_blocks\.(\d+)\."), default=0), {}
    for key, value in tensors.items():
        new = _renamed(_renamed(key, OLD_VAE), VAE)
        new = re.sub(r"^decoder\.up_blocks\.(\d+)", lambda level: f"decoder.up.{last - int(level[1])}", new)
        is_linear = ".attn_1." in new and new.endswith(".weight") and value.dim() == 2
        state[new] = value[:, :, None, None] if is_linear else value
    return state


def _diffusers_vae(tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    last, state = max(_levels(tensors, r"decoder\.up\.(\d+)\."), default=0), {}
    for key, value in tensors.items():
        new = _renamed(key, _inverse(VAE))
        new = re.sub(r"^decoder\.up\.(\d+)", lambda level: f"decoder.up_blocks.{last - int(level[1])}", new)
        state[new] = value[:, :, 0, 0] if ".attn_1." in key and value.dim() == 4 else value
    return state


def _levels(keys: Mapping[str, object], beginning: str) -> set[int]:
    """The numbers in the keys that have this beginning, a pattern with a group."""
    return {int(match[1]) for key in keys if (match := re.match(beginning, key))}


def _joined(tensors: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
    """The tensors of transformers' CLIPTextModelWithProjection under OpenCLIP's names."""
    import torch

    state = {}
    for key in list(tensors):
        if key not in tensors:
            continue  # joined to an earlier one
        if match := re.fullmatch(r"(.*\.self_attn\.)[qkv]_proj\.(weight|bias)", key):
            three = [tensors.pop(name) for letter in "qkv" if (name := f"{match[1]}{letter}_proj.{match[2]}") in tensors]
            try:
                state[_renamed(f"{match[1]}in_proj_{match[2]}", OPEN_CLIP)] = torch.cat(three)
            except RuntimeError:
                raise UserError(f"'{key}' of a diffusers folder and its neighbours have the shapes {[tuple(one.shape) for one in three]}, "
                                "which do not fit together; fetch the folder again") from None
        else:
            value = tensors.pop(key)
            state[_renamed(key, OPEN_CLIP)] = value.T.contiguous() if key == "text_projection.weight" else value
    return state


def _split(tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """The reverse of `_joined`."""
    state: dict[str, Tensor] = {}
    for key, value in tensors.items():
        new = _renamed(key, _inverse(OPEN_CLIP))
        if match := re.fullmatch(r"(.*)in_proj_(weight|bias)", new):
            state |= {f"{match[1]}{letter}_proj.{match[2]}": part for letter, part in zip("qkv", value.chunk(3), strict=True)}
        else:
            state[new] = value.T if key == "text_projection" else value
    return state
