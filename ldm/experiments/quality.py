"""Pictures of Table 2, drawn, scored and let go (paper section 4.3): 30 000 prompts on any number of devices, and never all at once.

    <out_dir>/<half>/manifest.json, images/                      see ldm/run_folder.py
    <out_dir>/<half>/images/<prefix>/metadata.jsonl              the prompt of each picture kept (half non_id)
    <out_dir>/<half>/scores/<settings>/settings.json             with what the pictures were scored
    <out_dir>/<half>/scores/<settings>/<prefix>/<pictures>.npz   the scores of up to CHUNK pictures
    <out_dir>/<half>/pairs.png                                   same prompt and noise, without and with each prefix

A chunk is finished when its scores and those of its pictures that are kept are there. A killed run goes on at the next picture.
Other settings of drawing are refused by the manifest; other settings of scoring have a folder of their own.
"""

import hashlib
import json
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from PIL import Image
from tqdm import tqdm

from ldm.data.images import write_metadata
from ldm.evaluation.quality import Scorer, Scores
from ldm.experiments.identity import Drawing, Prefix, draw_jobs, unfinished_batches
from ldm.fabric import Fabric
from ldm.generation import Job, warn_of_cut_texts
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.pictures import ImageWriter, picture_grid, read_image
from ldm.run_folder import RunFolder, write_json
from ldm.sharing import share
from ldm.util import UserError, first_line, write_atomically

CHUNK = 64      # pictures that are scored, and let go, together
PAIRS = 8       # columns of the sheet
LABEL = 90      # characters of a prompt above its column


@dataclass(frozen=True)
class Half:
    """One half of Table 2: which pictures, how they are drawn, and how they are scored.

    Args:
        name: "id" or "non_id".
        texts: what stands for {name} in the prompt of each picture, and the number of its noise.
        scored_with: everything that `scorer` depends on, JSON values.
    """

    name: str
    texts: Sequence[tuple[str, int]]
    drawing: Drawing
    scorer: Scorer
    scored_with: Mapping[str, Any]


