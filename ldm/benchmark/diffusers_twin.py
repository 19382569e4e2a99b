"""Sampling by `ldm.generation.generate` and by diffusers on equal weights and noise, which gives equal images.

diffusers is optional: it is imported in the functions that use it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldm.generation import generate, image_noise
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.sdxl import SIZE_CHANNELS, DiffusionEngine
from ldm.modules.diffusionmodules.util import NUM_GROUPS, Groups
from ldm.modules.encoders.modules import clip_tokenizer
from ldm.modules.encoders.sdxl import FrozenOpenCLIPEmbedder2

DDIM_STEPS, SCALE, SEED = 20, 7.0, 0


def unet_state(state: dict[str, Tensor], num_res_blocks: int) -> dict[str, Tensor]:
    """State of our UNetModel under diffusers' keys."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    sizes = {"addition_embed_type": "text_time"} if "label_emb.0.0.weight" in state else {}
    return convert_ldm_unet_checkpoint({f"model.diffusion_model.{key}": value for key, value in state.items()},
                                       {"layers_per_block": num_res_blocks, **sizes})


def vae_state(state: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """State of our AutoencoderKL under diffusers' keys; its attention has linear layers where ours has 1 x 1 convolutions."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    return convert_ldm_vae_checkpoint(state, {"down_block_types": range(levels), "up_block_types": range(levels)})


def open_clip_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State of OpenCLIP's text transformer under the keys of transformers' CLIPTextModelWithProjection."""
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    return convert_open_clip_checkpoint(None, state, prefix="")


def jobs_of(count: int) -> list[tuple[str, int]]:
    """`count` images of different prompts."""
    return [(f"A close-up portrait of person number {number}", 0) for number in range(count)]


def our_images(model: LatentDiffusion, count: int) -> np.ndarray:
    """Images (count, H, W, 3) uint8, generated in one batch."""
    images = generate(model, jobs_of(count), ddim_steps=DDIM_STEPS, scale=SCALE, seed=SEED, batch_size=count)
    return np.stack([image for _, image in images])


def diffusers_images(model: LatentDiffusion, config: Mapping[str, Any]) -> Callable[[int], np.ndarray]:
    """A function like `our_images`, of the count alone, that generates with diffusers from the same noise; see `diffusers_pipeline`."""
    pipeline, shape = diffusers_pipeline(model, config), (model.channels, model.image_size, model.image_size)

    @torch.no_grad()
    def their_images(count: int) -> np.ndarray:
        noise = torch.stack([image_noise(SEED, *job, shape) for job in jobs_of(count)])
        images = pipeline([prompt for prompt, _ in jobs_of(count)], height=8 * shape[1], width=8 * shape[2],
                          num_inference_steps=DDIM_STEPS, guidance_scale=SCALE, latents=noise.to(model.device)).images
        return np.stack([np.asarray(image) for image in images])

    return their_images


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
        cross_attention_dim=context_dim, norm_num_groups=1, time_embedding_dim=4 * model_channels)
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
        norm_num_groups=1, scaling_factor=scale_factor)
    return _with_groups(vae, norm_num_groups)


def diffusers_text_encoder_2(embedder: FrozenOpenCLIPEmbedder2) -> nn.Module:
    """transformers' CLIPTextModelWithProjection with the weights of SDXL's second text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    state, blocks = open_clip_state(embedder.model.state_dict()), embedder.model.transformer.resblocks
    config = CLIPTextConfig(
        hidden_size=embedder.get_input_embeddings().embedding_dim, num_hidden_layers=len(blocks),
        num_attention_heads=blocks[0].attn.num_heads, intermediate_size=len(state["text_model.encoder.layers.0.mlp.fc1.weight"]),
        hidden_act="gelu", projection_dim=embedder.pooled_width, bos_token_id=49406, eos_token_id=49407)
    with torch.device("meta"):
        theirs = CLIPTextModelWithProjection(config)
    theirs.load_state_dict(state, assign=True)
    theirs.text_model.embeddings.position_ids = torch.arange(config.max_position_embeddings)[None]
    return theirs.eval()


def diffusers_pipeline(model: LatentDiffusion, config: Mapping[str, Any]) -> Any:
    """diffusers' pipeline of Stable Diffusion v1 or SDXL with DDIM and the weights and precision of `model`, built from `config`."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    params = config["params"]
    shape, autoencoder = params["unet_config"]["params"], params["first_stage_config"]["params"]["ddconfig"]
    with torch.device("meta"):
        unet, vae = diffusers_unet(**shape), diffusers_vae(**autoencoder, scale_factor=model.scale_factor)
    unet.load_state_dict(unet_state(model.model.diffusion_model.state_dict(), shape["num_res_blocks"]), assign=True)
    vae.load_state_dict(vae_state(model.first_stage_model.state_dict(), len(autoencoder["ch_mult"])), assign=True)
    unet.to(memory_format=torch.contiguous_format)  # the format that diffusers uses
    _cast_inputs(unet)
    scheduler = DDIMScheduler(beta_start=params["linear_start"], beta_end=params["linear_end"], beta_schedule="scaled_linear",
                              steps_offset=1, set_alpha_to_one=False, clip_sample=False)
    if isinstance(model, DiffusionEngine):
        first, second = model.conditioner.first, model.conditioner.second
        pipeline = StableDiffusionXLPipeline(
            vae=vae, text_encoder=first.transformer.text_model, tokenizer=first.tokenizer, unet=unet, scheduler=scheduler,
            text_encoder_2=diffusers_text_encoder_2(second), tokenizer_2=clip_tokenizer(pad_token="!"), add_watermarker=False)
    else:
        pipeline = StableDiffusionPipeline(
            vae=vae, text_encoder=model.cond_stage_model.transformer.text_model, tokenizer=model.cond_stage_model.tokenizer, unet=unet,
            scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _widen_later(unet: Any, in_channels: int, entrance: int, width: int) -> None:
    """Give the first feature map `entrance` channels, as ours has, instead of the `width` of the first level."""
    from diffusers.models.resnet import ResnetBlock2D

    unet.conv_in = nn.Conv2d(in_channels, entrance, 3, padding=1)
    unet.time_proj.num_channels = entrance
    unet.time_embedding.linear_1 = nn.Linear(entrance, 4 * entrance)
    unet.down_blocks[0].resnets[0], unet.up_blocks[-1].resnets[-1] = (
        ResnetBlock2D(in_channels=channels, out_channels=width, temb_channels=4 * entrance, groups=1, eps=1e-5)
        for channels in (entrance, width + entrance))


def _with_groups(module: nn.Module, norm_num_groups: Groups) -> nn.Module:
    """Freeze a module and set its numbers of groups, which diffusers' constructors cannot vary by width."""
    for part in module.modules():
        if isinstance(part, nn.GroupNorm):
            part.num_groups = norm_num_groups if isinstance(norm_num_groups, int) else norm_num_groups[part.num_channels]
    return module.eval().requires_grad_(False)


def _cast_inputs(unet: nn.Module) -> None:
    """Make the U-Net compute in the dtype of its weights and return float32, as ours does; the pipeline stays in float32."""
    def cast(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        latent, timestep = args
        added = {name: value.to(unet.dtype) for name, value in (kwargs.get("added_cond_kwargs") or {}).items()}
        texts = {"encoder_hidden_states": kwargs["encoder_hidden_states"].to(unet.dtype), "added_cond_kwargs": added or None}
        return (latent.to(unet.dtype), timestep), kwargs | texts

    unet.register_forward_pre_hook(cast, with_kwargs=True)
    unet.register_forward_hook(lambda _module, _args, eps: (eps[0].float(),))
