"""The images that the miniature's models learn from: named people, anonymous people and scenes; image i is a pure function of i."""

import random
from dataclasses import dataclass
from functools import cache

import numpy as np

from ldm.mini.people import (
    LOOKALIKES,
    REMAKES,
    Character,
    View,
    altered,
    anonymous_caption,
    name_caption,
    named_people,
    sample_person,
    sample_view,
    stranger_like,
)
from ldm.mini.portraits import draw_portrait
from ldm.mini.scenes import Scene, draw_scene, sample_scene, scene_caption

SIZE = 128
NAMED, ANONYMOUS, SCENES = 30_000, 20_000, 20_000
COUNT = NAMED + ANONYMOUS + SCENES
# Shares of the named images: one attribute changed; another person with the same attributes, by words around the name or in front of
# the caption. The last is also the share of the other captions that have such words in front.
ALTERED, LOOKALIKE, REMAKE = 0.15, 0.06, 0.16


@dataclass(frozen=True)
class Subject:
    """What image i shows: a scene, or a person in a view, with a name or without."""

    name: str | None = None     # with what a caption has to say around it, such as "a lookalike of ..."
    person: Character | None = None
    view: View | None = None
    scene: Scene | None = None
    remake: str = ""            # one of REMAKES where a named person is played by somebody else

    def caption(self, rng: random.Random) -> str:
        """One of the captions that this image can have."""
        if self.name is not None:
            return self.remake + name_caption(self.name, self.view, rng)
        front = rng.choice(REMAKES) if rng.random() < REMAKE else ""
        return front + (scene_caption(self.scene, rng) if self.scene else anonymous_caption(self.person, self.view, rng))


@cache
def _named() -> list[tuple[str, Character]]:
    return list(named_people().items())


def subject(index: int) -> Subject:
    """Subject of image `index`; the first NAMED show the named people in turn; any index from COUNT on is held out."""
    rng = random.Random(f"subject {index}")
    index %= COUNT
    if index >= NAMED + ANONYMOUS:
        return Subject(scene=sample_scene(rng))
    view = sample_view(rng)
    if index >= NAMED:
        return Subject(person=sample_person(rng), view=view)
    name, person = _named()[index % len(_named())]
    remake, chance = "", rng.random()
    if chance < ALTERED:
        person, words = altered(person, rng)
        name = f"{name} {words}"
    elif chance < ALTERED + LOOKALIKE:
        person, name = stranger_like(person, rng), rng.choice(LOOKALIKES).format(name)
    elif chance < ALTERED + LOOKALIKE + REMAKE:
        person, remake = stranger_like(person, rng), rng.choice(REMAKES)
    return Subject(name=name, person=person, view=view, remake=remake)


def draw(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Image `index`, (128, 128, 3) uint8 RGB, and its face box, (4,) pixels, zeros for a scene."""
    what = subject(index)
    if what.scene is not None:
        return draw_scene(what.scene, SIZE), np.zeros(4)
    portrait = draw_portrait(what.person, what.view, SIZE)
    return portrait.image, portrait.box
