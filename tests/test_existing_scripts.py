"""Sampling scripts written for the public Stable Diffusion v1 repository run on this one, call for call."""

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.dpm_solver import DPMSolverSampler
from ldm.models.diffusion.plms import PLMSSampler
from ldm.util import instantiate_from_config


@pytest.fixture(scope="module")
def model(tiny_files, tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "model.ckpt"
    torch.save({"state_dict": load_file(tiny_files[1]), "global_step": 470_000}, path)

    config = OmegaConf.load(tiny_files[0])
    state = torch.load(path, map_location="cpu")["state_dict"]
    model = instantiate_from_config(config.model)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not missing and not unexpected
    return model.to(torch.device("cpu")).eval()


@pytest.mark.parametrize("sampler_class", [DDIMSampler, PLMSSampler, DPMSolverSampler])
def test_text_to_image(model, sampler_class):
    sampler, prompts = sampler_class(model), ("a person", "a house")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), model.ema_scope():
        unconditional = model.get_learned_conditioning(2 * [""])
        context = model.get_learned_conditioning(list(prompts))
        latents, _ = sampler.sample(S=4, conditioning=context, batch_size=2, shape=[4, 4, 4], verbose=False,
                                    unconditional_guidance_scale=7.5, unconditional_conditioning=unconditional, eta=0.0,
                                    x_T=None)
        images = torch.clamp((model.decode_first_stage(latents) + 1.0) / 2.0, min=0.0, max=1.0)
    assert images.shape == (2, 3, 32, 32) and images.isfinite().all()


def test_image_to_image(model):
    sampler, image = DDIMSampler(model), torch.rand(1, 3, 32, 32).repeat(2, 1, 1, 1) * 2.0 - 1.0
    with torch.no_grad(), model.ema_scope("sampling"):
        latent = model.get_first_stage_encoding(model.encode_first_stage(image))
        sampler.make_schedule(ddim_num_steps=10, ddim_eta=0.0, verbose=False)
        encoded = sampler.stochastic_encode(latent, torch.tensor([7] * 2).to(model.device))
        decoded = sampler.decode(encoded, model.get_learned_conditioning(2 * ["a person"]), 7, unconditional_guidance_scale=5.0,
                                 unconditional_conditioning=model.get_learned_conditioning(2 * [""]))
    assert decoded.shape == latent.shape and model.decode_first_stage(decoded).isfinite().all()
