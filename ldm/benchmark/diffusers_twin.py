"""diffusers' Stable Diffusion with our weights: where it keeps the tensors of a CompVis checkpoint, and a pipeline that holds them.

diffusers is optional: it is imported in the functions that build its modules.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.sdxl import SIZE_CHANNELS, DiffusionEngine
from ldm.modules.diffusionmodules.util import NUM_GROUPS, Groups
from ldm.modules.encoders.modules import clip_tokenizer
from ldm.modules.encoders.sdxl import FrozenOpenCLIPEmbedder2

UNET_NAMES = (
    (r"^time_embed\.0\.", "time_embedding.linear_1."), (r"^time_embed\.2\.", "time_embedding.linear_2."),
    (r"^label_emb\.0\.0\.", "add_embedding.linear_1."), (r"^label_emb\.0\.2\.", "add_embedding.linear_2."),
    (r"^input_blocks\.0\.0\.", "conv_in."), (r"^out\.0\.", "conv_norm_out."), (r"^out\.2\.", "conv_out."),
    (r"^middle_block\.0\.", "mid_block.resnets.0."), (r"^middle_block\.1\.", "mid_block.attentions.0."),
    (r"^middle_block\.2\.", "mid_block.resnets.1."),
    (r"\.in_layers\.0\.", ".norm1."), (r"\.in_layers\.2\.", ".conv1."), (r"\.emb_layers\.1\.", ".time_emb_proj."),
    (r"\.out_layers\.0\.", ".norm2."), (r"\.out_layers\.3\.", ".conv2."), (r"\.skip_connection\.", ".conv_shortcut."),
)
VAE_NAMES = (
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."), (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.block\.", r".up_blocks.\1.resnets."), (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."), (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.attn_1\.norm\.", ".attn_1.group_norm."), (r"\.attn_1\.([qkv])\.", r".attn_1.to_\1."),
    (r"\.attn_1\.proj_out\.", ".attn_1.to_out.0."), (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."), (r"\.norm_out\.", ".conv_norm_out."),
)

OPEN_CLIP_NAMES = (
    (r"^token_embedding\.", "embeddings.token_embedding."), (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^ln_final\.", "final_layer_norm."), (r"^transformer\.resblocks\.", "encoder.layers."), (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."), (r"\.mlp\.c_fc\.", ".mlp.fc1."), (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)

BIG_G_HEADS = 20  # of attention, in the text encoder of ViT-bigG-14


def unet_state(state: dict[str, Tensor], num_res_blocks: int) -> dict[str, Tensor]:
    """State of our UNetModel under diffusers' keys."""
    per_level = num_res_blocks + 1

    def place(match: re.Match) -> str:
        side, number, layer, rest = match[1], int(match[2]), int(match[3]), match[4]
        level, block = divmod(number - (side == "input"), per_level)
        if rest.startswith("op."):
            return f"down_blocks.{level}.downsamplers.0.conv.{rest[3:]}"
        if rest.startswith("conv."):
            return f"up_blocks.{level}.upsamplers.0.{rest}"
        kind = "resnets" if layer == 0 else "attentions"
        return f"{'down' if side == 'input' else 'up'}_blocks.{level}.{kind}.{block}.{rest}"

    renamed = {_rename(key, UNET_NAMES): value for key, value in state.items()}
    return {re.sub(r"^(input|output)_blocks\.(\d+)\.(\d+)\.(.*)", place, key): value for key, value in renamed.items()}


