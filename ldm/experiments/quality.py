"""Generates, scores and deletes the images of Table 2 (paper section 4.3): 30 000 prompts in chunks, on any number of devices.

    <out_dir>/<half>/manifest.json, images/                      see ldm/run_folder.py
    <out_dir>/<half>/images/<prefix>/metadata.jsonl              the prompt of each kept image (half non_id)
    <out_dir>/<half>/scores/<settings>/settings.json             settings of the scorer
    <out_dir>/<half>/scores/<settings>/<prefix>/<images>.npz     scores of up to CHUNK images
    <out_dir>/<half>/pairs.png                                   same prompt and noise, without and with each prefix

A chunk is finished when its scores and its kept images exist. A killed run resumes at the next image. The manifest refuses other
settings of the images; other settings of the scorer use another folder.
"""

import hashlib
import json
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from PIL import Image
from tqdm import tqdm

from ldm.data.images import write_metadata
from ldm.evaluation.quality import Scorer, Scores, joined
from ldm.experiments.pipeline import Pipeline, Shot
from ldm.experiments.sheet import LABEL
from ldm.experiments.variants import BASE, ImageSettings, Variant
from ldm.generation import warn_of_cut_texts
from ldm.images import ImageWriter, image_grid, read_image
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.run_folder import RunFolder, write_json
from ldm.sharing import Devices, share
from ldm.util import UserError, first_line, write_atomically

CHUNK = 64      # images that are scored and released together
PAIRS = 8       # columns of the sheet


@dataclass(frozen=True)
class Half:
    """One half of Table 2: its images, their settings, and their scorer.

    Args:
        name: "id" or "non_id".
        texts: per image, the text that replaces {name} in the prompt, and the sample number.
        settings: settings of the images.
        scorer: scores the images.
        scored_with: settings that determine the scores, JSON values.
    """

    name: str
    texts: Sequence[tuple[str, int]]
    settings: ImageSettings
    scorer: Scorer
    scored_with: Mapping[str, Any]


