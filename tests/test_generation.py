"""Prompts and seeds become images, whatever the batch; the prefix stands before the prompt alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ldm.generation import Target, WeightedPrompts, generate, image_noise, to_uint8, warn_of_cut_texts, with_prefix
from ldm.modules.embedding_manager import EmbeddingManager

JOBS = [("a person", 0), ("a house", 0), ("a person", 1)]


class Shift:
    """A stand-in for the prefix: moves every token embedding of a prompt that begins with the placeholder."""

    string_to_token_dict = {"alz": 41128}

    def __init__(self):
        self.seen = []

    def __call__(self, token_ids, token_embeddings):
        self.seen.append(token_ids)
        return token_embeddings + 3.0


@pytest.fixture(scope="module")
def images(tiny_model):
    return dict(generate(tiny_model, JOBS, ddim_steps=3))


def test_noise_depends_on_seed_prompt_and_sample_alone():
    noise = image_noise(0, "a person", 1, (4, 64, 64))
    torch.manual_seed(5)
    assert torch.equal(noise, image_noise(0, "a person", 1, (4, 64, 64)))
    for other in ((1, "a person", 1), (0, "a house", 1), (0, "a person", 0)):
        assert abs((noise * image_noise(*other, (4, 64, 64))).mean()) < 0.04  # independent
    assert noise.std().item() == pytest.approx(1, abs=0.02)


def test_jobs_come_back_in_order_as_rgb_bytes(images):
    assert list(images) == JOBS
    assert all(image.shape == (32, 32, 3) and image.dtype == np.uint8 for image in images.values())
    assert not np.array_equal(images["a person", 0], images["a person", 1])


def test_batch_size_does_not_change_an_image(tiny_model, images):
    for job, image in generate(tiny_model, JOBS, ddim_steps=3, batch_size=1):
        assert np.abs(image.astype(int) - images[job]).max() <= 1  # rounding


def test_prefix_stands_before_the_prompt_and_not_before_the_unconditional_one(tiny_model, images):
    shift = Shift()
    changed = dict(generate(tiny_model, JOBS, ddim_steps=3, embedding_manager=shift))
    assert len(shift.seen) == 1 and (shift.seen[0][:, 1] == 41128).all()
    assert all(not np.array_equal(changed[job], images[job]) for job in JOBS)


def test_negative_prompt_counts_with_guidance_only(tiny_model, images):
    jobs = JOBS[:1]
    assert not np.array_equal(dict(generate(tiny_model, jobs, ddim_steps=3, negative_prompt="blurry"))[jobs[0]], images[jobs[0]])
    plain, negative = (dict(generate(tiny_model, jobs, ddim_steps=3, scale=1.0, negative_prompt=prompt))[jobs[0]]
                       for prompt in ("", "blurry"))
    assert np.array_equal(plain, negative)


def test_weighted_prompts_are_the_sum_of_the_formula():
    values = {0: 1.0, 1: 5.0, 2: 2.0}  # eps of the negative and of two further prompts, found by the first number of their contexts

    def apply_model(x, _t, contexts):
        return torch.tensor([values[int(context[0, 0])] for context in contexts])[:, None, None, None].expand_as(x)

    corrector = WeightedPrompts(torch.arange(3.0)[:, None, None, None], [2.0, -1.0, 0.5])
    x = torch.zeros(2, 1, 1, 1)
    found = corrector.modify_score(SimpleNamespace(apply_model=apply_model), x + 3.0, x, torch.zeros(2), None)
    assert torch.equal(found, x + (1 + 2 * (3 - 1) - (5 - 1) + 0.5 * (2 - 1.0)))


def test_the_target_goes_from_the_name_through_the_attributes(tiny_model):
    """alpha 0 is the image of c2 from the noise of c1; equal prompts give the prompt's own image for every alpha, with guidance."""
    def image(prompts, alpha, **settings):
        target = Target({"a person": prompts}, alpha)
        return dict(generate(tiny_model, JOBS[:1], ddim_steps=3, target=target, **settings))[JOBS[0]].astype(int)

    plain = dict(generate(tiny_model, JOBS[:1], ddim_steps=3))[JOBS[0]]
    assert np.abs(image("a person", 2.0) - plain).max() <= 1  # rounding
    steps = [image("a house", alpha) for alpha in (0.0, 1.0)]
    assert (steps[0] != plain).any() and (steps[1] != steps[0]).any()
    assert (image("a house", 1.0, scale=3.0) != steps[1]).any()


def test_the_weights_of_the_target_are_those_of_guidance_on_eq_5(tiny_model):
    eps_negative, eps_name, eps_attributes, alpha, scale = 1.0, 2.0, 5.0, 0.5, 7.0

    def apply_model(x, _t, contexts):
        return torch.tensor([eps_negative, eps_attributes])[contexts[:, 0, 0].long()][:, None, None, None].expand_as(x)

    model = SimpleNamespace(apply_model=apply_model, get_learned_conditioning=lambda texts: torch.ones(len(texts), 77, 3))
    x = torch.zeros(2, 4, 1, 1)
    corrector = Target({"c1": "c2"}, alpha).corrector(model, ["c1", "c1"], torch.zeros(1, 77, 3), scale)
    eps_hat = eps_attributes + alpha * (eps_attributes - eps_name)
    found = corrector.modify_score(model, x + eps_name, x, torch.zeros(2), None)
    assert torch.equal(found, torch.full_like(x, eps_negative + scale * (eps_hat - eps_negative)))


def test_no_jobs_give_no_images(tiny_model):
    assert list(generate(tiny_model, [])) == []


def test_prompts_stay_as_they_are_without_a_prefix():
    assert with_prefix(["a person"]) == ["a person"] and with_prefix(["a person"], Shift()) == ["alz a person"]


def test_pixels_are_rounded_and_clamped():
    image = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).expand(1, 3, 1, 5)
    assert to_uint8(image)[0, 0].tolist() == [[value] * 3 for value in (0, 0, 128, 255, 255)]


def test_texts_that_lose_words_are_counted(capsys, tiny_model):
    manager = EmbeddingManager(tiny_model.cond_stage_model)
    texts = ["a dog", "a dog", " ".join(["man"] * 65), " ".join(["man"] * 66), " ".join(["man"] * 76)]
    warn_of_cut_texts(tiny_model, texts, [None, manager, manager], what="captions")
    assert capsys.readouterr().err.splitlines() == [
        "warning: 1 of 4 captions (25%) are longer than the text encoder's 75 tokens and lose their last words",
        "warning: 2 of 4 captions (50%) are longer than the 65 tokens that 10 vectors leave and lose their last words; 1 of them would "
        "without a prefix too"]
    warn_of_cut_texts(tiny_model, ["a dog"], [None, manager])
    warn_of_cut_texts(tiny_model, [], [None])
    assert capsys.readouterr().err == ""
