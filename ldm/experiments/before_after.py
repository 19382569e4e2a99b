"""Images of the same prompts and noise, without and with a prefix (as in the paper's Figures 1 and 3)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from ldm.experiments.variants import BASE, Variant
from ldm.generation import generate
from ldm.images import image_grid
from ldm.models.diffusion.ddpm import LatentDiffusion


class BeforeAfter:
    """Labelled image grid with one column per prompt: the frozen model's image above, the variant's below.

    Args:
        model: the frozen model.
        prompts: label -> prompt.
        sampling: ddim_steps, scale, seed and batch_size for `generate`.
    """

    def __init__(self, model: LatentDiffusion, prompts: Mapping[str, str], **sampling: Any):
        self.model, self.prompts, self.sampling = model, dict(prompts), sampling
        self._before: list[np.ndarray] = []  # generated once: the frozen model never changes

    def grid(self, variant: Variant) -> Image.Image:
        """The grid with the prefix, or the edited weights, in their current state."""
        self._before = self._before or self._generate(BASE)
        labels = ["no prefix", "with prefix"] if variant.manager else ["frozen", "edited"]
        return image_grid([self._before, self._generate(variant)], labels, list(self.prompts))

    def _generate(self, variant: Variant) -> list[np.ndarray]:
        jobs = [(prompt, 0) for prompt in self.prompts.values()]
        with variant.in_place(self.model):
            return [image for _, image in generate(self.model, jobs, embedding_manager=variant.manager, **self.sampling)]
