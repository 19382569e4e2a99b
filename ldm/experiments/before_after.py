"""Pictures of the same prompts with the same noise, without and with a prefix (as the paper's Figures 1 and 3)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from ldm.experiments.identity import Prefix
from ldm.generation import generate
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.pictures import picture_grid


class BeforeAfter:
    """A labelled grid: one column a prompt, the frozen model's image above, the prefix's below.

    Args:
        prompts: prompt by its label.
        drawing: ddim_steps, scale, seed and batch_size for `generate`.
    """

    def __init__(self, model: LatentDiffusion, prompts: Mapping[str, str], **drawing: Any):
        self.model, self.prompts, self.drawing = model, dict(prompts), drawing
        self._before: list[np.ndarray] = []  # drawn once, for the frozen model never changes

    def grid(self, prefix: Prefix) -> Image.Image:
        """The grid with the prefix, or the edited weights, as they are now."""
        self._before = self._before or self._draw(Prefix())
        labels = ["no prefix", "with prefix"] if prefix.manager else ["frozen", "edited"]
        return picture_grid([self._before, self._draw(prefix)], labels, list(self.prompts))

    def _draw(self, prefix: Prefix) -> list[np.ndarray]:
        jobs = [(prompt, 0) for prompt in self.prompts.values()]
        with prefix.in_place(self.model):
            return [image for _, image in generate(self.model, jobs, embedding_manager=prefix.manager, **self.drawing)]
