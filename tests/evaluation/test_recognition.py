"""Rates of recognition: the threshold of a rate of false acceptance, and shares over images and people."""

import numpy as np
import pytest

from ldm.evaluation.recognition import rates, threshold_at
from ldm.util import UserError


def test_the_threshold_admits_the_given_share_of_strangers():
    angles = np.radians([0, 10, 40, 90])  # six pairs, of cosines cos 10, 30, 40, 50, 80 and 90 degrees
    gallery = {str(number): np.array([np.cos(angle), np.sin(angle)], np.float32) for number, angle in enumerate(angles)}
    cosines = np.cos(np.radians([10, 30, 40, 50, 80, 90]))
    for far, accepted in ((0.0, 0), (0.001, 0), (0.17, 1), (0.5, 3)):
        assert (cosines >= threshold_at(far, gallery) + 1e-6).sum() == accepted
        assert (cosines >= threshold_at(far, gallery) - 1e-6).sum() == accepted + 1  # the smallest such threshold
    with pytest.raises(UserError, match="has 1 person"):
        threshold_at(0.1, {"Ada": np.ones(2)})


def test_an_image_without_a_face_counts_as_not_recognized():
    def row(name, cosine, nearest):
        return {"name": name, "face_found": cosine is not None, "cosine": cosine, "nearest": nearest}

    found = rates([row("Ada", 0.5, "Ada"), row("Ada", None, None), row("Ben", 0.3, "Ada"), row("Ben", 0.1, "Ben")], 0.3)
    assert {key: found[key] for key in ("rank1", "accepted", "faces")} == {"rank1": 0.5, "accepted": 0.5, "faces": 0.75}
    assert found["cosine"] == pytest.approx((0.5 + 0.2) / 2)  # over people, of images with a face
    assert found["cosine_low"] == pytest.approx(0.2) and found["cosine_high"] == pytest.approx(0.5)
    nobody = rates([row("Ada", None, None)], 0.3)
    assert (nobody["rank1"], nobody["faces"], nobody["cosine"]) == (0.0, 0.0, None)
