"""Attributes kept: a known answer, and the right direction."""

import numpy as np
import pytest

from ldm.evaluation.attributes import attributes_kept

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
