"""Attr-ACC: whether a picture keeps the attributes of the person whom its prompt names (paper section 4.1)."""

import numpy as np


def attributes_kept(features: np.ndarray, base: np.ndarray) -> tuple[float, float]:
    """Mean cosine of attribute features with the base model's pictures of the same person, and of somebody else.

    The second number is what drawing a random person would give. Pictures from the same noise are not compared with each
    other: they share background and pose whoever is in them.

    Args:
        features: (people, samples, D) of unit length, samples >= 2.
        base: the same people and samples, drawn by the base model.
    """
    people, samples, _ = features.shape
    cosines = np.einsum("nid,mjd->nmij", features, base)                                   # (people, people, samples, samples)
    other_noise = ~np.eye(samples, dtype=bool)
    same_person = np.eye(people, dtype=bool)
    return float(cosines[same_person][:, other_noise].mean()), float(cosines[~same_person][:, other_noise].mean())
