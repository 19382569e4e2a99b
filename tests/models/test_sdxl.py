"""SDXL: the public checkpoint's keys and shapes, diffusers' numbers on equal random weights, and a prefix in both text encoders."""

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ldm.apl.prefix import build_prefix
from ldm.benchmark.diffusers_twin import diffusers_pipeline, open_clip_state
from ldm.generation import generate
from ldm.loading import load_frozen_model, read_config
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.modules.embedding_file import SDXL_KEYS, write_embedding_file, write_safetensors_file
from ldm.modules.embedding_manager import DualEmbeddingManager, manager_for
from ldm.util import UserError, instantiate_from_config
from tests.compvis_to_diffusers import relative_error
from tests.conftest import FIRST, POOLED, SECOND, TINY_XL

XL = read_config("configs/stable-diffusion/sdxl-base.yaml")
TEXTS = ["A close-up portrait of Ann Bell", "", "word " * 100]


@pytest.fixture(scope="module")
def model(tiny_xl_model):
    return tiny_xl_model


@pytest.fixture(scope="module")
def files(tiny_xl_files):
    return tiny_xl_files


@pytest.fixture(scope="module")
def pipeline(model):
    return diffusers_pipeline(model, TINY_XL)


def test_sdxl_has_the_keys_and_shapes_of_the_public_checkpoint():
    """sd_xl_base_1.0.safetensors has 2515 tensors: these, and a logit_scale and position_ids that nothing reads."""
    with torch.device("meta"):
        state = instantiate_from_config(XL).state_dict()
        first = CLIPTextModel(CLIPTextConfig(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072))
        second = CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=1280, num_hidden_layers=32, num_attention_heads=20,
                                                            intermediate_size=5120, projection_dim=1280))
    prefixes = ("model.diffusion_model.", "first_stage_model.", "conditioner.embedders.0.transformer.text_model.",
                "conditioner.embedders.1.model.")
    parts = [{key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)} for prefix in prefixes]
    assert [len(part) for part in parts] == [1680, 248, 196, 389] and len(state) == 2513
    assert [sum(value.numel() for value in part.values()) for part in parts] == [2_567_463_684, 83_653_863, 123_060_480, 694_659_840]
    assert shapes(parts[2]) == shapes(first.state_dict()) and shapes(open_clip_state(parts[3])) == shapes(second.state_dict())
    assert shapes(parts[3])["transformer.resblocks.31.attn.in_proj_weight"] == (3840, 1280)
    assert shapes(parts[3])["text_projection"] == (1280, 1280)


def test_contexts_and_pooled_text_equal_diffusers(model, pipeline):
    states, _, pooled, _ = pipeline.encode_prompt(TEXTS, do_classifier_free_guidance=False)
    ours = model.get_learned_conditioning(TEXTS)
    assert ours.shape == (3, 78, FIRST + SECOND)
    assert relative_error(ours[:, :-1, :FIRST], states[..., :FIRST]) < 1e-4
    assert relative_error(ours[:, :-1, FIRST:], states[..., FIRST:]) < 1e-4
    assert relative_error(ours[:, -1, :POOLED], pooled) < 1e-4 and not ours[:, -1, POOLED:].any()


@pytest.mark.parametrize("negative", ["", "blurry"])
def test_ddim_trajectory_with_guidance_equals_diffusers(model, pipeline, negative):
    """The empty negative prompt is diffusers' None: zeros."""
    noise, theirs = torch.randn(2, 4, 8, 8), []
    pipeline(TEXTS[:2], negative_prompt=[negative] * 2 if negative else None, height=64, width=64, num_inference_steps=5,
             guidance_scale=5.0, latents=noise, output_type="latent",
             callback_on_step_end=lambda _pipeline, _step, _t, given: theirs.append(given["latents"]) or {})
    context, unconditional = model.get_learned_conditioning(TEXTS[:2]), model.get_negative_conditioning(negative)
    model.set_sizes((64, 64), (0, 0), (64, 64))
    _, ours = DDIMSampler(model).sample(5, 2, (4, 8, 8), context, x_T=noise, unconditional_guidance_scale=5.0,
                                        unconditional_conditioning=unconditional, verbose=False, log_every_t=1)
    model.set_sizes((32, 32), (0, 0), (32, 32))
    assert len(theirs) == 5
    for latent, expected in zip(ours["x_inter"][1:], theirs, strict=True):
        assert relative_error(latent, expected) < 1e-4


def test_the_sizes_reach_the_noise_prediction(model):
    latent, timestep, context = torch.randn(1, 4, 8, 8), torch.tensor([500]), model.get_learned_conditioning("a person")
    eps = model.apply_model(latent, timestep, context)
    assert torch.equal(eps, model.apply_model(latent, timestep, {"c_crossattn": [context]}))
    model.set_sizes((512, 512), (0, 64), (32, 32))
    assert relative_error(model.apply_model(latent, timestep, context), eps) > 1e-3
    model.set_sizes((32, 32), (0, 0), (32, 32))
    assert torch.equal(model.apply_model(latent, timestep, context), eps)


