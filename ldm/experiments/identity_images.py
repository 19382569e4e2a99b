"""S_ID's pictures x^i: every name, drawn by the frozen model itself (paper section 4.1).

A picture is kept if exactly one face is found in it; otherwise the same prompt is drawn again from other noise.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ldm.data.images import write_metadata
from ldm.data.templates import fill
from ldm.experiments.pipeline import unfinished_batches
from ldm.generation import Job, generate
from ldm.images import ImageWriter
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.run_folder import RunFolder
from ldm.sharing import Devices, in_rounds
from ldm.util import UserError, write_text

REDRAW = 1_000_000  # between the sample numbers of one picture's attempts

Portrait = tuple[str, int]              # name, number of the picture
CountFaces = Callable[[np.ndarray], int]  # (H, W, 3) uint8 RGB -> faces found


@dataclass(frozen=True)
class Recipe:
    """What a picture depends on beside the name and its number, as JSON values."""

    model_hash: str   # of the checkpoint
    config_hash: str
    templates: list[str]
    negative_prompt: str
    seed: int
    scale: float
    ddim_steps: int
    precision: str
    faces_by: str | None  # hash of the face pack and how it is used; None keeps pictures whatever they show

    def prompt(self, portrait: Portrait) -> str:
        """A template, drawn by seed, name and number, with the name in it."""
        name, number = portrait
        return fill(random.Random(f"S_ID {self.seed} {name} {number}").choice(self.templates), name)


@dataclass(frozen=True)
class Summary:
    """Pictures of S_ID: those kept, those drawn in vain, and the portraits without a picture after all attempts."""

    kept: int
    redrawn: int
    given_up: list[Portrait]

    def __str__(self) -> str:
        names = ", ".join(sorted({name for name, _ in self.given_up}))
        return (f"{self.kept} pictures; {self.redrawn} others were drawn again because not exactly one face was found in them"
                + (f"; given up: {len(self.given_up)} pictures of {names}" if names else ""))


class IdentityImages:
    """S_ID's pictures in a folder, and metadata.jsonl with name, prompt, seed and sample of each.

    Whatever was drawn is noted in images/drawn.jsonl, by the first device after each round of batches, so that a resumed run goes
    on at the same attempt. Batches are the same in a resumed run, for the last bit of a picture can depend on its batch.

    Args:
        fabric: its devices share the batches of each attempt.
        folder: made for pictures without a prefix, "none".
        n_samples: pictures of each name.
        count_faces: None keeps every picture.

    Raises:
        UserError: nobody is to be drawn.
    """

    def __init__(self, fabric: Devices, model: LatentDiffusion, folder: RunFolder, names: Sequence[str], recipe: Recipe, *,
                 n_samples: int, batch_size: int, count_faces: CountFaces | None = None) -> None:
        if not names:
            raise UserError("nobody in the list of people is of the group asked for; give another --group or --people")
        self.fabric, self.model, self.folder, self.recipe = fabric, model, folder, recipe
        self.batch_size, self.count_faces = batch_size, count_faces
        self.portraits = [(name, number) for name in names for number in range(n_samples)]
        self.log = folder.path / "images" / "drawn.jsonl"
        self.attempts = fabric.broadcast(_read_log(self.log) if fabric.is_global_zero else None)

    def draw(self, max_redraws: int) -> Summary:
        """Draws what is not there yet, each picture up to `max_redraws` times after the first; ends on all devices together."""
        bar = tqdm(total=len(self.portraits), desc="S_ID", unit="image", disable=not self.fabric.is_global_zero,
                   initial=sum(self._path(portrait).exists() for portrait in self.portraits))
        with bar, ImageWriter() as writer:
            for attempt in range(max_redraws + 1):
                for drawn in self._attempt(attempt, writer):
                    if self.fabric.is_global_zero:
                        _note(self.log, drawn)
                    portrait = drawn["name"], drawn["number"]
                    self.attempts[portrait] = [*self.attempts.get(portrait, ())[:attempt], drawn]
                    bar.update(_kept(drawn))
        self.fabric.barrier()
        kept = {portrait: self.attempts[portrait][-1] for portrait in self.portraits if _kept(self.attempts[portrait][-1])}
        if self.fabric.is_global_zero:
            write_metadata(self.folder.path, ({"file_name": self._path(portrait).relative_to(self.folder.path).as_posix()} | drawn
                                              for portrait, drawn in kept.items()))
        tries = sum(len(self.attempts[portrait]) for portrait in self.portraits)
        return Summary(len(kept), tries - len(self.portraits), [portrait for portrait in self.portraits if portrait not in kept])

    def _attempt(self, attempt: int, writer: ImageWriter) -> Iterator[dict[str, Any]]:
        """One attempt at every picture that needs it: what is to be noted of each, in order, on every device."""
        recipe = self.recipe
        wanted = [portrait for portrait in self.portraits if not any(map(_kept, self.attempts.get(portrait, ())[:attempt]))]
        jobs = {(recipe.prompt(portrait), portrait[1] + REDRAW * attempt): portrait for portrait in wanted}

        def is_done(job: Job) -> bool:
            known = self.attempts.get(jobs[job], ())[attempt:]
            return bool(known) and (not _kept(known[0]) or self._path(jobs[job]).exists())

        def draw(batch: Sequence[Job]) -> list[dict[str, Any]]:
            noted = []
            for job, image in generate(self.model, batch, ddim_steps=recipe.ddim_steps, scale=recipe.scale, seed=recipe.seed,
                                       batch_size=self.batch_size, negative_prompt=recipe.negative_prompt):
                if is_done(job):
                    continue
                name, number = jobs[job]
                noted.append({"name": name, "number": number, "attempt": attempt, "prompt": job[0], "seed": recipe.seed,
                              "sample": job[1], "faces": self.count_faces and self.count_faces(image)})
                if _kept(noted[-1]):
                    writer.write(self._path(jobs[job]), image)
            return noted

        for noted in in_rounds(self.fabric, lambda: unfinished_batches(list(jobs), is_done, self.batch_size), draw):
            yield from noted

    def _path(self, portrait: Portrait) -> Path:
        return self.folder.image_path("none", *portrait)


def _kept(drawn: dict[str, Any]) -> bool:
    return drawn["faces"] in (1, None)


def _note(log: Path, drawn: dict[str, Any]) -> None:
    log.parent.mkdir(exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(drawn, ensure_ascii=False) + "\n")


def _read_log(log: Path) -> dict[Portrait, list[dict[str, Any]]]:
    """The attempts at each picture; a last line that a killed run left unfinished is taken out of the file."""
    attempts: dict[Portrait, list[dict[str, Any]]] = {}
    *lines, rest = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else [""]  # cut within a letter
    if rest:
        write_text(log, "".join(line + "\n" for line in lines))
    for line in lines:
        drawn = json.loads(line)
        portrait = drawn["name"], drawn["number"]
        attempts[portrait] = [*attempts.get(portrait, ())[:drawn["attempt"]], drawn]
    return attempts
