"""Scenes of the miniature world: one or two coloured objects at a place, and no person."""

import math
import random
from dataclasses import dataclass

import numpy as np

from ldm.mini.people import COLORS, FILLERS
from ldm.mini.sketch import BLACK, RGB, WHITE, Color, Sketch, arc, blend

OBJECTS = ("apple", "house", "car", "tree", "ball", "flower", "boat", "mug", "fish", "star")
PLACES = {"on a table": ((222, 210, 190), (150, 100, 60)), "in a field": ((150, 205, 245), (110, 175, 80)),
          "under a cloudy sky": ((170, 195, 220), (160, 165, 150)), "by the sea": ((180, 220, 250), (40, 110, 170)),
          "at night": ((24, 26, 66), (34, 38, 50))}
SCENE_TEMPLATES = ("{}", "{}", "a photo of {}", "a picture of {}", "an image showing {}")


@dataclass(frozen=True)
class Scene:
    """What a caption says (`object`, `color`, `place`, `count`) and what it does not."""

    object: str
    color: str
    place: str
    count: int        # 1 or 2
    shift: complex    # image widths
    zoom: float
    roll: float       # degrees
    horizon: float    # image widths below the centre
    seed: int         # of clouds, waves, grass and stars


def sample_scene(rng: random.Random) -> Scene:
    """A random scene."""
    return Scene(object=rng.choice(OBJECTS), color=rng.choice(COLORS), place=rng.choice(list(PLACES)), count=rng.choice((1, 1, 1, 2)),
                 shift=complex(rng.uniform(-0.08, 0.08), rng.uniform(-0.04, 0.04)), zoom=rng.uniform(0.95, 1.25), roll=rng.gauss(0, 4),
                 horizon=rng.uniform(0.02, 0.14), seed=rng.randrange(1 << 30))


def scene_phrase(scene: Scene) -> str:
    """The scene in words, such as "two red boats by the sea"."""
    if scene.count == 2:
        return f"two {scene.color} {scene.object}{'' if scene.object == 'fish' else 's'} {scene.place}"
    return f"{'an' if scene.color == 'orange' else 'a'} {scene.color} {scene.object} {scene.place}"


def scene_caption(scene: Scene, rng: random.Random) -> str:
    """A caption of the scene, sometimes with words that say nothing."""
    return rng.choice(FILLERS) + rng.choice(SCENE_TEMPLATES).format(scene_phrase(scene))


def draw_scene(scene: Scene, size: int = 128) -> np.ndarray:
    """The scene as (size, size, 3) uint8 RGB."""
    rng = random.Random(scene.seed)
    tint = rng.uniform(-12, 12)
    top, bottom = (tuple(value + tint for value in color) for color in PLACES[scene.place])
    far = blend(top, (60, 50, 110), 0.8) if scene.place == "at night" else blend(top, WHITE, 0.3)
    sketch = Sketch(size, top, far)
    ground = [-0.5 + 1j * scene.horizon, 0.5 + 1j * scene.horizon, 0.5 + 0.5j, -0.5 + 0.5j]
    sketch.fill(ground, bottom)
    _decorate(sketch, scene, rng)
    offsets = (0.0,) if scene.count == 1 else (-0.21, 0.21)
    for offset in offsets:
        sketch.pose(scene.shift + offset + 0.08j, scene.zoom * (1.0 if scene.count == 1 else 0.66), scene.roll)
        sketch.ellipse(0.235j, 0.22, 0.035, blend(bottom, BLACK, 0.35))
        DRAW[scene.object](sketch, RGB[scene.color])
    return sketch.finish()


def _decorate(sketch: Sketch, scene: Scene, rng: random.Random) -> None:
    """Clouds, stars, waves, grass or boards."""
    horizon = scene.horizon
    if scene.place == "under a cloudy sky":
        for _ in range(4):
            cloud = complex(rng.uniform(-0.5, 0.5), rng.uniform(-0.45, -0.15))
            for i in range(4):
                sketch.ellipse(cloud + 0.07 * i + 0.025j * (i % 2), 0.08, 0.05, (245, 246, 250))
    elif scene.place == "at night":
        sketch.ellipse(complex(0.36, -0.37), 0.065, 0.065, (240, 236, 200))
        for _ in range(16):
            sketch.ellipse(complex(rng.uniform(-0.5, 0.5), rng.uniform(-0.5, horizon)), 0.009, 0.009, (250, 250, 220))
    elif scene.place == "by the sea":
        for _ in range(8):
            wave = complex(rng.uniform(-0.5, 0.5), rng.uniform(horizon + 0.03, 0.5))
            sketch.line([wave - 0.06, wave - 0.015j, wave + 0.06], (150, 200, 230), 0.014)
    elif scene.place == "in a field":
        for _ in range(24):
            blade = complex(rng.uniform(-0.5, 0.5), rng.uniform(horizon + 0.03, 0.5))
            sketch.line([blade, blade + 0.008 - 0.04j], (70, 135, 50), 0.014)
    else:
        for i in range(3):
            board = horizon + 0.08 + 0.12 * i
            sketch.line([-0.5 + 1j * board, 0.5 + 1j * board], (125, 80, 46), 0.013)


# ----------------------------------------------------------------------------------------- objects, about 0.5 wide around 0

