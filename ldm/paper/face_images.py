"""S_ID's pictures x^i: every name, drawn by the frozen model itself (paper section 4.1).

A picture is kept if exactly one face is found in it; otherwise the same prompt is drawn again from other noise.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ldm.data.images import write_metadata
from ldm.data.templates import fill
from ldm.generation import generate
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.paper.identity import unfinished_jobs
from ldm.pictures import write_image
from ldm.run_folder import RunFolder
from ldm.util import UserError, write_atomically

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


def draw_identity_images(model: LatentDiffusion, folder: RunFolder, names: Sequence[str], recipe: Recipe, *, n_samples: int,
                         max_redraws: int, batch_size: int, count_faces: CountFaces | None = None) -> Summary:
    """`n_samples` pictures of each name in `folder`, and metadata.jsonl with name, prompt, seed and sample of each.

    Whatever was drawn is noted in images/drawn.jsonl at once, so that a resumed run goes on at the same attempt. Batches
    are the same in a resumed run, for the last bit of a picture can depend on its batch.

    Args:
        max_redraws: attempts after the first, for each picture.
        count_faces: None keeps every picture.

    Raises:
        UserError: nobody is to be drawn.
    """
    if not names:
        raise UserError("nobody in the list of people is of the group asked for; give another --group or --people")
    log = folder.path / "images" / "drawn.jsonl"
    log.parent.mkdir(exist_ok=True)
    attempts = _read_log(log)
    portraits = [(name, number) for name in names for number in range(n_samples)]
    folder.add_prefix("none", None)

    def done(portrait: Portrait, attempt: int) -> bool:
        known = attempts.get(portrait, ())[attempt:]
        return bool(known) and (not _kept(known[0]) or folder.image_path("none", *portrait).exists())

    bar = tqdm(total=len(portraits), desc="S_ID", unit="image",
               initial=sum(folder.image_path("none", *portrait).exists() for portrait in portraits))
    for attempt in range(max_redraws + 1):
        wanted = [portrait for portrait in portraits if not any(map(_kept, attempts.get(portrait, ())[:attempt]))]
        jobs = {(recipe.prompt(portrait), portrait[1] + REDRAW * attempt): portrait for portrait in wanted}
        # Bound as defaults: the function belongs to this attempt.
        unfinished = unfinished_jobs(list(jobs), lambda job, jobs=jobs, attempt=attempt: done(jobs[job], attempt), batch_size)
        for job, image in generate(model, unfinished, ddim_steps=recipe.ddim_steps, scale=recipe.scale, seed=recipe.seed,
                                   batch_size=batch_size, negative_prompt=recipe.negative_prompt):
            portrait = jobs[job]
            if done(portrait, attempt):
                continue
            drawn = {"name": portrait[0], "number": portrait[1], "attempt": attempt, "prompt": job[0], "seed": recipe.seed,
                     "sample": job[1], "faces": None if count_faces is None else count_faces(image)}
            if _kept(drawn):
                write_image(folder.image_path("none", *portrait), image)
                bar.update()
            _note(log, drawn)
            attempts[portrait] = [*attempts.get(portrait, ())[:attempt], drawn]
    bar.close()
    kept = {portrait: attempts[portrait][-1] for portrait in portraits if _kept(attempts[portrait][-1])}
    write_metadata(folder.path, ({"file_name": folder.image_path("none", *portrait).relative_to(folder.path).as_posix()} | drawn
                                 for portrait, drawn in kept.items()))
    tries = sum(len(attempts[portrait]) for portrait in portraits)
    return Summary(len(kept), tries - len(portraits), [portrait for portrait in portraits if portrait not in kept])


def _kept(drawn: dict[str, Any]) -> bool:
    return drawn["faces"] in (1, None)


def _note(log: Path, drawn: dict[str, Any]) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(drawn, ensure_ascii=False) + "\n")


def _read_log(log: Path) -> dict[Portrait, list[dict[str, Any]]]:
    """The attempts at each picture; a last line that a killed run left unfinished is taken out of the file."""
    attempts: dict[Portrait, list[dict[str, Any]]] = {}
    *lines, rest = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else [""]  # cut within a letter
    if rest:
        write_atomically(log, lambda path: path.write_text("".join(line + "\n" for line in lines), encoding="utf-8"))
    for line in lines:
        drawn = json.loads(line)
        portrait = drawn["name"], drawn["number"]
        attempts[portrait] = [*attempts.get(portrait, ())[:drawn["attempt"]], drawn]
    return attempts
