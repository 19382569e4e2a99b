"""Rows of Table 2 from measurements: hand-made scores with known numbers, faces that are missing, and what scorers pass on."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ldm.evaluation.quality import IdentityScorer, PromptScorer, by_person, identity_row, prompt_row
from ldm.util import UserError

ADA, BEN = np.eye(2, 512, dtype=np.float32)
GALLERY = {"Ada": ADA, "Ben": BEN}
NAMES = ["Ada", "Ben", "Ada", "Ben"]
DARK, LIGHT = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)


def brightness(images):
    return np.stack([image.mean((0, 1)) for image in images]).astype(np.float32)


def identity_scores(faces, attributes):
    return {"fid": np.arange(8, dtype=np.float32).reshape(4, 2), "face": np.stack(faces), "attributes": np.array(attributes, np.float32)}


def test_the_clip_score_is_a_mean_cosine_and_a_hundred_times_it():
    scores = {"fid": np.eye(2, dtype=np.float32), "clip": np.array([0.2, 0.4], np.float32)}
    row = prompt_row(scores, None)
    assert row == pytest.approx({"n_images": 2, "clip": 0.3, "clip_x100": 30, "clip_low": 0.2, "clip_high": 0.4})  # both are one of the two
    row = prompt_row(scores | {"fid": scores["fid"] + [3, 4]}, scores)
    assert row["fid"] == pytest.approx(25) and (row["n_images"], row["n_base"]) == (2, 2) and row["kid"] is not None


def test_the_interval_of_the_clip_score_is_narrower_the_more_prompts_there_are():
    def width(count: int) -> float:
        row = prompt_row({"fid": np.zeros((count, 1)), "clip": np.tile([0.2, 0.4], count // 2)}, None)
        assert row["clip_low"] < row["clip"] < row["clip_high"]
        return row["clip_high"] - row["clip_low"]

    assert width(100) == pytest.approx(2 * 1.96 * 0.1 / 10, rel=0.1) and width(1000) < width(100) / 2


def test_without_a_clip_model_there_is_no_clip_score():
    scores = PromptScorer(brightness)([DARK, LIGHT], ["night", "snow"])
    assert scores["fid"].tolist() == [[0] * 3, [255] * 3] and prompt_row(scores, None)["clip"] is None
    assert "clip_low" not in prompt_row(scores, None)


def test_an_image_without_a_prompt_leaves_the_clip_score_to_the_others():
    clip = SimpleNamespace(similarity=lambda images, texts, **_: torch.tensor([float(text) for text in texts]))
    scores = PromptScorer(brightness, clip)([DARK, LIGHT, LIGHT], ["0.2", None, "0.4"])
    row = prompt_row(scores, None)
    assert row["clip"] == pytest.approx(0.3) and (row["n_clip"], row["n_images"]) == (2, 3)
    assert "n_clip" not in prompt_row(PromptScorer(brightness, clip)([DARK], ["0.2"]), None)


def test_faces_in_pictures_of_prompts_are_counted_where_they_are_looked_for():
    analyzer = SimpleNamespace(analyze=lambda image: SimpleNamespace(embedding=ADA) if image.any() else None)
    scores = PromptScorer(brightness, None, analyzer)([DARK, LIGHT, LIGHT, LIGHT], ["night", "snow", "fog", "ice"])
    assert scores["face_found"].tolist() == [0, 1, 1, 1] and prompt_row(scores, None)["detection_rate"] == 0.75
    assert "detection_rate" not in prompt_row(PromptScorer(brightness)([DARK, LIGHT], ["night", "snow"]), None)


def test_each_picture_is_compared_with_its_own_prompt():
    clip = SimpleNamespace(similarity=lambda images, texts, apl_compat: torch.tensor([len(text) / 10 + apl_compat for text in texts]))
    assert PromptScorer(brightness, clip)([DARK, LIGHT], ["a", "to"])["clip"].tolist() == pytest.approx([0.1, 0.2])
    assert PromptScorer(brightness, clip, apl_compat=True)([DARK], ["a"])["clip"].tolist() == pytest.approx([1.1])


def test_a_picture_without_a_face_has_no_embedding_and_no_attributes():
    analyzer = SimpleNamespace(analyze=lambda image: SimpleNamespace(embedding=ADA) if image.any() else None)
    seen = []
    scorer = IdentityScorer(brightness, analyzer, lambda images, faces: seen.extend(faces) or np.zeros((2, 5), np.float32))
    scores = scorer([DARK, LIGHT], ["Ada", "Ada"])
    assert np.isnan(scores["face"][0]).all() and scores["face"][1].tolist() == ADA.tolist()
    assert seen[0] is None and scores["attributes"].shape == (2, 5)


def test_a_face_pack_of_another_width_is_refused():
    analyzer = SimpleNamespace(analyze=lambda image: SimpleNamespace(embedding=np.ones(128, np.float32)))
    with pytest.raises(UserError, match="face pack"):
        IdentityScorer(brightness, analyzer)([LIGHT], ["Ada"])


def test_identity_accuracy_and_attributes_of_the_people_themselves():
    base = identity_scores([ADA, BEN, ADA, BEN], [[1, 0], [0, 1], [1, 0], [0, 1]])
    row = identity_row(base, None, NAMES, GALLERY, 0.3)
    assert (row["id_acc_mean"], row["rank1"], row["attr_acc"], row["attr_random"], row["n_images"]) == (1, 1, 1, 0, 4)
    assert "fid" not in row
    swapped = identity_scores([BEN, ADA, BEN, ADA], [[0, 1], [1, 0], [0, 1], [1, 0]])
    row = identity_row(swapped, base, NAMES, GALLERY, 0.3)
    assert (row["id_acc_mean"], row["rank1"], row["attr_acc"], row["attr_random"]) == (0, 0, 0, 1)
    assert row["fid"] == pytest.approx(0) and row["n_base"] == 4


def test_a_missing_face_lowers_the_detection_rate_and_enters_no_mean():
    nobody = np.full(512, np.nan, np.float32)
    base = identity_scores([ADA, BEN, ADA, BEN], [[1, 0], [0, 1], [1, 0], [0, 1]])
    row = identity_row(identity_scores([nobody, BEN, ADA, BEN], [[np.nan] * 2, [0, 1], [1, 0], [0, 1]]), base, NAMES, GALLERY, 0.3)
    assert (row["id_acc_mean"], row["detection_rate"], row["attr_acc"], row["n_images"]) == (1, 0.75, 1, 4)


def test_people_with_fewer_pictures_are_filled_up_with_nothing():
    table = by_person(np.array([[1.0], [2.0], [3.0]]), ["Ada", "Ben", "Ada"])
    np.testing.assert_array_equal(table, [[[1], [3]], [[2], [np.nan]]])