def _apple(sketch: Sketch, color: Color) -> None:
    for x in (-0.06, 0.06):
        sketch.ellipse(x + 0.06j, 0.15, 0.175, color)
    sketch.line([-0.09j, 0.02 - 0.2j], (90, 60, 30), 0.026)
    sketch.ellipse(0.08 - 0.16j, 0.07, 0.032, (70, 150, 60), -0.4)


def _house(sketch: Sketch, color: Color) -> None:
    sketch.fill([-0.21 - 0.05j, 0.21 - 0.05j, 0.21 + 0.23j, -0.21 + 0.23j], color)
    sketch.fill([-0.28 - 0.05j, -0.28j, 0.28 - 0.05j], blend(color, BLACK, 0.4))
    sketch.fill([-0.05 + 0.07j, 0.05 + 0.07j, 0.05 + 0.23j, -0.05 + 0.23j], (90, 60, 40))
    for x in (-0.125, 0.125):
        sketch.fill([x - 0.04 + 0.01j, x + 0.04 + 0.01j, x + 0.04 + 0.1j, x - 0.04 + 0.1j], (250, 240, 170))


def _car(sketch: Sketch, color: Color) -> None:
    sketch.fill([-0.29 + 0.04j, 0.29 + 0.04j, 0.29 + 0.18j, -0.29 + 0.18j], color)
    sketch.fill([-0.19 + 0.04j, -0.11 - 0.1j, 0.1 - 0.1j, 0.19 + 0.04j], color)
    sketch.fill([-0.14 + 0.03j, -0.09 - 0.065j, 0.08 - 0.065j, 0.14 + 0.03j], (190, 220, 240))
    for x in (-0.16, 0.16):
        sketch.ellipse(x + 0.185j, 0.07, 0.07, (25, 25, 28))
        sketch.ellipse(x + 0.185j, 0.03, 0.03, (190, 190, 195))


def _tree(sketch: Sketch, color: Color) -> None:
    sketch.fill([-0.04 + 0.02j, 0.04 + 0.02j, 0.055 + 0.24j, -0.055 + 0.24j], (105, 70, 40))
    for x in (-0.11, 0.11):
        sketch.ellipse(x - 0.01j, 0.125, 0.125, blend(color, BLACK, 0.25))
    sketch.ellipse(-0.13j, 0.16, 0.15, color)


def _ball(sketch: Sketch, color: Color) -> None:
    sketch.ellipse(0.05j, 0.19, 0.19, color)
    sketch.line(arc(0.05j, 0.19, 0.07, 0.3, 0, math.pi, 16), blend(color, WHITE, 0.5), 0.034)
    sketch.ellipse(-0.07 - 0.03j, 0.045, 0.035, WHITE)


def _flower(sketch: Sketch, color: Color) -> None:
    sketch.line([0j, 0.24j], (60, 130, 50), 0.03)
    sketch.ellipse(0.08 + 0.15j, 0.08, 0.035, (70, 150, 60), -0.4)
    for petal in arc(-0.07j, 0.115, 0.115, points=7)[:-1]:
        sketch.ellipse(petal, 0.075, 0.075, color)
    sketch.ellipse(-0.07j, 0.06, 0.06, (120, 70, 30) if color == RGB["yellow"] else (250, 215, 70))


def _boat(sketch: Sketch, color: Color) -> None:
    sketch.fill([-0.26 + 0.09j, 0.26 + 0.09j, 0.17 + 0.23j, -0.17 + 0.23j], color)
    sketch.line([0.09j, -0.27j], (90, 60, 40), 0.024)
    sketch.fill([0.02 - 0.25j, 0.02 + 0.06j, 0.21 + 0.06j], (250, 250, 245))
    sketch.fill([-0.02 - 0.19j, -0.02 + 0.06j, -0.15 + 0.06j], (228, 228, 222))


def _mug(sketch: Sketch, color: Color) -> None:
    sketch.line(arc(0.15 + 0.08j, 0.1, 0.085), blend(color, BLACK, 0.35), 0.035)
    sketch.fill([-0.16 - 0.08j, 0.16 - 0.08j, 0.14 + 0.23j, -0.14 + 0.23j], color)
    sketch.ellipse(-0.08j, 0.16, 0.045, (70, 40, 25))


def _fish(sketch: Sketch, color: Color) -> None:
    sketch.fill([0.11 + 0.06j, 0.28 - 0.06j, 0.28 + 0.18j], blend(color, BLACK, 0.35))
    sketch.ellipse(-0.03 + 0.06j, 0.2, 0.125, color)
    sketch.ellipse(-0.14 + 0.03j, 0.03, 0.03, WHITE)
    sketch.ellipse(-0.145 + 0.03j, 0.015, 0.015, BLACK)
    sketch.fill([-0.02 + 0.04j, 0.07 - 0.01j, 0.07 + 0.12j], blend(color, WHITE, 0.4))


def _star(sketch: Sketch, color: Color) -> None:
    radius = [0.24, 0.1] * 5
    angle = [math.pi * i / 5 - math.pi / 2 for i in range(10)]
    sketch.fill([0.03j + r * complex(math.cos(a), math.sin(a)) for r, a in zip(radius, angle, strict=True)], color)


DRAW = {"apple": _apple, "house": _house, "car": _car, "tree": _tree, "ball": _ball, "flower": _flower, "boat": _boat, "mug": _mug,
        "fish": _fish, "star": _star}
