"""Drift: nothing for the model itself, more for other noise, and a recogniser that is asked the right question."""

import numpy as np
import pytest

from ldm.apl.prefix import build_prefix
from ldm.experiments.drift import drift_rows, pixel_mse, recognised
from ldm.experiments.training_report import BeforeAfter
from ldm.experiments.variants import Variant
from ldm.sharing import OneDevice

DRAWING = {"ddim_steps": 2, "scale": 2.0, "seed": 0, "batch_size": 2}
BLACK, WHITE = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)


@pytest.mark.parametrize(("images", "expected"), [([BLACK, WHITE], 0.0), ([WHITE, WHITE], 2.0), ([WHITE, BLACK], 4.0)])
def test_pixel_mse_is_measured_between_minus_one_and_one(images, expected):
    assert pixel_mse(images, [BLACK, WHITE]) == pytest.approx(expected)


@pytest.mark.parametrize(("answer", "expected"), [([0, 1], 1.0), ([0, 0], 0.5), ([1, 0], 0.0)])
def test_recognised_is_the_share_of_images_that_show_their_own_prompt(answer, expected):
    assert recognised([BLACK, WHITE], ["night", "snow"], lambda images, captions: answer) == expected


def test_rows_compare_the_prefix_with_other_noise(tiny_model):
    prefix = build_prefix(tiny_model, num_vectors=2)
    rows = drift_rows(OneDevice(), tiny_model, ["a car", "a boat"], [Variant("apl", "apl.pt", manager=prefix)], name="scenes",
                      model_name="tiny", recognise=lambda images, captions: [0, 1], **DRAWING)
    assert [(row["model"], row["prefix"], row["prompts"], row["recognised"]) for row in rows] == [
        ("tiny", "none", "scenes", 1.0), ("tiny", "none, other noise", "scenes", 1.0), ("tiny", "apl.pt", "scenes", 1.0)]
    assert rows[0]["mse"] == 0 and rows[1]["mse"] > rows[2]["mse"] > 0


def test_the_frozen_model_is_drawn_once_for_all_grids(tiny_model, monkeypatch):
    drawn = []
    before_after = BeforeAfter(tiny_model, {"Ada (train)": "Ada", "a car": "a car"}, **DRAWING)
    monkeypatch.setattr(BeforeAfter, "_generate", lambda self, prefix: drawn.append(prefix) or [BLACK, WHITE])
    prefix = Variant(manager=object())
    assert before_after.grid(prefix).size == before_after.grid(prefix).size
    assert drawn == [Variant(), prefix, prefix]
