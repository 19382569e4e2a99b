"""Rates of recognition: whether the largest face of an image is that person, among a gallery and against strangers.

Unlike the metrics of ID-ACC, the rates count an image without a face as one that does not show the person.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ldm.evaluation.id_acc import bootstrap_interval
from ldm.evaluation.tables import Row
from ldm.util import UserError


def threshold_at(far: float, gallery: Mapping[str, np.ndarray]) -> float:
    """The smallest cosine that at most a share `far` of the gallery's pairs of different people reach."""
    if len(gallery) < 2:
        raise UserError(f"the gallery has {len(gallery)} person, and a rate of false acceptance needs pairs of people; give a larger one")
    faces = np.stack(list(gallery.values()))
    pairs = np.sort((faces @ faces.T)[np.triu_indices(len(faces), 1)])[::-1]
    return float(np.nextafter(pairs[min(int(far * len(pairs)), len(pairs) - 1)], np.float32(2)))


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
