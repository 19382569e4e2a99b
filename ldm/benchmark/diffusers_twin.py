"""Sampling by `ldm.generation.generate` and by diffusers on equal weights and noise, which gives equal images.

diffusers is optional: it is imported in the functions that use it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldm.export.pipeline import scheduler_config, text_config_2, unet_config, vae_config
from ldm.generation import generate, image_noise
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.sdxl import DiffusionEngine
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


def diffusers_unet(*, in_channels: int, model_channels: int, channel_mult: list[int], norm_num_groups: Groups = NUM_GROUPS,
                   **others: Any) -> nn.Module:
    """UNet2DConditionModel of diffusers for the parameters of our UNetModel; also for a first level that is wider than its input."""
    from diffusers import UNet2DConditionModel

    config = unet_config(in_channels=in_channels, model_channels=model_channels, channel_mult=channel_mult, norm_num_groups=1, **others)
    unet = UNet2DConditionModel.from_config(config | {"time_embedding_dim": 4 * model_channels})
    if channel_mult[0] != 1:
        _widen_later(unet, in_channels, model_channels, channel_mult[0] * model_channels)
    return _with_groups(unet, norm_num_groups)


def diffusers_vae(*, norm_num_groups: Groups = NUM_GROUPS, scale_factor: float = 0.18215, **others: Any) -> nn.Module:
    """AutoencoderKL of diffusers for the parameters of ours."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_config(vae_config(norm_num_groups=1, scale_factor=scale_factor, **others))
    return _with_groups(vae, norm_num_groups)


def diffusers_text_encoder_2(embedder: FrozenOpenCLIPEmbedder2) -> nn.Module:
    """transformers' CLIPTextModelWithProjection with the weights of SDXL's second text encoder."""
    from transformers import CLIPTextModelWithProjection

    state, config = open_clip_state(embedder.model.state_dict()), text_config_2(embedder)
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
    scheduler = DDIMScheduler(**scheduler_config(params))
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
