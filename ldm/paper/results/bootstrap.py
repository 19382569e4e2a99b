"""Hierarchical bootstrap over trainings and people, for the interval of a metric and of paired differences between rows of a table."""

import zlib
from functools import lru_cache

import numpy as np
from scipy.special import ndtri, stdtrit

from ldm.evaluation.id_acc import RESAMPLES

ENDS = (0.025, 0.975)  # of a 95 % interval


def bootstrap(values: np.ndarray, people: str) -> np.ndarray:
    """Mean of a metric over trainings and people, then the means of RESAMPLES resamples, (1 + RESAMPLES,).

    All trainings are measured on the same people, so both are resampled with replacement, independently of each other (Owen, "The
    pigeonhole bootstrap", 2007). The deviations of S trainings are multiplied by t(S - 1) / z sqrt(S / (S - 1)), without which an interval
    of three trainings covers the mean in 73 % of cases (Hesterberg, "What teachers should know about the bootstrap", 2015). One training is
    not resampled. A resample depends only on `people` and the numbers of people and trainings. So results can be added, subtracted and
    divided: for rows with the same people, or as many trainings, the resamples are paired, and what the rows have in common cancels.

    Args:
        values: (S, people), NaN for a person without a value. A metric of a whole set of images, such as FID, has one column.
        people: name of the people, or prompts, such as "S_test".
    """
    known = ~np.isnan(values)
    counts = _counts(values.shape[1], people)  # (1 + RESAMPLES, people)
    with np.errstate(invalid="ignore"):  # 0 / 0, where nobody of a resample has a value
        means = (counts @ np.where(known, values, 0).T.astype(np.float32)) / (counts @ known.T.astype(np.float32))  # (1 + RESAMPLES, S)
        center, resampled = _mean(means, np.ones_like(means)), _mean(means, _counts(len(values), "trainings"))
    trainings = int(known.any(axis=1).sum())
    if trainings < 2:
        return center
    return center + stdtrit(trainings - 1, ENDS[1]) / ndtri(ENDS[1]) * (trainings / (trainings - 1)) ** 0.5 * (resampled - center)


def interval(means: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of what was computed from results of `bootstrap`."""
    low, high = np.nanquantile(means[1:], ENDS)
    return float(low), float(high)


def _mean(means: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted means of rows (1 + RESAMPLES, S) over what is not NaN."""
    known = ~np.isnan(means)
    return (np.where(known, means, 0) * weights).sum(axis=1, dtype=np.float64) / (known * weights).sum(axis=1)


@lru_cache(maxsize=8)
def _counts(count: int, name: str) -> np.ndarray:
    """How often each of `count` is in each resample, (1 + RESAMPLES, count); first, each once."""
    counts = np.random.default_rng([zlib.crc32(name.encode()), count]).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return np.vstack([np.ones(count), counts]).astype(np.float32)
