"""The frozen stack has the public keys and shapes, and the numbers of diffusers on equal random weights."""

import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.benchmark.diffusers_twin import diffusers_unet, diffusers_vae, unet_state, vae_state
from ldm.loading import read_config
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.plms import PLMSSampler
from ldm.models.diffusion.sdxl import SIZE_CHANNELS
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.modules.diffusionmodules.util import timestep_embedding
from ldm.util import UserError, instantiate_from_config
from tests.compvis_to_diffusers import randomise, relative_error

V1 = read_config("configs/stable-diffusion/v1-inference.yaml")
# v1 made narrow: four levels, none of the lowest with attention, two blocks a level; 32 groups, as diffusers and CompVis have at any width.
UNET = {**V1["params"]["unet_config"]["params"], "model_channels": 64, "num_heads": 4, "context_dim": 24}
VAE = {**V1["params"]["first_stage_config"]["params"]["ddconfig"], "ch": 32}
# The U-Net of SDXL's public config, whole and narrow.
SDXL = {"adm_in_channels": 2816, "num_classes": "sequential", "use_checkpoint": True, "in_channels": 4, "out_channels": 4,
        "model_channels": 320, "attention_resolutions": [4, 2], "num_res_blocks": 2, "channel_mult": [1, 2, 4],
        "num_head_channels": 64, "use_spatial_transformer": True, "use_linear_in_transformer": True,
        "transformer_depth": [1, 2, 10], "context_dim": 2048, "spatial_transformer_attn_type": "softmax-xformers", "legacy": False}
NARROW_SDXL = {**SDXL, "model_channels": 32, "num_head_channels": 16, "transformer_depth": [1, 1, 2], "context_dim": 24,
               "adm_in_channels": 16 + 6 * SIZE_CHANNELS}
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
            "set_alpha_to_one": False}


