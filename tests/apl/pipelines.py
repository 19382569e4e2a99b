"""Diffusers pipelines of random weights, and what they make of prompts, for the tests of AnonymizationPrompt."""

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ldm.modules.encoders.modules import clip_tokenizer

M, BOS, EOT = 3, 49406, 49407
NAME, LONG = "a photo of Ann Bell", " ".join(["portrait"] * 100)


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text_config(width):
    return CLIPTextConfig(hidden_size=width, num_hidden_layers=3, num_attention_heads=2, intermediate_size=2 * width,
                          projection_dim=24, bos_token_id=BOS, eos_token_id=EOT, vocab_size=49408)


def unet_and_vae(**unet):
    return {"unet": UNet2DConditionModel(sample_size=4, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
                                         attention_head_dim=4, **unet),
            "vae": AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=8,
                                 down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2),
            "scheduler": DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)}


VECTORS, OTHERS, WIDE = drawn(M, 16, seed=3), drawn(M, 16, seed=4), drawn(M, 24, seed=5)


def random_sd(text_encoder):
    torch.manual_seed(1)
    return quiet(StableDiffusionPipeline(
        **unet_and_vae(cross_attention_dim=16, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                       up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")),
        text_encoder=text_encoder, tokenizer=clip_tokenizer(), safety_checker=None, feature_extractor=None, requires_safety_checker=False))


def random_sdxl():
    torch.manual_seed(2)
    second = clip_tokenizer()
    second.pad_token = "!"  # id 0, as in SDXL's tokenizer_2
    return quiet(StableDiffusionXLPipeline(
        **unet_and_vae(cross_attention_dim=16 + 24, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                       up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text_time", addition_time_embed_dim=8,
                       projection_class_embeddings_input_dim=6 * 8 + 24),
        text_encoder=CLIPTextModel(text_config(16)).eval(), text_encoder_2=CLIPTextModelWithProjection(text_config(24)).eval(),
        tokenizer=clip_tokenizer(), tokenizer_2=second, add_watermarker=False))


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def encode(pipeline, text, negative=None, *, images=1, guidance=True, **options):
    """What the pipeline makes of a prompt: SD (context, negative); SDXL with the pooled ones behind."""
    with torch.no_grad():
        return pipeline.encode_prompt(prompt=text, device="cpu", num_images_per_prompt=images, do_classifier_free_guidance=guidance,
                                      negative_prompt=negative, **options)


def draw(pipeline, **options):
    options = {"height": 8, "width": 8, "num_inference_steps": 2, "output_type": "np"} | options
    return pipeline(**options, generator=torch.Generator().manual_seed(0)).images


def equal(outputs, others):
    return all(torch.equal(a, b) for a, b in zip(outputs, others, strict=True))


