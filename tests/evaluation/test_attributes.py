"""Attributes kept: a known answer, the right direction, faces alone, and FaRL's weights in open_clip's network."""

import json
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch

from ldm.evaluation import attributes
from ldm.evaluation.attributes import FARL_MODEL, AttributeEncoder, FaRL, attributes_kept, attributes_of_people
from ldm.util import UserError

TINY = {"embed_dim": 8, "quick_gelu": True, "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}}
EAST, NORTH = np.array([1.0, 0.0]), np.array([0.0, 1.0])


def test_own_pictures_against_those_of_others():
    base = np.stack([[EAST, EAST], [NORTH, NORTH]])  # two people, two samples each
    assert attributes_kept(base, base) == (1.0, 0.0)
    assert attributes_kept(base[::-1], base) == (0.0, 1.0)  # everybody drawn as somebody else


def test_pictures_of_the_same_noise_are_not_compared():
    base = np.stack([[EAST, NORTH], [EAST, NORTH]])  # the first sample always east, whoever it shows
    assert attributes_kept(base, base) == (0.0, 0.0)


def test_half_way():
    base = np.stack([[EAST, EAST], [NORTH, NORTH]])
    between = np.broadcast_to((EAST + NORTH) / np.sqrt(2), (2, 2, 2))
    assert attributes_kept(between, base) == pytest.approx((0.5 ** 0.5, 0.5 ** 0.5))


def test_a_picture_without_a_face_enters_no_mean():
    base = np.stack([[EAST, EAST], [NORTH, NORTH]])
    faceless = base.copy()
    faceless[0, 0] = np.nan
    assert attributes_kept(faceless, base) == (1.0, 0.0)
    assert attributes_kept(np.full_like(base, np.nan), base) == (None, None)


def test_each_person_has_a_value_of_their_own():
    base = np.stack([[EAST, EAST], [NORTH, NORTH], [EAST, EAST]])
    shown = np.stack([[EAST, EAST], [EAST, EAST], np.full((2, 2), np.nan)])
    assert attributes_of_people(shown, base) == [1.0, 0.0, None] and attributes_kept(shown, base)[0] == 0.5


def test_one_sample_or_one_person_leaves_nothing_to_compare():
    assert attributes_kept(EAST[None, None], EAST[None, None]) == (None, None)
    assert attributes_kept(np.stack([[EAST, EAST]]), np.stack([[EAST, EAST]])) == (1.0, None)


def mean_colour(images):
    """Stands for an image encoder's features: red, green, blue, between 0 and 1."""
    return torch.tensor(np.stack([image.mean((0, 1)) / 255 for image in images]), dtype=torch.float32)


@pytest.mark.parametrize(("on_face", "blue"), [(True, 0.0), (False, 0.75)])
def test_features_are_of_the_aligned_face_or_of_the_whole_picture(on_face, blue):
    image = np.zeros((400, 400, 3), np.uint8)
    image[..., 2] = 255
    image[100:300, 100:300] = (255, 0, 0)  # a red face on blue
    template = np.array([[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]])  # ArcFace's, of 112 pixels
    encoder = AttributeEncoder(SimpleNamespace(image_features=mean_colour), on_face=on_face)
    features = encoder([image, image], [SimpleNamespace(landmarks=template + 144), None])
    assert features[0].tolist() == pytest.approx([1 - blue, 0, blue], abs=0.01) and np.isnan(features[1]).all()


@pytest.fixture
def farl(tmp_path, monkeypatch):
    """A tiny network in FaRL's place, and its weights as FaRL's release has them: under state_dict, with a head beside CLIP's."""
    (tmp_path / "tiny-farl.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path / "tiny-farl.json")
    monkeypatch.setattr(attributes, "FARL_MODEL", "tiny-farl")
    network = open_clip.CLIP(**open_clip.get_model_config("tiny-farl")).eval()
    torch.save({"state_dict": network.state_dict() | {"vis_token_decoder.weight": torch.zeros(3)}}, tmp_path / "farl.pth")
    return network, tmp_path / "farl.pth"


def test_farls_features_are_those_of_its_clip(farl):
    network, path = farl
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    with torch.no_grad():
        expected = network.encode_image(((torch.from_numpy(image).permute(2, 0, 1) / 255 - mean) / std)[None], normalize=True)
    torch.testing.assert_close(FaRL(path).image_features([image]), expected)


def test_a_file_without_farls_image_encoder_is_refused(farl, tmp_path):
    state = {key: value for key, value in farl[0].state_dict().items() if not key.startswith("visual.")}
    torch.save({"state_dict": state}, tmp_path / "text.pth")
    (tmp_path / "page.pth").write_text("<html>")
    for name, words in (("text", "lacks .* of FaRL's image encoder"), ("page", "is an HTML page"), ("none", "do not exist")):
        with pytest.raises(UserError, match=f"{name}.pth.*{words}"):
            FaRL(tmp_path / f"{name}.pth")


def test_farls_network_has_the_302_tensors_of_openais_vit_b_16():
    with torch.device("meta"):
        network = open_clip.CLIP(**open_clip.get_model_config(FARL_MODEL))
    assert len(network.state_dict()) == 302 and network.state_dict()["visual.proj"].shape == (768, 512)