def vae_state(state: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """State of our AutoencoderKL under diffusers' keys; its attention has linear layers where ours has 1 x 1 convolutions."""
    turned = {re.sub(r"\.up\.(\d+)\.", lambda match: f".up.{levels - 1 - int(match[1])}.", key): value
              for key, value in state.items()}
    return {_rename(key, VAE_NAMES): value[:, :, 0, 0] if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", key) else value
            for key, value in turned.items()}


def open_clip_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State of OpenCLIP's text transformer under the keys of transformers' CLIPTextModelWithProjection."""
    renamed = {}
    for key, value in state.items():
        key = f"text_model.{_rename(key, OPEN_CLIP_NAMES)}"
        if "in_proj_" in key:  # queries, keys and values in one tensor
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                renamed[key.replace("in_proj_", f"{letter}_proj.")] = part
        else:
            renamed[key] = value
    renamed["text_projection.weight"] = renamed.pop("text_model.text_projection").T
    return renamed


def diffusers_unet(*, in_channels: int, out_channels: int, model_channels: int, channel_mult: list[int], num_res_blocks: int,
                   attention_resolutions: list[int], context_dim: int, num_heads: int | None = None,
                   num_head_channels: int | None = None, transformer_depth: int | list[int] = 1,
                   use_linear_in_transformer: bool = False, adm_in_channels: int | None = None,
                   norm_num_groups: Groups = NUM_GROUPS, **_: Any) -> nn.Module:
    """UNet2DConditionModel of diffusers for the parameters of our UNetModel."""
    from diffusers import UNet2DConditionModel

    widths = [model_channels * mult for mult in channel_mult]
    attends = [2**level in attention_resolutions for level in range(len(channel_mult))]
    unet = UNet2DConditionModel(
        in_channels=in_channels, out_channels=out_channels, layers_per_block=num_res_blocks,
        block_out_channels=widths, transformer_layers_per_block=transformer_depth, use_linear_projection=use_linear_in_transformer,
        # A known misnomer in diffusers: this is the number of heads.
        attention_head_dim=num_heads or [width // (num_head_channels or width) for width in widths],
        addition_embed_type=adm_in_channels and "text_time", addition_time_embed_dim=SIZE_CHANNELS,
        projection_class_embeddings_input_dim=adm_in_channels,
        down_block_types=["CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attends],
        up_block_types=["CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attends)],
        cross_attention_dim=context_dim, norm_num_groups=_for_all(norm_num_groups), time_embedding_dim=4 * model_channels)
    if channel_mult[0] != 1:
        _widen_later(unet, in_channels, model_channels, channel_mult[0] * model_channels)
    return _with_groups(unet, norm_num_groups)


def diffusers_vae(*, ch: int, ch_mult: list[int], num_res_blocks: int, z_channels: int, scale_factor: float = 0.18215,
                  norm_num_groups: Groups = NUM_GROUPS, **_: Any) -> nn.Module:
    """AutoencoderKL of diffusers for the parameters of ours."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=[ch * mult for mult in ch_mult], layers_per_block=num_res_blocks, latent_channels=z_channels,
        down_block_types=["DownEncoderBlock2D"] * len(ch_mult), up_block_types=["UpDecoderBlock2D"] * len(ch_mult),
        norm_num_groups=_for_all(norm_num_groups), scaling_factor=scale_factor)
    return _with_groups(vae, norm_num_groups)


