"""FID and KID: closed forms, clean-fid's numbers on the same features, and the right direction."""

import numpy as np
import pytest

from ldm.evaluation import fid
from ldm.evaluation.fid import frechet_distance, kernel_distance

SQUARE = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]], np.float32)  # mean 0, covariance 4/3 of the identity


@pytest.fixture(scope="module")
def sets():
    random = np.random.default_rng(0)
    return random.standard_normal((150, 8)).astype(np.float32), (random.standard_normal((150, 8)) * 1.5 + 0.3).astype(np.float32)


@pytest.mark.parametrize(("features", "expected"), [
    (SQUARE, 0), (SQUARE + [3, 4], 25),                # |m - m'|^2 = 3^2 + 4^2
    (2 * SQUARE, 2 * 4 / 3), (4 * SQUARE, 2 * 9 * 4 / 3),   # two directions, (s - s')^2 each
    (2 * SQUARE + [3, 4], 25 + 2 * 4 / 3), (SQUARE * [1, 3], 4 * 4 / 3)])
def test_fid_of_gaussians_is_the_closed_form(features, expected):
    assert frechet_distance(features.astype(np.float32), SQUARE) == pytest.approx(expected, abs=1e-6)


def test_fid_is_clean_fids_on_the_same_features(sets):
    from cleanfid.fid import frechet_distance as theirs

    moments = [moment for features in sets for moment in (features.mean(0), np.cov(features, rowvar=False))]
    assert frechet_distance(*sets) == pytest.approx(float(theirs(*moments)), rel=1e-5)


def test_kid_is_clean_fids_on_the_same_features(sets):
    from cleanfid.fid import kernel_distance as theirs

    assert kernel_distance(*sets) == pytest.approx(theirs(sets[1], sets[0], num_subsets=1), rel=1e-4)


def test_kid_of_single_points_is_the_kernels():
    ones, zeros = np.ones((2, 1), np.float32), np.zeros((2, 1), np.float32)
    assert kernel_distance(ones, zeros) == 8 + 1 - 2 * 1  # (1 + 1)^3 and 1 within, 1 between


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_a_copy_is_nearer_than_a_blurred_copy_and_that_nearer_than_noise(sets, distance):
    base = sets[0]
    random = np.random.default_rng(1)
    near, far = (base + random.standard_normal(base.shape).astype(np.float32) * size for size in (0.3, 3))
    assert distance(base, base) < distance(near, base) < distance(far, base)


def test_fid_does_not_depend_on_the_blocks_it_is_summed_in(sets, monkeypatch):
    whole = frechet_distance(*sets)
    monkeypatch.setattr(fid, "BLOCK", 7)
    assert frechet_distance(*sets) == pytest.approx(whole, rel=1e-9)


def test_kid_of_large_sets_is_a_mean_over_seeded_subsets(sets, monkeypatch):
    whole = kernel_distance(*sets)
    monkeypatch.setattr(fid, "BLOCK", 75)
    assert kernel_distance(*sets) == kernel_distance(*sets) != kernel_distance(*sets, seed=1)
    assert kernel_distance(*sets) == pytest.approx(whole, rel=0.1)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_one_picture_has_no_distance(distance):
    assert distance(SQUARE[:1], SQUARE) is None
