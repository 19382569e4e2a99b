"""Writes a model as a folder that diffusers' DiffusionPipeline.from_pretrained loads; diffusers itself is not needed."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig

from ldm.diffusers_folder import INDEX
from ldm.diffusers_names import prefixes, to_diffusers
from ldm.loading import ModelFiles, read_config
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.sdxl import SIZE_CHANNELS, DiffusionEngine
from ldm.modules.diffusionmodules.util import NUM_GROUPS, Groups
from ldm.modules.encoders.modules import clip_tokenizer
from ldm.modules.encoders.sdxl import FrozenOpenCLIPEmbedder2
from ldm.util import UserError, write_text

Config = dict[str, Any]


def write_pipeline(files: ModelFiles, target: Path) -> None:
    """Write the model in float32 to the new folder `target`, atomically, without a safety checker.

    UserError if the folder exists and is not empty, diffusers has no such architecture, or the model cannot be loaded.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"OUT {target} is there and was not overwritten; give a new folder")
    model, params = files.load(), read_config(files.config_path)["params"]
    check_expressible(params, files.config_path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        write_parts(model, params, temporary)
        os.replace(temporary, target)  # also onto an empty folder
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_expressible(params: Mapping[str, Any], config_path: Path) -> None:
    """Raise a UserError if a config has what diffusers' classes of Stable Diffusion v1 and SDXL have no setting for."""
    unet, first_stage = params["unet_config"]["params"], params["first_stage_config"]["params"]
    autoencoder, text = first_stage["ddconfig"], params.get("cond_stage_config") or {}
    flaws = {
        "group normalizations with a number of groups for each width": any(
            isinstance(part.get("norm_num_groups"), Mapping) for part in (unet, autoencoder)),
        "a first level that is wider than the layer before it": unet["channel_mult"][0] != 1 or autoencoder["ch_mult"][0] != 1,
        "an embed_dim other than z_channels": first_stage["embed_dim"] != autoencoder["z_channels"],
        "the text encoder's penultimate layer": (text.get("params") or {}).get("layer", "last") != "last"}
    for flaw in filter(flaws.get, flaws):
        raise UserError(f"{config_path} has {flaw}, which diffusers cannot express; give a model of the public architecture")


def write_parts(model: LatentDiffusion, params: Mapping[str, Any], folder: Path) -> None:
    """Write all files of the pipeline's folder."""
    for part, (config, tensors) in parts_of(model, params).items():
        _write_json(folder / part / "config.json", config)
        file = folder / part / ("model.safetensors" if part.startswith("text") else "diffusion_pytorch_model.safetensors")
        save_file({key: value.contiguous() for key, value in tensors.items()}, file, metadata={"format": "pt"})
        file.chmod(file.with_name("config.json").stat().st_mode)  # save_file lets only the user read it
    two = isinstance(model, DiffusionEngine)
    clip_tokenizer().save_pretrained(folder / "tokenizer")
    if two:
        clip_tokenizer(pad_token="!").save_pretrained(folder / "tokenizer_2")
    _write_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": "DDIMScheduler"} | scheduler_config(params))
    _write_json(folder / INDEX, _index(two))


def parts_of(model: LatentDiffusion, params: Mapping[str, Any]) -> dict[str, tuple[Config, dict[str, Tensor]]]:
    """Config and tensors of each part of diffusers' pipeline."""
    unet, autoencoder = params["unet_config"]["params"], params["first_stage_config"]["params"]["ddconfig"]
    first = model.conditioner.first if isinstance(model, DiffusionEngine) else model.cond_stage_model
    configs = {"unet": unet_config(**unet) | {"sample_size": model.image_size},
               "vae": vae_config(**autoencoder, scale_factor=model.scale_factor) | {"sample_size": 8 * model.image_size},
               "text_encoder": _text_config(first.get_submodule("transformer.text_model").config, "CLIPTextModel")}
    if isinstance(model, DiffusionEngine):
        configs["text_encoder_2"] = _text_config(text_config_2(model.conditioner.second), "CLIPTextModelWithProjection")
    state, attends = model.state_dict(), attention_levels(unet["channel_mult"], unet["attention_resolutions"])
    parts = {}
    for part, prefix in prefixes("text_encoder_2" in configs).items():
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        parts[part] = configs[part], to_diffusers(part, own, unet["num_res_blocks"], attends)
    return parts


def unet_config(*, in_channels: int, out_channels: int, model_channels: int, channel_mult: Sequence[int], num_res_blocks: int,
                attention_resolutions: Sequence[int], context_dim: int, num_heads: int = -1, num_head_channels: int = -1,
                transformer_depth: int | list[int] = 1, use_linear_in_transformer: bool = False, adm_in_channels: int | None = None,
                norm_num_groups: Groups = NUM_GROUPS, **_: Any) -> Config:
    """Config of diffusers' UNet2DConditionModel for the parameters of our UNetModel."""
    widths, attends = [model_channels * mult for mult in channel_mult], attention_levels(channel_mult, attention_resolutions)
    sizes = {"addition_embed_type": "text_time", "addition_time_embed_dim": SIZE_CHANNELS,
             "projection_class_embeddings_input_dim": adm_in_channels}
    return {
        "_class_name": "UNet2DConditionModel", "in_channels": in_channels, "out_channels": out_channels, "block_out_channels": widths,
        "layers_per_block": num_res_blocks, "cross_attention_dim": context_dim, "norm_num_groups": norm_num_groups,
        "transformer_layers_per_block": transformer_depth, "use_linear_projection": use_linear_in_transformer,
        # A known misnomer in diffusers: this is the number of heads.
        "attention_head_dim": num_heads if num_heads > 0 else [width // num_head_channels for width in widths],
        "down_block_types": ["CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attends)],
        **(sizes if adm_in_channels else {})}


def vae_config(*, ch: int, ch_mult: Sequence[int], num_res_blocks: int, z_channels: int, scale_factor: float,
               norm_num_groups: Groups = NUM_GROUPS, **_: Any) -> Config:
    """Config of diffusers' AutoencoderKL for the parameters of ours."""
    return {
        "_class_name": "AutoencoderKL", "block_out_channels": [ch * mult for mult in ch_mult], "layers_per_block": num_res_blocks,
        "latent_channels": z_channels, "down_block_types": ["DownEncoderBlock2D"] * len(ch_mult),
        "up_block_types": ["UpDecoderBlock2D"] * len(ch_mult), "norm_num_groups": norm_num_groups, "scaling_factor": scale_factor}


def text_config_2(embedder: FrozenOpenCLIPEmbedder2) -> CLIPTextConfig:
    """Config of transformers' CLIPTextModelWithProjection for SDXL's second text encoder."""
    blocks = embedder.model.transformer.resblocks
    return CLIPTextConfig(
        hidden_size=embedder.get_input_embeddings().embedding_dim, num_hidden_layers=len(blocks),
        num_attention_heads=blocks[0].attn.num_heads, intermediate_size=blocks[0].mlp.c_fc.out_features, hidden_act="gelu",
        projection_dim=embedder.pooled_width, max_position_embeddings=embedder.max_length, bos_token_id=49406, eos_token_id=49407)


def scheduler_config(params: Mapping[str, Any]) -> Config:
    """Settings of diffusers' DDIMScheduler with which it takes the steps of our DDIM."""
    return {"beta_start": params["linear_start"], "beta_end": params["linear_end"], "beta_schedule": "scaled_linear",
            "num_train_timesteps": params.get("timesteps", 1000), "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}


def attention_levels(channel_mult: Sequence[int], attention_resolutions: Sequence[int]) -> list[bool]:
    """Whether each level of the U-Net has attention, from the finest."""
    return [2**level in attention_resolutions for level in range(len(channel_mult))]


def _text_config(config: CLIPTextConfig, architecture: str) -> Config:
    return config.to_dict() | {"architectures": [architecture]}


def _index(two_encoders: bool) -> Config:
    if two_encoders:
        own = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True,
               "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "tokenizer_2": ["transformers", "CLIPTokenizer"]}
    else:
        own = {"_class_name": "StableDiffusionPipeline", "safety_checker": [None, None], "requires_safety_checker": False}
    return own | {"feature_extractor": [None, None], "image_encoder": [None, None], "scheduler": ["diffusers", "DDIMScheduler"],
                  "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
                  "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}


def _write_json(path: Path, content: Config) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")
