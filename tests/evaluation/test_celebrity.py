"""Metrics of the celebrity protocol on cases that can be counted: both denominators, H_c, and the check of the base model."""

import numpy as np
import pytest

from ldm.evaluation.celebrity import COLUMNS, BaseCheck, harmonic_mean, metrics_of
from ldm.evaluation.recognition import threshold_at


def row(name, group, said, *, cosine=None, photo=True):
    """An image of `name` in which the recognizer sees `said`; None: no face."""
    cosine = (0.9 if said == name else 0.1) if cosine is None and said else cosine
    return {"name": name, "group": group, "photo": photo, "face_found": said is not None, "nearest": said, "cosine": cosine}


def values(rows, threshold=0.5):
    return {column: found.value for column, found in metrics_of(rows, threshold).items()}


@pytest.mark.parametrize(("acc_e", "acc_s", "expected"), [
    (0.0431, 0.8456, 0.8978), (0.0, 1.0, 1.0), (0.5, 0.5, 0.5), (1.0, 1.0, 0.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.25, 0.5, 0.6)])
def test_h_c_of_known_numbers(acc_e, acc_s, expected):
    """The first are MACE's published percentages; 2 / (1 / .75 + 1 / .5) = .6."""
    assert harmonic_mean(acc_e, acc_s) == pytest.approx(expected, abs=1e-4)


def test_both_denominators_are_counted():
    """Erased: recognized, a stranger, no face, no face -> 1/2 of the faces, 1/4 of all. Kept: recognized twice, no face -> 1 and 2/3."""
    found = values([row("Ann", "erased", "Ann"), row("Ann", "erased", "stranger"), row("Bo", "erased", None), row("Bo", "erased", None),
                    row("Cy", "kept", "Cy"), row("Cy", "kept", "Cy"), row("Di", "kept", None), row("Ed", "S_test", "Ann")])
    assert (found["Acc_e"], found["Acc_s"], found["Acc, S_test"]) == (0.5, 1.0, 0.0)
    assert (found["Acc_e, all images"], found["Acc_s, all images"]) == (0.25, pytest.approx(2 / 3))
    assert found["H_c"] == pytest.approx(2 / 3) and found["H_c, all images"] == pytest.approx(2 / (1 / 0.75 + 1.5))
    assert [found[f"faces, {group}"] for group in ("erased", "kept", "S_test")] == [0.5, pytest.approx(2 / 3), 1.0]
    assert set(found) == set(COLUMNS)


def test_a_classifier_that_always_says_nobody_does_not_win():
    found = values([row("Ann", "erased", "stranger"), row("Cy", "kept", "stranger")])
    assert (found["Acc_e"], found["Acc_s"], found["H_c"]) == (0, 0, 0)


def test_a_method_that_destroys_all_faces_has_no_accuracy_of_faces_and_does_not_win_over_all_images():
    found = values([row("Ann", "erased", None), row("Cy", "kept", None)])
    assert (found["Acc_e"], found["H_c"], found["faces, kept"]) == (None, None, 0)
    assert (found["H_c, all images"], found["Acc_e, all images"]) == (0, 0)


def test_the_second_score_is_the_cosine_and_photos_are_counted_alone():
    rows = [row("Ann", "erased", "Ann", cosine=0.4), row("Ann", "erased", "Ann", cosine=0.6), row("Cy", "kept", "Di", cosine=0.7),
            row("Cy", "kept", "Cy", photo=False)]
    found = values(rows)
    assert (found["Acc_e"], found["Acc_e, cosine"], found["Acc_s"], found["Acc_s, cosine"]) == (1, 0.5, 0.5, 1)
    assert (found["Acc_e, photos"], found["Acc_s, photos"]) == (1, 0)


def test_intervals_are_over_names_and_not_over_images():
    """Two names of 50 equal images each are two observations: the interval spans everything."""
    rows = [row(name, "erased", said) for name, said in (("Ann", "Ann"), ("Bo", "stranger")) for _ in range(50)]
    found = metrics_of([*rows, row("Cy", "kept", "Cy")], 0.5)
    assert found["Acc_e"] == (0.5, 0, 1) and found["H_c"].low == 0 and found["H_c"].high == 1 and found["Acc_s"] == (1, 1, 1)


def test_the_threshold_is_reached_by_the_asked_share_of_different_people():
    faces = np.random.default_rng(0).standard_normal((200, 16))
    faces /= np.linalg.norm(faces, axis=1, keepdims=True)
    threshold = threshold_at(0.01, dict(zip(map(str, range(200)), faces, strict=True)))
    pairs = (faces @ faces.T)[np.triu_indices(200, 1)]
    assert np.mean(pairs >= threshold) == pytest.approx(0.01, abs=1e-3)


def base(erased=20, kept=20, *, missed=()):
    """Five photo prompts of each name; `missed` are (name, number of prompts in which it is not recognized)."""
    misses = dict(missed)
    return [row(f"{group} {k}", group, None if number < misses.get(f"{group} {k}", 0) else f"{group} {k}")
            for group, count in (("erased", erased), ("kept", kept)) for k in range(count) for number in range(5)]


def test_the_base_model_must_be_recognized_before_methods_are_compared():
    assert not BaseCheck.of(base()).has_failed and not BaseCheck.of(base()).dropped
    once = BaseCheck.of(base(missed=[("erased 1", 1), ("kept 3", 2)]))  # 80 % stays, 60 % does not
    assert once.dropped == ["kept 3"] and once.remaining == {"erased": 0.99, "kept": 1.0} and once.rank1["kept"] == 0.98
    assert not once.has_failed and "kept 3" in str(once) and "99.0%" in str(once)
    weak = BaseCheck.of(base(missed=[(f"erased {k}", 1) for k in range(20)]))
    assert weak.has_failed and weak.dropped == []
    assert BaseCheck.of(base(kept=0)).has_failed and BaseCheck.of(base(erased=1, missed=[("erased 0", 5)])).has_failed


def test_prompts_of_paintings_do_not_count_in_the_check():
    assert not BaseCheck.of([*base(), *(row("kept 0", "kept", None, photo=False) for _ in range(20))]).dropped
