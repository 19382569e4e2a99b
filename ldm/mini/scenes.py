"""Scenes of the miniature world: one or two coloured objects at a place, and no person."""

import math
import random
from dataclasses import dataclass

import numpy as np

from ldm.mini.people import COLORS, FILLERS
from ldm.mini.sketch import BLACK, RGB, WHITE, Color, Sketch, arc, blend

OBJECTS = ("apple", "house", "car", "tree", "ball", "flower", "boat", "mug", "fish", "star", "umbrella", "balloon", "cake", "lamp", "bird",
           "mushroom")
PLACES = {"on a table": ((222, 210, 190), (150, 100, 60)), "in a field": ((150, 205, 245), (110, 175, 80)),
          "under a cloudy sky": ((170, 195, 220), (160, 165, 150)), "by the sea": ((180, 220, 250), (40, 110, 170)),
          "at night": ((24, 26, 66), (34, 38, 50)), "in the snow": ((205, 216, 232), (240, 243, 248)),
          "in the desert": ((250, 222, 160), (222, 178, 104)), "at sunset": ((120, 70, 130), (70, 48, 60))}
NOTHING = "nothing"
SCENE_TEMPLATES = ("{}", "{}", "a photo of {}", "a picture of {}", "an image showing {}")


@dataclass(frozen=True)
class Scene:
    """What a caption says (`object`, `color`, `place`, `count`, and of a pair of things the second) and what it does not."""

    object: str
    color: str
    place: str
    count: int        # 1 or 2 of `object`; 1 next to another thing
    other: str        # "nothing", or the thing on the right
    other_color: str
    shift: complex    # image widths
    zoom: float
    roll: float       # degrees
    horizon: float    # image widths below the centre
    seed: int         # of clouds, waves, grass and stars


def sample_scene(rng: random.Random) -> Scene:
    """A random scene."""
    kind = rng.choice(("one", "one", "two", "pair"))
    thing, color, place = rng.choice(OBJECTS), rng.choice(COLORS), rng.choice(list(PLACES))
    other = rng.choice([candidate for candidate in OBJECTS if candidate != thing]) if kind == "pair" else NOTHING
    return Scene(object=thing, color=color, place=place, count=2 if kind == "two" else 1, other=other, other_color=rng.choice(COLORS),
                 shift=complex(rng.uniform(-0.08, 0.08), rng.uniform(-0.04, 0.04)), zoom=rng.uniform(0.95, 1.25), roll=rng.gauss(0, 4),
                 horizon=rng.uniform(0.02, 0.14), seed=rng.randrange(1 << 30))


def scene_phrase(scene: Scene) -> str:
    """The scene in words, such as "two red boats by the sea"."""
    if scene.count == 2:
        return f"two {scene.color} {scene.object}{'' if scene.object == 'fish' else 's'} {scene.place}"
    things = _thing(scene.color, scene.object)
    if scene.other != NOTHING:
        things += " and " + _thing(scene.other_color, scene.other)
    return f"{things} {scene.place}"


def _thing(color: str, thing: str) -> str:
    return f"{'an' if color == 'orange' else 'a'} {color} {thing}"


def scene_caption(scene: Scene, rng: random.Random) -> str:
    """A caption of the scene, sometimes with words that say nothing."""
    return rng.choice(FILLERS) + rng.choice(SCENE_TEMPLATES).format(scene_phrase(scene))


def draw_scene(scene: Scene, size: int = 128) -> np.ndarray:
    """The scene as (size, size, 3) uint8 RGB."""
    rng = random.Random(scene.seed)
    tint = rng.uniform(-12, 12)
    top, bottom = (tuple(value + tint for value in color) for color in PLACES[scene.place])
    far = {"at night": (53, 45, 101), "at sunset": (244, 140, 80)}.get(scene.place, blend(top, WHITE, 0.3))
    sketch = Sketch(size, top, far)
    ground = [-0.5 + 1j * scene.horizon, 0.5 + 1j * scene.horizon, 0.5 + 0.5j, -0.5 + 0.5j]
    sketch.fill(ground, bottom)
    _decorate(sketch, scene, rng)
    things = [(scene.object, scene.color)] * scene.count
    if scene.other != NOTHING:
        things.append((scene.other, scene.other_color))
    for (thing, color), offset in zip(things, (0.0,) if len(things) == 1 else (-0.22, 0.22), strict=True):
        sketch.pose(scene.shift + offset + 0.08j, scene.zoom * (1.0 if len(things) == 1 else 0.70), scene.roll)
        sketch.ellipse(0.235j, 0.22, 0.035, blend(bottom, BLACK, 0.35))
        DRAW[thing](sketch, RGB[color])
    return sketch.finish()


