"""Intervals over trainings and people against known answers, and what pairing takes away."""

import numpy as np
import pytest
from scipy.stats import t

from ldm.paper.results.bootstrap import bootstrap, interval


def half(means):
    low, high = interval(means)
    return (high - low) / 2


def made_up(seed, trainings, people, *, of_people=1.0, of_trainings=0.0, common=None):
    """Values (trainings, people) with these deviations around 0; `common` are the people's own."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=people) if common is None else common
    return of_people * common + of_trainings * rng.normal(size=(trainings, 1)) + 0.2 * rng.normal(size=(trainings, people))


def test_the_first_is_the_mean_over_trainings_of_the_means_over_people():
    assert bootstrap(np.array([[1, 2, 3], [4, np.nan, 6]]), "S_test")[0] == pytest.approx((2 + 5) / 2)


def test_one_training_has_the_bootstrap_over_people():
    values = np.random.default_rng(1).normal(size=(1, 100))
    expected = 1.96 * values.std() / 10  # the mean of 100 people is nearly normal
    assert half(bootstrap(values, "S_test")) == pytest.approx(expected, rel=0.06)
    assert half(bootstrap(np.repeat(values, 3, axis=0), "S_test")) == pytest.approx(expected, rel=0.06)  # more trainings add no people


@pytest.mark.parametrize("trainings", [3, 5, 8])
def test_a_metric_of_whole_sets_has_students_interval_over_trainings(trainings):
    """The mean over many samples of the ratio to Student's half-width."""
    rng = np.random.default_rng(trainings)
    ratios = []
    for _ in range(100):
        values = rng.normal(size=(trainings, 1))
        ratios.append(half(bootstrap(values, "prompts")) / (t.ppf(0.975, trainings - 1) * values.std(ddof=1) / trainings ** 0.5))
    assert np.mean(ratios) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("people", "of_trainings"), [(1, 1.0), (50, 0.0), (50, 0.3)])
def test_the_interval_of_three_trainings_covers_the_mean_in_about_95_percent_of_cases(people, of_trainings):
    ends = [interval(bootstrap(made_up(seed, 3, people, of_people=float(people > 1), of_trainings=of_trainings), "S_test"))
            for seed in range(150)]
    assert 0.89 <= np.mean([low <= 0 <= high for low, high in ends]) <= 1


def test_a_difference_of_rows_with_the_same_people_is_paired():
    common = np.random.default_rng(0).normal(size=100)
    left, right = made_up(1, 3, 100, common=common) - 0.2, made_up(2, 3, 100, common=common)
    paired = bootstrap(left, "S_test") - bootstrap(right, "S_test")
    unpaired = bootstrap(left, "S_test") - bootstrap(right, "S_ID")
    assert paired[0] == pytest.approx((left - right).mean(), abs=1e-5) == pytest.approx(unpaired[0], abs=1e-5)
    assert interval(paired)[1] < 0 and half(paired) < half(unpaired) / 2


def test_trainings_of_the_same_seeds_are_paired():
    seeds = np.random.default_rng(0).normal(size=(5, 1))
    assert half(bootstrap(seeds - 1, "prompts") - bootstrap(seeds, "prompts")) < 1e-5
    assert half(bootstrap(seeds - 1, "prompts") - bootstrap(seeds[:4], "prompts")) > 0.5  # another number of trainings


def test_the_better_training_is_found_the_more_surely_the_more_trainings():
    widths = [np.mean([half(bootstrap(made_up(seed, trainings, 100, of_people=0, of_trainings=1), "S_ID")) for seed in range(20)])
              for trainings in (2, 3, 5, 10)]
    assert widths == sorted(widths, reverse=True)


def test_a_training_without_a_face_is_left_out():
    values = np.array([[1.0, 2, 3], [np.nan] * 3, [2, 3, 4]])
    means = bootstrap(values, "S_test")
    assert means[0] == 2.5 and half(means) > 1
    assert half(bootstrap(values[:2], "S_test")) == pytest.approx(half(bootstrap(values[:1], "S_test")))
