"""Pipeline that generates and scores images for Table 1, both halves of Table 2, Figure 5 and the final table of train.py.

A shot identifies an image by its prompt and sample number, which determine its noise, and by its file. Existing images are read, missing
ones are generated. A batch with a missing image is generated completely, so that a resumed run gives the same bytes: the last bit of an
image can depend on its batch.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from ldm.evaluation.quality import Scorer, Scores, joined
from ldm.experiments.variants import ImageSettings, Variant
from ldm.generation import batches_of, generate
from ldm.images import ImageWriter, read_image
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.sharing import Devices, gather, share

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shot:
    """An image to generate."""

    prompt: str  # without the placeholder
    sample: int  # sample number, see `image_noise`
    text: str    # name or prompt with which the image is scored
    path: Path


@dataclass(frozen=True)
class Pipeline:
    """Generates and scores images of one frozen model."""

    fabric: Devices  # share the work of `scores`; the other methods work on this rank only
    model: LatentDiffusion
    settings: ImageSettings
    batch_size: int

    def scores(self, variant: Variant, shots: Sequence[Shot], scorer: Scorer, label: str) -> Scores:
        """Scores of all shots, in order, on every rank; missing images are generated and written."""
        mine = share(self.fabric, lambda: batches_of(shots, self.batch_size))
        missing = any(not shot.path.exists() for batch in mine for shot in batch)
        with (variant.in_place(self.model) if missing else nullcontext(), ImageWriter() as writer,
              tqdm(total=sum(map(len, mine)), desc=label, unit="image", disable=not self.fabric.is_global_zero) as bar):
            parts = [scorer(self.images(variant, batch, writer, bar), [shot.text for shot in batch]) for batch in mine]
        self.fabric.barrier()
        return joined(gather(self.fabric, parts))

    def images(self, variant: Variant, shots: Sequence[Shot], writer: ImageWriter, bar: tqdm) -> list[np.ndarray]:
        """Images of the shots, (H, W, 3) uint8 RGB, in order. The caller applies edited weights, see `Variant.in_place`."""
        generated = {shot.path: image for shot, image in self.generate(variant, shots, writer)}
        bar.update(len(shots))
        return [generated[shot.path] if shot.path in generated else read_image(shot.path) for shot in shots]

    def generate(self, variant: Variant, shots: Sequence[Shot], writer: ImageWriter) -> Iterator[tuple[Shot, np.ndarray]]:
        """Generate and write the missing images. The caller applies edited weights, see `Variant.in_place`."""
        batches = unfinished_batches(shots, lambda shot: shot.path.exists(), self.batch_size)
        missing = [shot for batch in batches for shot in batch]
        if not missing:
            return
        images = generate(self.model, [(shot.prompt, shot.sample) for shot in missing], embedding_manager=variant.manager,
                          ddim_steps=self.settings.ddim_steps, scale=self.settings.scale, seed=self.settings.seed,
                          batch_size=self.batch_size, target=variant.target)
        for shot, (_, image) in zip(missing, images, strict=True):
            if not shot.path.exists():
                writer.write(shot.path, image)
                yield shot, image


def unfinished_batches(items: Sequence[Item], is_finished: Callable[[Item], bool], batch_size: int) -> list[Sequence[Item]]:
    """Batches of `batch_size` items with at least one unfinished item."""
    return [batch for batch in batches_of(items, batch_size) if not all(map(is_finished, batch))]
