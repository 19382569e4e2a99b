"""The seeded mixture: sample i depends on (seed, i) and nothing else."""

from collections import Counter

import pytest
import torch

from ldm.apl.look_ahead import Share
from ldm.data.mixture import Mixture, normal


def mixture(**changes) -> Mixture:
    return Mixture(**{"seed": 0, "n_identity": 3, "n_caption": 5, "n_templates": 2, "bins": 50} | changes)


def test_a_sample_is_a_pure_function_of_seed_and_number():
    assert [mixture().sample(i) for i in (7, 3)] == [mixture().sample(i) for i in (7, 3)]
    assert mixture().sample(7) != mixture().sample(8) and mixture().sample(7) != mixture(seed=1).sample(7)


def test_sample_seven_never_changes():
    sample = mixture().sample(7)
    assert (sample.is_identity, sample.item, sample.template, sample.timestep) == (False, 0, 1, 61)


@pytest.mark.parametrize(("batch_size", "world_size"), [(1, 1), (4, 1), (4, 2), (12, 3)])
def test_batch_size_and_devices_share_the_same_samples(batch_size, world_size):
    drawn = [i for step in range(24 // batch_size) for rank in range(world_size)
             for i in Share(batch_size, 1, rank, world_size).numbers(step)]
    assert sorted(drawn) == list(range(24))


def test_both_sets_come_with_their_probability_and_every_item_alike():
    samples = [mixture().sample(i) for i in range(4000)]
    assert sum(sample.is_identity for sample in samples) / 4000 == pytest.approx(0.5, abs=0.03)
    items = Counter(sample.item for sample in samples if sample.is_identity)
    assert all(items[item] / items.total() == pytest.approx(1 / 3, abs=0.04) for item in range(3))


@pytest.mark.parametrize(("mix", "expected"), [(0.0, {False}), (1.0, {True})])
def test_a_set_that_is_not_mixed_in_is_never_drawn(mix, expected):
    assert {mixture(mix=mix).sample(i).is_identity for i in range(50)} == expected


@pytest.mark.parametrize("bins", [1, 7, 50, 1000])
def test_timesteps_fill_the_schedule_evenly(bins):
    timesteps = torch.tensor([mixture(bins=bins).sample(i).timestep for i in range(4000)])
    assert timesteps.min() >= 0 and timesteps.max() < 1000
    assert timesteps.float().mean() == pytest.approx(499.5, abs=15)


def test_noise_is_standard_normal_and_depends_on_its_seed():
    assert torch.equal(normal(5, (4, 2)), normal(5, (4, 2))) and not torch.equal(normal(5, (4, 2)), normal(6, (4, 2)))
