"""Rates of recognition: whether the largest face of an image is that person, among a gallery and against strangers.

Unlike the metrics of ID-ACC, the rates count an image without a face as one that does not show the person.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ldm.evaluation.id_acc import RESAMPLES, bootstrap_interval
from ldm.evaluation.tables import Row
from ldm.util import UserError


def threshold_at(far: float, gallery: Mapping[str, np.ndarray]) -> float:
    """The smallest cosine that at most a share `far` of the gallery's pairs of different people reach."""
    if len(gallery) < 2:
        raise UserError(f"the gallery has {len(gallery)} person, and a rate of false acceptance needs pairs of people; give a larger one")
    faces = np.stack(list(gallery.values()))
    pairs = np.sort((faces @ faces.T)[np.triu_indices(len(faces), 1)])[::-1]
    return float(np.nextafter(pairs[min(int(far * len(pairs)), len(pairs) - 1)], np.float32(2)))


def share_of(scores: Sequence[Row], base: Sequence[Row]) -> Row:
    """ID-ACC of `scores` divided by that of `base`, the mean cosine of images with a face, from rows of `image_scores` of the same people.

    Returns:
        value, low, high: with its 95 % bootstrap interval over people; None if nobody has a face in both.
    """
    means = [{name: np.mean(cosines) for name, cosines in _cosines(rows).items()} for rows in (scores, base)]
    pairs = np.array([[of[name] for of in means] for name in means[1] if name in means[0]]).reshape(-1, 2)  # (people, 2)
    if not len(pairs):
        return dict.fromkeys(("value", "low", "high"))
    chosen = pairs[np.random.default_rng(0).integers(len(pairs), size=(RESAMPLES, len(pairs)))].mean(1)
    low, high = np.quantile(chosen[:, 0] / chosen[:, 1], [0.025, 0.975])
    mine, its = pairs.mean(0)
    return {"value": float(mine / its), "low": float(low), "high": float(high)}


def _cosines(rows: Sequence[Row]) -> dict[str, list[float]]:
    """Cosines of the images with a face, by person."""
    people: dict[str, list[float]] = {}
    for row in rows:
        if row["cosine"] is not None:
            people.setdefault(row["name"], []).append(row["cosine"])
    return people


def rates(scores: Sequence[Row], threshold: float) -> Row:
    """Shares over all images, from rows of `image_scores`, then over people.

    Returns:
        rank1: the nearest face of the gallery is that person; accepted: the cosine to that person reaches `threshold`; faces: a face is
        detected; cosine: mean over images with a face; each with its 95 % bootstrap interval over people, as <name>_low and <name>_high.
    """
    measures = {"rank1": lambda row: float(row["nearest"] == row["name"]),
                "accepted": lambda row: float(row["cosine"] is not None and row["cosine"] >= threshold),
                "faces": lambda row: float(row["face_found"]), "cosine": lambda row: row["cosine"]}
    found: Row = {}
    for key, measure in measures.items():
        people: dict[str, list[float]] = {}
        for row in scores:
            if (value := measure(row)) is not None:
                people.setdefault(row["name"], []).append(value)
        means = [float(np.mean(values)) for values in people.values()]
        low, high = bootstrap_interval(means, seed=0)
        found |= {key: float(np.mean(means)) if means else None, f"{key}_low": low, f"{key}_high": high}
    return found
