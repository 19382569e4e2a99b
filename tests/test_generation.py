"""Prompts and seeds become images, whatever the batch; the prefix stands before the prompt alone."""

import numpy as np
import pytest
import torch

from ldm.generation import generate, image_noise, to_uint8, warn_of_cut_texts, with_prefix
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
