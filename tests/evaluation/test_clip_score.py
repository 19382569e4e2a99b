"""CLIP score through open_clip: mini-clip knows its world, the released code's preprocessing, and wrong files are refused."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ldm.evaluation.clip_score import ClipScorer, ImageEncoder, clip_model_of
from ldm.mini.scenes import NOTHING, OBJECTS, PLACES, draw_scene, sample_scene, scene_phrase
from ldm.util import UserError

DATA = Path("data/mini")
CONFIG, WEIGHTS = str(DATA / "mini-clip.json"), DATA / "mini-clip.safetensors"


@pytest.fixture(scope="module")
def clip():
    return ClipScorer(CONFIG, WEIGHTS)


@pytest.fixture(scope="module")
def scenes():
    rng = random.Random("test scenes")
    known = OBJECTS[:10], list(PLACES)[:5]      # the shipped mini-clip is the first edition's, which knows one thing at five places
    scenes = [scene for scene in (sample_scene(rng) for _ in range(150)) if (scene.object in known[0], scene.place in known[1],
                                                                             scene.other == NOTHING) == (True, True, True)][:30]
    drawn = {scene_phrase(scene): scene for scene in scenes}
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


def test_a_model_that_was_assumed_is_named_as_such(tmp_path):
    (tmp_path / "empty.safetensors").touch()
    with pytest.raises(UserError, match=r"ViT-g-14 \(assumed, as there is no config empty.json next to it\) \(0 bytes, an empty file\)"):
        ClipScorer(clip_model_of(tmp_path / "empty.safetensors", None), tmp_path / "empty.safetensors")


class Pixels(torch.nn.Module):
    """Stands for an open_clip model of 2 x 2 pixels: a picture is its own embedding."""

    visual = SimpleNamespace(image_size=(2, 2))

    def encode_image(self, batch):
        return batch.flatten(1)


def test_the_released_preprocessing_takes_nearest_pixels_without_normalization():
    image = np.repeat(np.arange(16, dtype=np.uint8).reshape(4, 4)[..., None], 3, axis=2)
    encoder = ImageEncoder(Pixels(), lambda picture: torch.zeros(3, 2, 2), "cpu")
    assert torch.equal(encoder.encode([image], apl_compat=True), torch.tensor([[0, 2, 8, 10] * 3]) / 255)
    assert torch.equal(encoder.encode([image]), torch.zeros(1, 12))


@pytest.mark.weights
def test_each_preprocessing_is_labelled_because_the_score_changes(clip, scenes):
    captions, images = scenes[0][:4], scenes[1][:4]
    own, released = (clip.similarity(images, captions, apl_compat=compat) for compat in (False, True))
    assert not torch.allclose(own, released, atol=1e-3)


def test_the_model_is_the_named_one_or_the_config_beside_the_weights_or_the_papers(tmp_path):
    weights = tmp_path / "clip.safetensors"
    assert (clip_model_of(weights, None), clip_model_of(weights, "ViT-B-32")) == ("ViT-g-14", "ViT-B-32")
    weights.with_suffix(".json").touch()
    assert clip_model_of(weights, None) == str(tmp_path / "clip.json")


@pytest.mark.parametrize("name", ["ViT-g-14", "ViT-L-14", "ViT-B-32"])
def test_the_models_of_the_papers_tables_are_known_but_never_downloaded(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="openai.*do not exist.*nothing is downloaded"):
        ClipScorer(name, "openai")
