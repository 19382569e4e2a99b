"""Drift: change of the images of prompts without names, which the prefix should preserve (paper sections 3.5 and 4.3).

The metrics are the mean squared change at equal noise, compared with the change by another noise, and the share of images that still
match their prompt.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ldm.evaluation.tables import Row
from ldm.experiments.variants import BASE, Variant
from ldm.generation import generate_shared, warn_of_cut_texts
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.sharing import Devices

Recogniser = Callable[[Sequence[np.ndarray], Sequence[str]], ArrayLike]  # index of the best caption per image


def drift_rows(fabric: Devices, model: LatentDiffusion, prompts: Sequence[str], variants: Sequence[Variant], *, name: str,
               model_name: str, recognise: Recogniser | None = None, **sampling: Any) -> list[Row]:
    """Rows with model, prefix, prompts, mse and recognised, for the base model, the base model with other noise, and each variant.

    The devices share the images; each rank returns all rows.

    Args:
        prompts: distinct prompts, one image each.
        variants: see `load_variants`; `BASE` is always included.
        name: name of the set of prompts in the rows.
        recognise: maps images and captions to the index of the best caption for each image; None leaves `recognised` empty.
        sampling: ddim_steps, scale, seed and batch_size for `generate_shared`.

    Returns:
        mse: mean over prompts and pixels in [-1, 1] of the squared difference from the first row's image;
        recognised: share of images whose own prompt matches best among all `prompts`.
    """
    cases = {"none": (0, BASE), "none, other noise": (1, BASE)} | {variant.file: (0, variant) for variant in variants}
    warn_of_cut_texts(model, prompts, [variant.manager for _, variant in cases.values()], what=f"prompts of '{name}'")
    images = {}
    for label, (sample, variant) in cases.items():
        jobs = [(prompt, sample) for prompt in prompts]
        with variant.in_place(model):
            images[label] = generate_shared(fabric, model, jobs, label=f"{name}, {label}", embedding_manager=variant.manager, **sampling)
    return [{"model": model_name, "prefix": label, "prompts": name, "mse": pixel_mse(generated, images["none"]),
             "recognised": None if recognise is None else recognised(generated, prompts, recognise)}
            for label, generated in images.items()]


def pixel_mse(images: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """Mean squared difference of two lists of (H, W, 3) uint8 images with pixels scaled to [-1, 1]; 0 .. 4."""
    return float(np.mean([np.square((image.astype(np.float32) - other) / 127.5).mean()
                          for image, other in zip(images, others, strict=True)]))


def recognised(images: Sequence[np.ndarray], prompts: Sequence[str], recognise: Recogniser) -> float:
    """Share of images, one per prompt, for which the recognizer selects their own prompt among all."""
    return float(np.mean(np.asarray(recognise(images, prompts)) == np.arange(len(prompts))))
