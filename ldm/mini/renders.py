"""The pictures that the miniature's models learn from: named people, anonymous people and scenes, drawn once.

Picture i is a pure function of i; only its pixels are stored, in one memory-mapped file.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ldm.mini.people import Person, View, anonymous_caption, name_caption, named_people, sample_person, sample_view
from ldm.mini.portraits import draw_portrait
from ldm.mini.scenes import Scene, draw_scene, sample_scene, scene_caption

SIZE = 128
NAMED, ANONYMOUS, SCENES = 16_000, 14_000, 14_000
COUNT = NAMED + ANONYMOUS + SCENES


@dataclass(frozen=True)
class Subject:
    """What picture i shows: a scene, or a person in a view, with a name or without."""

    name: str | None = None
    person: Person | None = None
    view: View | None = None
    scene: Scene | None = None

    def caption(self, rng: random.Random) -> str:
        """One of the captions that this picture can have."""
        if self.scene is not None:
            return scene_caption(self.scene, rng)
        if self.name is not None:
            return name_caption(self.name, self.view, rng)
        return anonymous_caption(self.person, self.view, rng)


@cache
def _named() -> list[tuple[str, Person]]:
    return list(named_people().items())


def subject(index: int) -> Subject:
    """Subject of picture `index`; the first NAMED show the named people in turn; any index from COUNT on is held out."""
    rng = random.Random(f"subject {index}")
    index %= COUNT
    if index < NAMED:
        name, person = _named()[index % len(_named())]
        return Subject(name=name, person=person, view=sample_view(rng))
    if index < NAMED + ANONYMOUS:
        return Subject(person=sample_person(rng), view=sample_view(rng))
    return Subject(scene=sample_scene(rng))


def draw(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Picture `index`, (128, 128, 3) uint8 RGB, and its face box, (4,) pixels, zeros for a scene."""
    what = subject(index)
    if what.scene is not None:
        return draw_scene(what.scene, SIZE), np.zeros(4)
    portrait = draw_portrait(what.person, what.view, SIZE)
    return portrait.image, portrait.box


def render_all(work_dir: Path, workers: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """All pictures, (COUNT, 128, 128, 3) uint8, and face boxes, (COUNT, 4) float32; drawn on the first call."""
    images_path, boxes_path, done_path = work_dir / "renders.u8", work_dir / "boxes.npy", work_dir / "renders.json"
    shape = (COUNT, SIZE, SIZE, 3)
    if not done_path.exists():
        images, boxes = np.memmap(images_path, np.uint8, "w+", shape=shape), np.zeros((COUNT, 4), np.float32)
        for index, (image, box) in enumerate(tqdm(_drawn(workers), total=COUNT, desc="drawing the world", unit="image")):
            images[index], boxes[index] = image, box
        images.flush()
        np.save(boxes_path, boxes)
        done_path.write_text(json.dumps({"count": COUNT, "size": SIZE}))
    return np.memmap(images_path, np.uint8, "r", shape=shape), np.load(boxes_path)


def _drawn(workers: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    with Pool(workers) as pool:
        yield from pool.imap(draw, range(COUNT), chunksize=64)