class HalfFolder:
    """Images and scores of one half, generated and scored by all ranks of a run.

    Args:
        fabric: devices that share the unfinished chunks.
        half: images and scorer.
        variants: see `load_variants`.
        out_dir: output folder of both halves.
        keep_images: number of images to keep per variant, from the first; None keeps all.
        resume: keep results of an earlier run with the same settings; False deletes them.

    Raises:
        UserError: the folder holds images of other settings, or of another prefix with the same name.
    """

    def __init__(self, fabric: Devices, half: Half, variants: Sequence[Variant], out_dir: Path, *, keep_images: int | None = None,
                 resume: bool = True) -> None:
        self.fabric, self.half, self.variants = fabric, half, variants
        self.kept = len(half.texts) if keep_images is None else keep_images
        self.path = out_dir / half.name
        settings = json.dumps(half.scored_with, sort_keys=True)
        self.scores = self.path / "scores" / hashlib.sha256(settings.encode()).hexdigest()[:16]
        if fabric.is_global_zero and not resume:
            shutil.rmtree(self.path / "scores", ignore_errors=True)
        announced = {variant.label: variant.hash for variant in variants}
        self.folder = RunFolder.shared(fabric, self.path, asdict(half.settings), announced, resume=resume)
        if fabric.is_global_zero:
            write_json(self.scores / "settings.json", half.scored_with)

    def generate_and_score(self, model: LatentDiffusion, batch_size: int) -> None:
        """Generate and score every unfinished image of every variant; all ranks return together."""
        pipeline = Pipeline(self.fabric, model, self.half.settings, batch_size)
        prompts = [self.half.settings.prompt.replace("{name}", text) for text, _ in self.half.texts]
        warn_of_cut_texts(model, prompts, [variant.manager for variant in self.variants], what=f"prompts of the half '{self.half.name}'")
        for variant in self.variants:
            mine = share(self.fabric, partial(self._unfinished, variant))
            weights = variant.in_place(model) if mine else nullcontext()
            # of rank 0's shard
            total, label = sum(len(self._chunk(start)) for start in mine), f"{self.half.name}, {variant.label}"
            with weights, tqdm(total=total, desc=label, unit="image", disable=not self.fabric.is_global_zero) as bar:
                for start in mine:
                    self._finish(pipeline, variant, start, bar)
        self.fabric.barrier()
        if self.fabric.is_global_zero:  # after the barrier, since other ranks may still write
            for variant in self.variants:  # an earlier run may have kept more
                for text in self.half.texts[self.kept:]:
                    self._image_path(variant, text).unlink(missing_ok=True)
            for folder in [path for path in self.path.glob("images/*/*/") if not any(path.iterdir())]:
                folder.rmdir()

    def scores_of(self, variant: Variant) -> Scores:
        """Scores of all images of a variant, in the order of `texts`.

        Raises:
            UserError: a file of scores is missing or damaged.
        """
        chunks = []
        for start in range(0, len(self.half.texts), CHUNK):
            path = self._scores_path(variant, start)
            try:
                with np.load(path, allow_pickle=False) as arrays:
                    chunks.append({key: arrays[key] for key in arrays.files})
            except (OSError, ValueError, BadZipFile) as error:
                raise UserError(f"the scores {path} cannot be read ({first_line(error)}); delete {self.path}, and the same command creates "
                                "them again") from None
        return joined(chunks)

    def write_pairs(self) -> None:
        """Write pairs.png, and for the half non_id the prompts of the kept images."""
        columns = self.half.texts[:min(PAIRS, self.kept)]
        pictures = [[read_image(self._image_path(variant, text)) for text in columns] for variant in self.variants]
        sheet = pairs_sheet(pictures, self.variants, [text for text, _ in columns])
        write_atomically(self.path / "pairs.png", lambda path: sheet.save(path))
        for variant in self.variants if self.half.name == "non_id" else ():
            folder = self._image_path(variant, columns[0]).parents[1]
            write_metadata(folder, ({"file_name": str(self._image_path(variant, text).relative_to(folder)), "text": text[0]}
                                    for text in self.half.texts[:self.kept]))

    def _finish(self, pipeline: Pipeline, variant: Variant, start: int, bar: tqdm) -> None:
        shots = [Shot(self.half.settings.prompt.replace("{name}", text), sample, text, self._image_path(variant, (text, sample)))
                 for text, sample in self._chunk(start)]
        with ImageWriter() as writer:
            images = pipeline.images(variant, shots, writer, bar)
            if not self._scores_path(variant, start).exists():
                scores = self.half.scorer(images, [shot.text for shot in shots])
                write_atomically(self._scores_path(variant, start), lambda path: np.savez(path, **scores))  # type: ignore[arg-type]
        for shot in shots[max(0, self.kept - start):]:
            shot.path.unlink()

    def _unfinished(self, variant: Variant) -> list[int]:
        return [start for start in range(0, len(self.half.texts), CHUNK) if not self._finished(variant, start)]

    def _finished(self, variant: Variant, start: int) -> bool:
        kept = self._chunk(start)[:max(0, self.kept - start)]
        return self._scores_path(variant, start).exists() and all(self._image_path(variant, text).exists() for text in kept)

    def _chunk(self, start: int) -> Sequence[tuple[str, int]]:
        return self.half.texts[start:start + CHUNK]

    def _image_path(self, variant: Variant, text: tuple[str, int]) -> Path:
        return self.folder.image_path(variant.label, *text)

    def _scores_path(self, variant: Variant, start: int) -> Path:
        """Path named by the images and their settings, so that scores cannot be used for other images."""
        generated = json.dumps([asdict(self.half.settings), variant.hash, self._chunk(start)], sort_keys=True)
        pictures = hashlib.sha256(generated.encode()).hexdigest()[:16]
        return self.scores / variant.label / f"{pictures}.npz"


def pairs_sheet(pictures: Sequence[Sequence[np.ndarray]], variants: Sequence[Variant], texts: Sequence[str]) -> Image.Image:
    """A row per variant, a column per prompt or name: images of the same noise below each other."""
    rows = ["no prefix" if variant == BASE else f"with {variant.label}" for variant in variants]
    return image_grid(pictures, rows, [textwrap.shorten(text, LABEL) for text in texts], cell=160)