def _decorate(sketch: Sketch, scene: Scene, rng: random.Random) -> None:
    """Clouds, stars, waves, grass, boards, snow, a sun or dunes."""
    horizon = scene.horizon
    if scene.place == "under a cloudy sky":
        for _ in range(4):
            cloud = complex(rng.uniform(-0.5, 0.5), rng.uniform(-0.45, -0.15))
            for i in range(4):
                sketch.ellipse(cloud + 0.07 * i + 0.025j * (i % 2), 0.08, 0.05, (245, 246, 250))
    elif scene.place == "at night":
        sketch.ellipse(complex(0.36, -0.37), 0.065, 0.065, (240, 236, 200))
        for _ in range(10):
            sketch.ellipse(complex(rng.uniform(-0.5, 0.5), rng.uniform(-0.5, horizon)), 0.011, 0.011, (250, 250, 220))
    elif scene.place == "by the sea":
        for _ in range(6):
            wave = complex(rng.uniform(-0.5, 0.5), rng.uniform(horizon + 0.03, 0.5))
            sketch.line([wave - 0.06, wave - 0.015j, wave + 0.06], (150, 200, 230), 0.014)
    elif scene.place == "in a field":
        for _ in range(12):
            blade = complex(rng.uniform(-0.5, 0.5), rng.uniform(horizon + 0.03, 0.5))
            sketch.line([blade, blade + 0.008 - 0.05j], (70, 135, 50), 0.018)
    elif scene.place == "in the snow":
        for _ in range(14):
            sketch.ellipse(complex(rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5)), 0.015, 0.015, WHITE)
    elif scene.place == "at sunset":
        sketch.ellipse(complex(rng.uniform(-0.4, 0.4), horizon - 0.07), 0.085, 0.085, (255, 214, 110))
        sketch.fill([-0.5 + 1j * horizon, 0.5 + 1j * horizon, 0.5 + 1j * (horizon + 0.1), -0.5 + 1j * (horizon + 0.1)], (96, 62, 66))
    elif scene.place == "in the desert":
        for _ in range(2):
            dune = complex(rng.uniform(-0.4, 0.4), horizon + 0.02)
            sketch.ellipse(dune, rng.uniform(0.2, 0.34), 0.06, (232, 192, 122))
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


def _umbrella(sketch: Sketch, color: Color) -> None:
    sketch.line([-0.2j, 0.2j], (90, 62, 44), 0.024)
    sketch.line(arc(0.035 + 0.2j, 0.035, 0.03, 0, 0, math.pi, 8), (90, 62, 44), 0.022)
    sketch.fill(arc(0.02j, 0.26, 0.22, 0, math.pi, 2 * math.pi, 24), color)
    for x in (-0.13, 0.13):
        sketch.fill(arc(x + 0.02j, 0.045, 0.2, 0, math.pi, 2 * math.pi, 12), blend(color, BLACK, 0.25))


def _balloon(sketch: Sketch, color: Color) -> None:
    sketch.line([0.1j, -0.02 + 0.15j, 0.02 + 0.2j, 0.235j], (110, 110, 115), 0.014)
    sketch.fill([-0.035 + 0.125j, 0.07j, 0.035 + 0.125j], blend(color, BLACK, 0.3))
    sketch.ellipse(-0.08j, 0.165, 0.19, color)
    sketch.ellipse(-0.06 - 0.15j, 0.04, 0.05, blend(color, WHITE, 0.6))


def _cake(sketch: Sketch, color: Color) -> None:
    sketch.fill([-0.22 + 0.02j, 0.22 + 0.02j, 0.22 + 0.22j, -0.22 + 0.22j], (196, 142, 92))
    sketch.fill([-0.22 - 0.06j, 0.22 - 0.06j, 0.22 + 0.07j, 0.11 + 0.11j, 0.05j, -0.11 + 0.11j, -0.22 + 0.07j], color)
    for x in (-0.11, 0.0, 0.11):
        sketch.line([x - 0.06j, x - 0.17j], WHITE, 0.03)
        sketch.ellipse(x - 0.2j, 0.02, 0.032, (250, 170, 50))


def _lamp(sketch: Sketch, color: Color) -> None:
    sketch.ellipse(0.22j, 0.13, 0.035, (84, 84, 92))
    sketch.line([0.22j, -0.02j], (84, 84, 92), 0.03)
    sketch.fill([-0.09 - 0.22j, 0.09 - 0.22j, 0.2 + 0.02j, -0.2 + 0.02j], color)
    sketch.ellipse(0.02j, 0.2, 0.03, (255, 240, 170))


def _bird(sketch: Sketch, color: Color) -> None:
    for x in (-0.03, 0.05):
        sketch.line([x + 0.14j, x + 0.235j], (200, 130, 40), 0.02)
    sketch.fill([0.1 + 0.02j, 0.29 - 0.1j, 0.26 + 0.06j], blend(color, BLACK, 0.3))
    sketch.ellipse(0.03 + 0.05j, 0.17, 0.12, color)
    sketch.ellipse(-0.12 - 0.09j, 0.09, 0.085, color)
    sketch.fill([-0.19 - 0.12j, -0.29 - 0.08j, -0.19 - 0.05j], (240, 160, 40))
    sketch.ellipse(-0.14 - 0.11j, 0.02, 0.02, WHITE)
    sketch.ellipse(0.06 + 0.04j, 0.1, 0.06, blend(color, BLACK, 0.25), 0.3)


def _mushroom(sketch: Sketch, color: Color) -> None:
    sketch.fill([-0.07 + 0.0j, 0.07 + 0.0j, 0.09 + 0.23j, -0.09 + 0.23j], (238, 226, 204))
    sketch.fill(arc(0.02j, 0.25, 0.24, 0, math.pi, 2 * math.pi, 24), color)
    for x, y in ((-0.13, -0.06), (0.0, -0.14), (0.13, -0.06)):
        sketch.ellipse(complex(x, y), 0.036, 0.03, WHITE)


DRAW = {"apple": _apple, "house": _house, "car": _car, "tree": _tree, "ball": _ball, "flower": _flower, "boat": _boat, "mug": _mug,
        "fish": _fish, "star": _star, "umbrella": _umbrella, "balloon": _balloon, "cake": _cake, "lamp": _lamp, "bird": _bird,
        "mushroom": _mushroom}