class HalfFolder:
    """The pictures and scores of one half, drawn and scored by all devices of a run.

    Args:
        fabric: launched; each of its devices takes every n-th of the unfinished chunks.
        keep_images: of each prefix, the first ones, the others are deleted; None keeps all.
        resume: keep what an earlier run of the same settings finished; False deletes it.

    Raises:
        UserError: the folder holds pictures that were made in another way, or with another prefix of the same name.
    """

    def __init__(self, fabric: Fabric, half: Half, prefixes: Sequence[Prefix], out_dir: Path, *, keep_images: int | None = None,
                 resume: bool = True) -> None:
        self.fabric, self.half, self.prefixes = fabric, half, prefixes
        self.kept = len(half.texts) if keep_images is None else keep_images
        self.path = out_dir / half.name
        settings = json.dumps(half.scored_with, sort_keys=True)
        self.scores = self.path / "scores" / hashlib.sha256(settings.encode()).hexdigest()[:16]
        if fabric.is_global_zero and not resume:
            shutil.rmtree(self.path / "scores", ignore_errors=True)
        announced = {prefix.label: prefix.hash for prefix in prefixes}
        self.folder = RunFolder.shared(fabric, self.path, asdict(half.drawing), announced, resume=resume)
        if fabric.is_global_zero:
            write_json(self.scores / "settings.json", half.scored_with)

    def draw_and_score(self, model: LatentDiffusion, batch_size: int) -> None:
        """Finish every picture of every prefix; ends on all devices together."""
        prompts = [self.half.drawing.prompt.replace("{name}", text) for text, _ in self.half.texts]
        warn_of_cut_texts(model, prompts, [prefix.manager for prefix in self.prefixes], what=f"prompts of the half '{self.half.name}'")
        starts = range(0, len(self.half.texts), CHUNK)
        for prefix in self.prefixes:
            mine = share(self.fabric, lambda prefix=prefix: [start for start in starts if not self._finished(prefix, start)])
            weights = prefix.in_place(model) if mine else nullcontext()
            with weights, tqdm(total=sum(len(self._chunk(start)) for start in mine), desc=f"{self.half.name}, {prefix.label}", unit="image",
                               disable=not self.fabric.is_global_zero) as bar:  # the first device's share, which ends with the others
                for start in mine:
                    self._finish(model, prefix, start, batch_size, bar)
        self.fabric.barrier()
        if self.fabric.is_global_zero:  # not before, for another device may be about to write where one has just deleted
            for prefix in self.prefixes:  # an earlier run may have kept more
                for text in self.half.texts[self.kept:]:
                    self._image_path(prefix, text).unlink(missing_ok=True)
            for folder in [path for path in self.path.glob("images/*/*/") if not any(path.iterdir())]:
                folder.rmdir()

    def scores_of(self, prefix: Prefix) -> Scores:
        """The scores of all pictures of a prefix, in the order of `texts`; UserError where a file of them is missing or damaged."""
        chunks = []
        for start in range(0, len(self.half.texts), CHUNK):
            path = self._scores_path(prefix, start)
            try:
                with np.load(path, allow_pickle=False) as arrays:
                    chunks.append({key: arrays[key] for key in arrays.files})
            except (OSError, ValueError, BadZipFile) as error:
                raise UserError(f"the scores {path} cannot be read ({first_line(error)}); delete {self.path}, and the same command makes "
                                "them again") from None
        return {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}

    def write_pairs(self) -> None:
        """pairs.png, and for prompts the list of those whose pictures are kept."""
        columns = self.half.texts[:min(PAIRS, self.kept)]
        pictures = [[read_image(self._image_path(prefix, text)) for text in columns] for prefix in self.prefixes]
        sheet = pairs_sheet(pictures, self.prefixes, [text for text, _ in columns])
        write_atomically(self.path / "pairs.png", lambda path: sheet.save(path))
        for prefix in self.prefixes if self.half.name == "non_id" else ():
            folder = self._image_path(prefix, columns[0]).parents[1]
            write_metadata(folder, ({"file_name": str(self._image_path(prefix, text).relative_to(folder)), "text": text[0]}
                                    for text in self.half.texts[:self.kept]))

    def _finish(self, model: LatentDiffusion, prefix: Prefix, start: int, batch_size: int, bar: tqdm) -> None:
        drawing, chunk = self.half.drawing, self._chunk(start)
        files = [self._image_path(prefix, text) for text in chunk]
        jobs: list[Job] = [(drawing.prompt.replace("{name}", text), sample) for text, sample in chunk]
        paths = dict(zip(jobs, files, strict=True))
        unfinished = list(chain(*unfinished_batches(jobs, lambda job: paths[job].exists(), batch_size)))
        bar.update(len(jobs) - len(unfinished))
        with ImageWriter() as writer:
            drawn = dict(draw_jobs(model, unfinished, paths, prefix, drawing=drawing, batch_size=batch_size, writer=writer, bar=bar))
            if not self._scores_path(prefix, start).exists():
                images = [drawn[job] if job in drawn else read_image(paths[job]) for job in jobs]
                scores = self.half.scorer(images, [text for text, _ in chunk])
                write_atomically(self._scores_path(prefix, start), lambda path: np.savez(path, **scores))
        for file in files[max(0, self.kept - start):]:
            file.unlink()

    def _finished(self, prefix: Prefix, start: int) -> bool:
        kept = self._chunk(start)[:max(0, self.kept - start)]
        return self._scores_path(prefix, start).exists() and all(self._image_path(prefix, text).exists() for text in kept)

    def _chunk(self, start: int) -> Sequence[tuple[str, int]]:
        return self.half.texts[start:start + CHUNK]

    def _image_path(self, prefix: Prefix, text: tuple[str, int]) -> Path:
        return self.folder.image_path(prefix.label, *text)

    def _scores_path(self, prefix: Prefix, start: int) -> Path:
        """Named by its pictures and how they are drawn, so that scores never count for others, whatever is added or deleted."""
        drawn = json.dumps([asdict(self.half.drawing), prefix.hash, self._chunk(start)], sort_keys=True)
        pictures = hashlib.sha256(drawn.encode()).hexdigest()[:16]
        return self.scores / prefix.label / f"{pictures}.npz"


def pairs_sheet(pictures: Sequence[Sequence[np.ndarray]], prefixes: Sequence[Prefix], texts: Sequence[str]) -> Image.Image:
    """A row a prefix, a column a prompt or name: pictures of the same noise below each other."""
    rows = ["no prefix" if prefix == Prefix() else f"with {prefix.label}" for prefix in prefixes]
    return picture_grid(pictures, rows, [textwrap.shorten(text, LABEL) for text in texts], cell=160)