def narrow_config() -> dict:
    params = V1["params"]
    return {**V1, "params": {
        **params, "unet_config": {**params["unet_config"], "params": UNET}, "image_size": 8,
        "first_stage_config": {**params["first_stage_config"], "params": {"embed_dim": 4, "ddconfig": VAE}},
        "cond_stage_config": {**params["cond_stage_config"], "params": {
            "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}}}}


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomise(instantiate_from_config(narrow_config()), seed=1)


@pytest.fixture(scope="module")
def sdxl_unet():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomise(UNetModel(**NARROW_SDXL), seed=1)


@pytest.fixture(scope="module")
def their_unet(model):
    unet = diffusers_unet(**UNET)
    unet.load_state_dict(unet_state(model.model.diffusion_model.state_dict(), UNET["num_res_blocks"]))
    return unet


@pytest.fixture(scope="module")
def their_vae(model):
    vae = diffusers_vae(**VAE)
    vae.load_state_dict(vae_state(model.first_stage_model.state_dict(), len(VAE["ch_mult"])))
    return vae


def test_v1_has_the_keys_and_shapes_of_the_public_checkpoint():
    with torch.device("meta"):
        ours = instantiate_from_config(V1)
        theirs = {
            "unet": diffusers_unet(**V1["params"]["unet_config"]["params"]),
            "vae": diffusers_vae(**V1["params"]["first_stage_config"]["params"]["ddconfig"]),
            "text": CLIPTextModel(CLIPTextConfig(hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
                                                 intermediate_size=3072))}
    state = ours.state_dict()
    parts = {name: {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
             for name, prefix in (("unet", "model.diffusion_model."), ("vae", "first_stage_model."),
                                  ("text", "cond_stage_model.transformer.text_model."))}
    assert [len(part) for part in parts.values()] == [686, 248, 196] and len(state) == 1130
    assert [sum(value.numel() for value in part.values()) for part in parts.values()] == [859_520_964, 83_653_863, 123_060_480]
    assert shapes(unet_state(parts["unet"], 2)) == shapes(theirs["unet"].state_dict())
    assert shapes(vae_state(parts["vae"], 4)) == shapes(theirs["vae"].state_dict())
    assert shapes(parts["text"]) == shapes(theirs["text"].state_dict())


@pytest.mark.parametrize(("key", "shape"), [
    ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", (320, 768)),
    ("model.diffusion_model.input_blocks.3.0.op.weight", (320, 320, 3, 3)),
    ("model.diffusion_model.output_blocks.2.1.conv.weight", (1280, 1280, 3, 3)),
    ("model.diffusion_model.output_blocks.5.2.conv.weight", (1280, 1280, 3, 3)),
    ("first_stage_model.decoder.up.0.block.0.nin_shortcut.weight", (128, 256, 1, 1)),
    ("first_stage_model.encoder.mid.attn_1.q.weight", (512, 512, 1, 1)),
    ("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight", (49408, 768)),
])
def test_v1_key(key, shape):
    with torch.device("meta"):
        assert instantiate_from_config(V1).state_dict()[key].shape == shape


def test_group_counts_are_the_public_ones_unless_the_config_states_others(model):
    counts = {part.num_groups for part in model.modules() if isinstance(part, torch.nn.GroupNorm)}
    assert counts == {32}
    by_width = UNetModel(**{**UNET, "model_channels": 32, "norm_num_groups": {width: 8 for width in range(32, 321, 32)}})
    assert {part.num_groups for part in by_width.modules() if isinstance(part, torch.nn.GroupNorm)} == {8}


@pytest.mark.parametrize(("params", "channels"), [({"model_channels": 48}, 48), ({"norm_num_groups": {64: 16}}, 128),
                                                  ({"norm_num_groups": 0}, 64)])
def test_group_counts_that_do_not_divide_are_refused(params, channels):
    with pytest.raises(UserError, match=f"norm_num_groups=.* divides a layer of {channels} channels"), torch.device("meta"):
        UNetModel(**UNET | params)


def test_noise_prediction_equals_diffusers(model, their_unet):
    latent, timestep, context = torch.randn(2, 4, 8, 8), torch.tensor([7, 901]), torch.randn(2, 77, 24)
    ours = model.apply_model(latent, timestep, context)
    assert relative_error(ours, their_unet(latent, timestep, context).sample) < 1e-4
    assert torch.equal(ours, model.apply_model(latent, timestep, {"c_crossattn": [context]}))
    assert relative_error(ours, model.apply_model(latent, timestep, 0 * context)) > 1e-3  # the text has a say
    assert relative_error(ours, model.apply_model(latent, 0 * timestep, context)) > 1e-3


def test_sdxl_unet_has_the_keys_and_shapes_of_the_public_checkpoint():
    with torch.device("meta"):
        state, theirs = UNetModel(**SDXL).state_dict(), diffusers_unet(**SDXL).state_dict()
    assert len(state) == 1680 and sum(value.numel() for value in state.values()) == 2_567_463_684
    assert shapes(unet_state(state, 2)) == shapes(theirs)
    assert state["label_emb.0.0.weight"].shape == (1280, 2816)
    assert state["middle_block.1.transformer_blocks.9.attn2.to_k.weight"].shape == (1280, 2048)
    assert state["input_blocks.4.1.proj_in.weight"].shape == (640, 640)


def test_sdxl_noise_prediction_equals_diffusers(sdxl_unet):
    theirs = diffusers_unet(**NARROW_SDXL)
    theirs.load_state_dict(unet_state(sdxl_unet.state_dict(), 2))
    latent, timestep, context, pooled = torch.randn(2, 4, 8, 8), torch.tensor([7, 901]), torch.randn(2, 77, 24), torch.randn(2, 16)
    sizes = torch.tensor([[768, 1024, 0, 64, 768, 1024], [512, 512, 0, 0, 1024, 1024]])  # original, crop, target: height and width
    y = torch.cat([pooled, timestep_embedding(sizes.flatten(), SIZE_CHANNELS).view(2, -1)], dim=1)
    ours = sdxl_unet(latent, timestep, context, y)
    expected = theirs(latent, timestep, context, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}).sample
    assert relative_error(ours, expected) < 1e-4
    for other in (sdxl_unet(latent, timestep, context, y.flip(0)), sdxl_unet(latent, timestep, 0 * context, y)):
        assert relative_error(ours, other) > 1e-3  # sizes and text have a say


def test_vector_beside_the_text_is_given_exactly_where_it_is_read(model, sdxl_unet):
    latent, timestep, context = torch.randn(1, 4, 8, 8), torch.tensor([7]), torch.randn(1, 77, 24)
    with pytest.raises(UserError, match="reads a vector y .* pass it"):
        sdxl_unet(latent, timestep, context)
    with pytest.raises(UserError, match="reads no vector y .* leave y out"):
        model.model.diffusion_model(latent, timestep, context, torch.randn(1, NARROW_SDXL["adm_in_channels"]))


def test_posterior_and_decoded_image_equal_diffusers(model, their_vae):
    image, latent = torch.rand(2, 3, 64, 64) * 2 - 1, torch.randn(2, 4, 8, 8)
    ours, theirs = model.encode_first_stage(image), their_vae.encode(image).latent_dist
    assert relative_error(ours.mean, theirs.mean) < 1e-4 and relative_error(ours.logvar, theirs.logvar) < 1e-4
    assert relative_error(ours.kl(), theirs.kl()) < 1e-4
    assert relative_error(model.decode_first_stage(latent), their_vae.decode(latent / 0.18215).sample) < 1e-4


def test_many_pictures_go_through_the_autoencoder_a_few_at_a_time(model, monkeypatch):
    image, latent, counts = torch.rand(3, 3, 64, 64) * 2 - 1, torch.randn(3, 4, 8, 8), []
    mean, decoded = model.encode_first_stage(image).mean, model.decode_first_stage(latent)
    monkeypatch.setattr("ldm.models.autoencoder.PIXELS_AT_ONCE", 2 * 64 * 64)
    hooks = [half.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
             for half in (model.first_stage_model.encoder, model.first_stage_model.decoder)]
    torch.testing.assert_close(model.encode_first_stage(image).mean, mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.decode_first_stage(latent), decoded, rtol=1e-4, atol=1e-4)
    assert counts == [2, 1, 2, 1]
    for hook in hooks:
        hook.remove()


def test_context_equals_transformers(model):
    prompts = ["A close-up portrait of a person", "", "word " * 100]
    config = CLIPTextConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    theirs = CLIPTextModel(config).eval()
    theirs.load_state_dict(model.cond_stage_model.transformer.text_model.state_dict())
    expected = theirs(input_ids=model.cond_stage_model.tokenize(prompts)).last_hidden_state
    assert relative_error(model.get_learned_conditioning(prompts), expected) < 1e-4


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_trajectory_with_guidance_equals_diffusers(model, their_unet, eta):
    contexts, noise = model.get_learned_conditioning(["a person", ""]), torch.randn(1, 4, 8, 8)
    ours, intermediates = DDIMSampler(model).sample(
        S=20, batch_size=1, shape=(4, 8, 8), conditioning=contexts[:1], unconditional_conditioning=contexts[1:],
        unconditional_guidance_scale=7.0, eta=eta, x_T=noise, verbose=False, log_every_t=1,
        generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    scheduler = DDIMScheduler(**SCHEDULE, clip_sample=False)
    scheduler.set_timesteps(20)
    latent = noise
    for step, t in enumerate(scheduler.timesteps):
        eps, eps_unconditional = their_unet(latent.expand(2, -1, -1, -1), t, contexts).sample.chunk(2)
        eps = eps_unconditional + 7.0 * (eps - eps_unconditional)
        latent = scheduler.step(eps, t, latent, eta=eta, variance_noise=torch.randn(1, 4, 8, 8, generator=generator)).prev_sample
        assert relative_error(intermediates["x_inter"][step + 1], latent) < 1e-4
    assert torch.equal(ours, intermediates["x_inter"][-1])


def test_plms_trajectory_equals_diffusers(model, their_unet):
    context, noise = model.get_learned_conditioning("a person"), torch.randn(1, 4, 8, 8)
    ours, _ = PLMSSampler(model).sample(S=10, batch_size=1, shape=(4, 8, 8), conditioning=context, x_T=noise, verbose=False)
    scheduler = PNDMScheduler(**SCHEDULE, skip_prk_steps=True)
    scheduler.set_timesteps(10)
    latent = noise
    for t in scheduler.timesteps:
        latent = scheduler.step(their_unet(latent, t, context).sample, t, latent).prev_sample
    assert relative_error(ours, latent) < 1e-4


def test_noising_equals_diffusers(model):
    latent, noise, timestep = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999])
    theirs = DDIMScheduler(**SCHEDULE).add_noise(latent, noise, timestep)
    assert relative_error(model.q_sample(latent, timestep, noise), theirs) < 1e-4


def test_bfloat16_runs_and_keeps_the_schedule_in_float32():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = randomise(instantiate_from_config(narrow_config()), seed=1)
    latent, timestep = torch.randn(1, 4, 8, 8), torch.tensor([500])
    eps = model.apply_model(latent, timestep, model.get_learned_conditioning("a person"))
    image = model.decode_first_stage(latent)
    betas = model.betas.clone()
    model.to(torch.bfloat16)
    coarse = model.apply_model(latent, timestep, model.get_learned_conditioning("a person"))
    assert coarse.dtype == torch.float32 and relative_error(coarse, eps) < 0.05
    assert relative_error(model.decode_first_stage(latent).float(), image) < 0.05
    assert torch.equal(model.betas, betas)


def test_public_v1_config_builds_the_same_model():
    public = {"base_learning_rate": 1.0e-4, "target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": {
        "linear_start": 0.00085, "linear_end": 0.0120, "num_timesteps_cond": 1, "log_every_t": 200, "timesteps": 1000,
        "first_stage_key": "jpg", "cond_stage_key": "txt", "image_size": 64, "channels": 4,
        "cond_stage_trainable": False, "conditioning_key": "crossattn", "monitor": "val/loss_simple_ema",
        "scale_factor": 0.18215, "use_ema": False,
        "scheduler_config": {"target": "ldm.lr_scheduler.LambdaLinearScheduler", "params": {"warm_up_steps": [10000]}},
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": {
            "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "attention_resolutions": [4, 2, 1],
            "num_res_blocks": 2, "channel_mult": [1, 2, 4, 4], "num_heads": 8, "use_spatial_transformer": True,
            "transformer_depth": 1, "context_dim": 768, "use_checkpoint": True, "legacy": False}},
        "first_stage_config": {"target": "ldm.models.autoencoder.AutoencoderKL", "params": {
            "embed_dim": 4, "monitor": "val/rec_loss", "lossconfig": {"target": "torch.nn.Identity"}, "ddconfig": {
                "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
                "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}}},
        "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"}}}
    with torch.device("meta"):
        assert shapes(instantiate_from_config(public).state_dict()) == shapes(instantiate_from_config(V1).state_dict())


@pytest.mark.parametrize(("changed", "sentence"), [
    ({"use_scale_shift_norm": True}, "UNetModel is asked for use_scale_shift_norm=True but only supports False"),
    ({"resblock_updown": True}, "UNetModel is asked for resblock_updown=True but only supports False"),
    ({"num_attention_blocks": [1]}, "UNetModel has no parameter 'num_attention_blocks'"),
    ({"adm_in_channels": 2816}, "num_classes=None with adm_in_channels=2816; give neither"),
    ({"num_classes": "sequential"}, "num_classes='sequential' with adm_in_channels=None; give neither"),
    ({"num_classes": 1000, "adm_in_channels": 2816}, "num_classes=1000 with adm_in_channels=2816; give neither"),
    ({"num_head_channels": 16}, "num_heads=4 and num_head_channels=16; give one of them"),
    ({"num_heads": -1}, "num_heads=-1 and num_head_channels=-1; give one of them"),
    ({"num_heads": -1, "num_head_channels": 24}, r"a divisor of every level's width, 64 times \[1, 2, 4, 4\]"),
    ({"transformer_depth": [1, 2, 10]}, r"transformer_depth=\[1, 2, 10\] with channel_mult=\[1, 2, 4, 4\]; give one number"),
])
def test_config_of_another_architecture_is_refused(changed, sentence):
    with torch.device("meta"), pytest.raises(UserError, match=sentence):
        instantiate_from_config({"target": V1["params"]["unet_config"]["target"], "params": {**UNET, **changed}})


def shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}
