"""The service under attack: what an attacker submits stands behind the prefix, as in a generation with the prefix."""


import numpy as np
import pytest
import torch

from ldm.attacks.service import FREE, Service, Submission, counted_calls
from ldm.generation import generate, image_noise, with_prefix
from ldm.modules.context_map import ContextMap
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.util import UserError


@pytest.fixture(scope="module")
def manager(tiny_model):
    return EmbeddingManager(tiny_model.cond_stage_model, ["alz"], num_vectors_per_token=3)


@pytest.mark.parametrize("prompt", ["a photo of Ada Stone", "", "high quality, " * 40 + "Ada", "alz sks alz"])
def test_a_prompt_has_the_context_of_a_generation_with_the_prefix(tiny_model, manager, prompt):
    expected = tiny_model.get_learned_conditioning(with_prefix([prompt], manager), manager)
    assert torch.allclose(Service(tiny_model, manager).context_of(prompt), expected, atol=1e-6)
    assert torch.allclose(Service(tiny_model).context_of(prompt), tiny_model.get_learned_conditioning([prompt]), atol=1e-6)


def test_a_context_map_is_attacked_too(tiny_model):
    learned = ContextMap(32, rank=0)
    torch.nn.init.normal_(learned.map)
    assert torch.allclose(Service(tiny_model, learned).context_of("Ada Stone"), tiny_model.get_learned_conditioning(["Ada Stone"], learned))


def test_uploaded_vectors_stand_behind_the_prefix_in_place_of_their_word(tiny_model, manager):
    both = EmbeddingManager(tiny_model.cond_stage_model, ["alz", "sks"], num_vectors_per_token=2)
    both.string_to_param_dict["alz"] = manager.string_to_param_dict["alz"]
    vectors = both.string_to_param_dict["sks"].detach().clone().requires_grad_()
    context = Service(tiny_model, manager).context_of("a photo of sks person", vectors)
    assert torch.allclose(context, tiny_model.get_learned_conditioning(["alz a photo of sks person"], both), atol=1e-6)
    context.sum().backward()
    assert vectors.grad.abs().sum(1).all()


def test_free_places_take_the_vectors_in_order(tiny_model):
    service = Service(tiny_model)
    ada, stone = (service.table[service.row(word)[0]] for word in ("ada", "stone"))
    row = [FREE, *service.row("of"), FREE]
    assert torch.allclose(service.context([row], torch.stack([ada, stone])), service.context_of("ada of stone"), atol=1e-6)


def test_a_plain_submission_generates_as_the_scripts_do(tiny_model, manager):
    prompt, settings = "a photo of Ada Stone", {"ddim_steps": 2, "scale": 3.0}
    (_, expected), = generate(tiny_model, [(prompt, 0)], embedding_manager=manager, seed=0, **settings)
    image, = Service(tiny_model, manager).generate(Submission(prompt), image_noise(0, prompt, 0, (4, 4, 4))[None], **settings)
    assert np.array_equal(image, expected)


def test_weights_and_negative_prompts_change_the_image_and_a_weight_of_zero_does_not(tiny_model, manager):
    service, noise, settings = Service(tiny_model, manager), torch.randn(1, 4, 4, 4), {"ddim_steps": 2, "scale": 3.0}

    def image(**changes):
        return service.generate(Submission("Ada Stone", **changes), noise, **settings)[0].astype(int)

    plain = image()
    assert abs(image(others=(("a red car", 0.0),)) - plain).max() <= 1  # another order of the same sums
    images = [plain, image(others=(("a red car", -1.0),)), image(negative="a red car"), image(negative="a red car", negative_prefixed=True),
              image(weight=2.0)]
    assert all((one != other).any() for number, one in enumerate(images) for other in images[:number])


def test_calls_are_counted_in_samples_and_backward_passes_once_more(tiny_model):
    x, t, context = torch.zeros(3, 4, 4, 4), torch.zeros(3, dtype=torch.int64), torch.zeros(3, 77, 32)
    with counted_calls(tiny_model) as calls:
        tiny_model.apply_model(x, t, context)
        tiny_model.apply_model(x, t, context.clone().requires_grad_())
    tiny_model.apply_model(x, t, context)
    assert (calls.forward, calls.backward, calls.total) == (6, 3, 9)


def test_words_survive_as_text(tiny_model):
    service = Service(tiny_model)
    chosen = service.random_words(40, torch.Generator().manual_seed(0))
    assert service.row(service.text(chosen.tolist())) == chosen.tolist()


def test_two_text_encoders_are_refused(tiny_xl_model):
    with pytest.raises(UserError, match="this model has two, as SDXL; give another model"):
        Service(tiny_xl_model)
