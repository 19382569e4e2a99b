"""CLIP score through open_clip: mini-clip knows its world, and wrong files are refused."""

import random
from pathlib import Path

import pytest

from ldm.evaluation.clip_score import ClipScorer
from ldm.mini.scenes import draw_scene, sample_scene, scene_phrase
from ldm.util import UserError

DATA = Path("data/mini")
CONFIG, WEIGHTS = str(DATA / "mini-clip.json"), DATA / "mini-clip.safetensors"


@pytest.fixture(scope="module")
def clip():
    return ClipScorer(CONFIG, WEIGHTS)


@pytest.fixture(scope="module")
def scenes():
    rng = random.Random("test scenes")
    drawn = {scene_phrase(scene): scene for scene in (sample_scene(rng) for _ in range(30))}
    return list(drawn), [draw_scene(scene) for scene in drawn.values()]


@pytest.mark.weights
def test_drawn_scenes_are_recognised_by_their_captions(clip, scenes):
    captions, images = scenes
    right = (clip.recognise(images, captions).numpy() == range(len(captions))).mean()
    assert right > 0.8  # chance is 1 in 30


@pytest.mark.weights
def test_the_right_captions_score_higher_than_others(clip, scenes):
    captions, images = scenes
    right, wrong = clip.similarity(images, captions), clip.similarity(images, captions[1:] + captions[:1])
    assert right.mean() > wrong.mean() + 0.2 and right.max() <= 1


@pytest.mark.parametrize(("config", "weights"), [("nowhere.json", WEIGHTS), (CONFIG, "nowhere.safetensors"),
                                                ("ViT-S-32-alt", WEIGHTS)])
def test_files_that_do_not_fit_end_with_a_sentence(config, weights):
    with pytest.raises(UserError):
        ClipScorer(config, weights)