def test_checkpoint_loads_tensor_for_tensor(model, files):
    loaded = load_frozen_model(*files)
    assert all(torch.equal(value, model.state_dict()[key].half().float()) for key, value in loaded.state_dict().items())
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    loaded.load_state_dict(model.state_dict())
    context = model.get_learned_conditioning(TEXTS)
    assert torch.equal(loaded.get_learned_conditioning(TEXTS), context)
    latent, timestep = torch.randn(3, 4, 8, 8), torch.tensor([1, 2, 3])
    assert torch.equal(loaded.apply_model(latent, timestep, context), model.apply_model(latent, timestep, context))


def test_the_prefix_stands_in_front_in_both_encoders(model):
    """With the vectors of 'red car' in front, a context is that of the text 'red car ...': states and pooled text."""
    manager = manager_for(model.cond_stage_model, initializer_words=["red car"], num_vectors_per_token=2)
    assert isinstance(manager, DualEmbeddingManager)
    prefixed = model.get_learned_conditioning(["alz beside a boat", "a boat"], manager)
    torch.testing.assert_close(prefixed, model.get_learned_conditioning(["red car beside a boat", "a boat"]), rtol=1e-5, atol=1e-5)
    long = model.get_learned_conditioning("alz " + "word " * 100, manager)  # keeps its end of text, and so its pooled text
    torch.testing.assert_close(long, model.get_learned_conditioning("red car " + "word " * 73), rtol=1e-5, atol=1e-5)


def test_only_the_vectors_of_both_encoders_are_learned(model):
    prefix = build_prefix(model, num_vectors=3, init="vocab", seed=1)
    assert [tuple(vectors.shape) for vectors in prefix.embedding_parameters()] == [(3, FIRST), (3, SECOND)]
    token_ids = model.cond_stage_model.tokenize("alz a person", prefix.extra_length)
    model.apply_model(torch.randn(1, 4, 8, 8), torch.tensor([500]), model.cond_stage_model.context(token_ids, prefix)).sum().backward()
    assert all(vectors.grad.abs().max() > 0 for vectors in prefix.embedding_parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_saved_prefix_draws_the_same_pictures(model, tmp_path):
    prefix = build_prefix(model, num_vectors=3, seed=1)
    prefix.save(tmp_path / "apl.safetensors", step=5, seed=1)
    loaded = manager_for(model.cond_stage_model)
    assert loaded.load(tmp_path / "apl.safetensors").metadata == {"step": 5, "seed": 1}
    pictures = [[image for _, image in generate(model, [("a person", 0)], embedding_manager=manager, ddim_steps=2)]
                for manager in (prefix, loaded, None)]
    assert (pictures[0][0] == pictures[1][0]).all() and (pictures[0][0] != pictures[2][0]).any()
    assert pictures[0][0].shape == (32, 32, 3)


def test_prefixes_for_other_encoders_are_refused_by_name(model, tmp_path):
    manager = manager_for(model.cond_stage_model)
    write_embedding_file(tmp_path / "v1.pt", {"alz": torch.ones(2, FIRST)}, {"alz": 41128})
    with pytest.raises(UserError, match=r"v1.pt holds vectors for one text encoder .* and this model has two, as SDXL; make .*transfer"):
        manager.load(tmp_path / "v1.pt")
    for counts, widths, message in (((2, 2), (FIRST, 1024), r"1024 wide \(OpenCLIP ViT-H/14, of .* 2\) but"),
                                    ((2, 3), (FIRST, SECOND), "holds 2 vectors for the first text encoder and 3")):
        write_safetensors_file(tmp_path / "other.safetensors", dict(zip(SDXL_KEYS, map(torch.ones, counts, widths), strict=True)))
        before = [vectors.detach().clone() for vectors in manager.embedding_parameters()]
        with pytest.raises(UserError, match=message):
            manager.load(tmp_path / "other.safetensors")
        assert all(map(torch.equal, manager.embedding_parameters(), before))  # nothing is lost
    with pytest.raises(UserError, match="2 placeholders were given"):
        manager_for(model.cond_stage_model, ["alz", "person"])


def test_a_config_of_the_wrong_form_is_refused(tmp_path):
    params = {key: value for key, value in TINY_XL["params"].items() if key != "conditioner_config"}
    with pytest.raises(UserError, match="does not take its params .*conditioner_config"):
        instantiate_from_config({**TINY_XL, "params": params})


def test_checkpoints_in_each_others_place_are_named(files, tiny_files):
    with pytest.raises(UserError, match="is an SDXL checkpoint: it lacks .* give --config_path configs/stable-diffusion/sdxl-base.yaml"):
        load_frozen_model(tiny_files[0], files[1])
    with pytest.raises(UserError, match="is a Stable Diffusion v1 checkpoint: it lacks .* configs/stable-diffusion/v1-inference"):
        load_frozen_model(files[0], tiny_files[1])


def shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}
