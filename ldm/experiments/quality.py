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
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import InitVar, asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from tqdm import tqdm

from ldm.data.images import write_metadata
from ldm.evaluation.quality import Scorer, Scores, joined
from ldm.experiments.pipeline import Pipeline, Shot
from ldm.experiments.variants import BASE, ImageSettings, Variant
from ldm.generation import warn_of_cut_texts
from ldm.images import ImageWriter, sheet_of_files
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.run_folder import RunFolder, write_json
from ldm.sharing import Devices, share
from ldm.util import UserError, first_line, write_atomically

CHUNK = 64      # images that are scored and released together
PAIRS = 8       # columns of the sheet


@dataclass
class HalfFolder:
    """Images and scores of one half, generated and scored by all ranks of a run.

    Raises UserError if the folder holds images of other settings, or of another prefix with the same name.
    """

    fabric: Devices                    # devices that share the unfinished chunks
    name: str                          # "id" or "non_id"
    texts: Sequence[tuple[str, int]]   # per image, the text that replaces {name} in the prompt, and the sample number
    settings: ImageSettings
    scorer: Scorer
    scored_with: Mapping[str, Any]     # settings that determine the scores, JSON values
    variants: Sequence[Variant]        # see `load_variants`
    out_dir: Path                      # of both halves
    keep_images: int | None = None     # images to keep per variant, from the first; None keeps all
    resume: InitVar[bool] = True       # keep results of an earlier run with the same settings; False deletes them

    def __post_init__(self, resume: bool) -> None:
        self.kept = len(self.texts) if self.keep_images is None else self.keep_images
        self.path = self.out_dir / self.name
        settings = json.dumps(self.scored_with, sort_keys=True)
        self.scores = self.path / "scores" / hashlib.sha256(settings.encode()).hexdigest()[:16]
        if self.fabric.is_global_zero and not resume:
            shutil.rmtree(self.path / "scores", ignore_errors=True)
        announced = {variant.label: variant.hash for variant in self.variants}
        self.folder = RunFolder.shared(self.fabric, self.path, asdict(self.settings), announced, resume=resume)
        if self.fabric.is_global_zero:
            write_json(self.scores / "settings.json", self.scored_with)

    def generate_and_score(self, model: LatentDiffusion, batch_size: int) -> None:
        """Generate and score every unfinished image of every variant; all ranks return together."""
        pipeline = Pipeline(self.fabric, model, self.settings, batch_size)
        prompts = [self.settings.prompt.replace("{name}", text) for text, _ in self.texts]
        warn_of_cut_texts(model, prompts, [variant.manager for variant in self.variants], what=f"prompts of the half '{self.name}'")
        for variant in self.variants:
            mine = share(self.fabric, partial(self._unfinished, variant))
            total, label = sum(len(self._chunk(start)) for start in mine), f"{self.name}, {variant.label}"  # of rank 0's shard
            with (variant.in_place(model) if mine else nullcontext(),
                  tqdm(total=total, desc=label, unit="image", disable=not self.fabric.is_global_zero) as bar):
                for start in mine:
                    self._finish(pipeline, variant, start, bar)
        self.fabric.barrier()
        if self.fabric.is_global_zero:  # after the barrier, since other ranks may still write
            for variant in self.variants:  # an earlier run may have kept more
                for text in self.texts[self.kept:]:
                    self._image_path(variant, text).unlink(missing_ok=True)
            for folder in [path for path in self.path.glob("images/*/*/") if not any(path.iterdir())]:
                folder.rmdir()

    def scores_of(self, variant: Variant) -> Scores:
        """Scores of all images of a variant, in the order of `texts`; raises UserError if a file is missing or damaged."""
        chunks = []
        for start in range(0, len(self.texts), CHUNK):
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
        columns = self.texts[:min(PAIRS, self.kept)]
        rows = {"no prefix" if variant == BASE else f"with {variant.label}": [self._image_path(variant, text) for text in columns]
                for variant in self.variants}
        write_atomically(self.path / "pairs.png", sheet_of_files(rows, [text for text, _ in columns], cell=160).save)
        for variant in self.variants if self.name == "non_id" else ():
            folder = self._image_path(variant, columns[0]).parents[1]
            write_metadata(folder, ({"file_name": str(self._image_path(variant, text).relative_to(folder)), "text": text[0]}
                                    for text in self.texts[:self.kept]))

    def _finish(self, pipeline: Pipeline, variant: Variant, start: int, bar: tqdm) -> None:
        shots = [Shot(self.settings.prompt.replace("{name}", text), sample, text, self._image_path(variant, (text, sample)))
                 for text, sample in self._chunk(start)]
        with ImageWriter() as writer:
            images = pipeline.images(variant, shots, writer, bar)
            if not self._scores_path(variant, start).exists():
                scores = self.scorer(images, [shot.text for shot in shots])
                write_atomically(self._scores_path(variant, start), lambda path: np.savez(path, **scores))  # type: ignore[arg-type]
        for shot in shots[max(0, self.kept - start):]:
            shot.path.unlink()

    def _unfinished(self, variant: Variant) -> list[int]:
        """Number of the first image of each chunk without scores, or without an image to keep."""
        return [start for start in range(0, len(self.texts), CHUNK)
                if not (self._scores_path(variant, start).exists() and all(
                    self._image_path(variant, text).exists() for text in self.texts[start:min(start + CHUNK, self.kept)]))]

    def _chunk(self, start: int) -> Sequence[tuple[str, int]]:
        return self.texts[start:start + CHUNK]

    def _image_path(self, variant: Variant, text: tuple[str, int]) -> Path:
        return self.folder.image_path(variant.label, *text)

    def _scores_path(self, variant: Variant, start: int) -> Path:
        """Path named by the images and their settings, so that scores cannot be used for other images."""
        generated = json.dumps([asdict(self.settings), variant.hash, self._chunk(start)], sort_keys=True)
        pictures = hashlib.sha256(generated.encode()).hexdigest()[:16]
        return self.scores / variant.label / f"{pictures}.npz"