def diffusers_text_encoder_2(embedder: FrozenOpenCLIPEmbedder2, heads: int) -> nn.Module:
    """transformers' CLIPTextModelWithProjection with the weights of SDXL's second text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    state = open_clip_state(embedder.model.state_dict())
    config = CLIPTextConfig(
        hidden_size=embedder.get_input_embeddings().embedding_dim, num_hidden_layers=len(embedder.model.transformer.resblocks),
        num_attention_heads=heads, intermediate_size=len(state["text_model.encoder.layers.0.mlp.fc1.weight"]),
        hidden_act="gelu", projection_dim=embedder.pooled_width, bos_token_id=49406, eos_token_id=49407)
    with torch.device("meta"):
        theirs = CLIPTextModelWithProjection(config)
    theirs.load_state_dict(state, assign=True)
    theirs.text_model.embeddings.position_ids = torch.arange(config.max_position_embeddings)[None]
    return theirs.eval()


def diffusers_pipeline(model: LatentDiffusion, config: Mapping[str, Any]) -> Any:
    """diffusers' pipeline of Stable Diffusion v1 or SDXL with DDIM, without a safety checker, and with the weights and the arithmetic
    of `model`.

    Args:
        config: from which the model was built.

    Raises:
        ImportError: diffusers is not installed.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    params = config["params"]
    shape, autoencoder = params["unet_config"]["params"], params["first_stage_config"]["params"]["ddconfig"]
    with torch.device("meta"):
        unet, vae = diffusers_unet(**shape), diffusers_vae(**autoencoder, scale_factor=model.scale_factor)
    unet.load_state_dict(unet_state(model.model.diffusion_model.state_dict(), shape["num_res_blocks"]), assign=True)
    vae.load_state_dict(vae_state(model.first_stage_model.state_dict(), len(autoencoder["ch_mult"])), assign=True)
    unet.to(memory_format=torch.contiguous_format)  # as diffusers has it, whatever ours is
    _cast_at_the_door(unet)
    scheduler = DDIMScheduler(beta_start=params["linear_start"], beta_end=params["linear_end"], beta_schedule="scaled_linear",
                              steps_offset=1, set_alpha_to_one=False, clip_sample=False)
    if isinstance(model, DiffusionEngine):
        first, second = model.conditioner.first, model.conditioner.second
        heads = params["conditioner_config"]["params"]["emb_models"][1].get("params", {}).get("heads", BIG_G_HEADS)
        pipeline = StableDiffusionXLPipeline(
            vae=vae, text_encoder=first.transformer.text_model, tokenizer=first.tokenizer, unet=unet, scheduler=scheduler,
            text_encoder_2=diffusers_text_encoder_2(second, heads), tokenizer_2=clip_tokenizer(pad_token="!"), add_watermarker=False)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=model.cond_stage_model.transformer.text_model, tokenizer=model.cond_stage_model.tokenizer, unet=unet,
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _widen_later(unet: Any, in_channels: int, entrance: int, width: int) -> None:
    """Give the first feature map `entrance` channels instead of the `width` of the first level, with which diffusers begins."""
    from diffusers.models.resnet import ResnetBlock2D

    def block(channels: int) -> nn.Module:
        return ResnetBlock2D(in_channels=channels, out_channels=width, temb_channels=4 * entrance, groups=1, eps=1e-5)

    unet.conv_in = nn.Conv2d(in_channels, entrance, 3, padding=1)
    unet.time_proj.num_channels = entrance
    unet.time_embedding.linear_1 = nn.Linear(entrance, 4 * entrance)
    unet.down_blocks[0].resnets[0] = block(entrance)
    unet.up_blocks[-1].resnets[-1] = block(width + entrance)


def _for_all(norm_num_groups: Groups) -> int:
    """Number of groups for diffusers' constructors: 1 if it depends on the width, and `_with_groups` sets it later."""
    return norm_num_groups if isinstance(norm_num_groups, int) else 1


def _with_groups(module: nn.Module, norm_num_groups: Groups) -> nn.Module:
    for part in module.modules():
        if isinstance(part, nn.GroupNorm):
            part.num_groups = norm_num_groups if isinstance(norm_num_groups, int) else norm_num_groups[part.num_channels]
    return module.eval().requires_grad_(False)


def _cast_at_the_door(unet: nn.Module) -> None:
    """Make the U-Net compute in the dtype of its weights and return float32, as ours does; the pipeline stays in float32."""
    def cast(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        latent, timestep = args
        texts = {"encoder_hidden_states": kwargs["encoder_hidden_states"].to(unet.dtype)}
        if kwargs.get("added_cond_kwargs"):
            texts["added_cond_kwargs"] = {name: value.to(unet.dtype) for name, value in kwargs["added_cond_kwargs"].items()}
        return (latent.to(unet.dtype), timestep), kwargs | texts

    unet.register_forward_pre_hook(cast, with_kwargs=True)
    unet.register_forward_hook(lambda _module, _args, eps: (eps[0].float(),))


def _rename(key: str, names: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in names:
        key = re.sub(pattern, replacement, key)
    return key
