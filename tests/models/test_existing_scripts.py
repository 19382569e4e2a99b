"""Scripts written for the public repositories of Stable Diffusion v1, textual inversion and APL run on this one, call for call."""

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.dpm_solver import DPMSolverSampler
from ldm.models.diffusion.plms import PLMSSampler
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.util import UserError, default, instantiate_from_config


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


def test_one_step_of_the_released_training(model, tmp_path):
    model.cond_stage_model.device = "cpu"
    manager = EmbeddingManager(embedder=model.cond_stage_model, placeholder_strings=["alz"], num_vectors_per_token=10)
    parameters = list(manager.embedding_parameters())
    optimizer, before = torch.optim.Adam(parameters, lr=1e-3), parameters[0].detach().clone()
    model.train()
    with torch.no_grad():
        latent = model.get_first_stage_encoding(model.encode_first_stage(torch.rand(1, 3, 32, 32) * 2 - 1))
        noise, t = default(None, lambda: torch.randn_like(latent)), torch.randint(500, 520, (1,))
        noisy = model.q_sample(x_start=latent, t=t, noise=noise)
        eps_attributes = model.apply_model(noisy, t, model.get_learned_conditioning(["a person"], manager))
    eps_prefixed = model.apply_model(noisy, t, model.get_learned_conditioning(["alz Somebody"], manager))
    torch.nn.MSELoss()(eps_prefixed, eps_attributes).backward()
    optimizer.step()
    model.eval()
    manager.save(str(tmp_path / "a-1999.pt"))
    again = EmbeddingManager(embedder=model.cond_stage_model, placeholder_strings=["alz"], num_vectors_per_token=10)
    again.load(str(tmp_path / "a-1999.pt"))
    assert torch.equal(next(again.embedding_parameters()), parameters[0]) and not torch.equal(parameters[0], before)


def sample(model, sampler_class, **options):
    context = model.get_learned_conditioning(["a person"] * 2, embedding_manager=None)
    return sampler_class(model).sample(
        S=5, conditioning=context, batch_size=2, shape=[4, 4, 4], verbose=False, x_T=torch.ones(2, 4, 4, 4), eta=0,
        unconditional_guidance_scale=7, unconditional_conditioning=model.get_learned_conditioning(2 * [""]), log_every_t=1, **options)


@pytest.mark.parametrize("sampler_class", [DDIMSampler, PLMSSampler, DPMSolverSampler])
def test_sampling_with_the_arguments_of_the_released_scripts(model, sampler_class):
    latents, _ = sample(model, sampler_class, verbose_iter=True, t_start=None, till_T=None)
    assert torch.equal(latents, sample(model, sampler_class)[0])


def test_part_of_the_sampling_steps(model):
    _, whole = sample(model, DDIMSampler)
    early, _ = sample(model, DDIMSampler, till_T=3)
    assert torch.equal(early, whole["x_inter"][3])  # x_T, then what steps 5, 4 and 3 leave
    assert len(sample(model, DDIMSampler, t_start=-1)[1]["x_inter"]) == 1 + 4
    assert len(sample(model, DDIMSampler, t_start=4, till_T=2)[1]["x_inter"]) == 1 + 3
    for options in ({"t_start": 2, "till_T": 3}, {"till_T": 6}, {"t_start": 0}):
        with pytest.raises(UserError, match="leave none of 5 sampling steps"):
            sample(model, DDIMSampler, **options)


def test_managers_of_textual_inversion_are_merged(model, tmp_path):
    for placeholder in ("*", "alz"):
        EmbeddingManager(model.cond_stage_model, [placeholder], initializer_words=["person"], num_vectors_per_token=1).save(
            tmp_path / f"{len(placeholder)}.pt")
    tokens, vectors = {}, torch.nn.ParameterDict()
    for path, placeholder in ((tmp_path / "1.pt", "*"), (tmp_path / "3.pt", "alz")):
        manager = EmbeddingManager(model.cond_stage_model, [placeholder])
        manager.load(path)
        tokens[placeholder] = manager.string_to_token_dict[placeholder]
        vectors[placeholder] = manager.string_to_param_dict[placeholder]
    merged = EmbeddingManager(model.cond_stage_model, ["*"])
    merged.string_to_token_dict, merged.string_to_param_dict = tokens, vectors
    merged.save(tmp_path / "merged.pt")
    read = EmbeddingManager(model.cond_stage_model, ["*"])
    read.load(tmp_path / "merged.pt")
    assert dict(read.string_to_token_dict) == tokens and set(read.string_to_param_dict) == {"*", "alz"}


def test_sampling_of_textual_inversion(model, tiny_files, tmp_path):
    EmbeddingManager(model.cond_stage_model, ["*"], initializer_words=["house"], num_vectors_per_token=1).save(tmp_path / "house.pt")
    config = OmegaConf.load(tiny_files[0]).model
    config.params.personalization_config = {"target": "ldm.modules.embedding_manager.EmbeddingManager", "params": {
        "placeholder_strings": ["*"], "initializer_words": ["sculpture"], "per_image_tokens": False, "num_vectors_per_token": 1,
        "progressive_words": False}}
    personal = instantiate_from_config(config)
    missing, unexpected = personal.load_state_dict(model.state_dict(), strict=False)
    personal.eval()
    with torch.no_grad():
        for word, context in (("sculpture", personal.get_learned_conditioning(["a photo of *"])),
                              ("house", personal.embedding_manager.load(tmp_path / "house.pt")
                               and personal.get_learned_conditioning(["a photo of *"]))):
            assert torch.equal(context, model.get_learned_conditioning([f"a photo of {word}"]))
    assert not missing and not unexpected and personal.state_dict().keys() == model.state_dict().keys()
    assert not hasattr(model, "embedding_manager")
    config.params.personalization_config.params.progressive_words = True
    with pytest.raises(UserError, match="EmbeddingManager is asked for progressive_words=True but only supports False"):
        instantiate_from_config(config).get_learned_conditioning(["*"])
