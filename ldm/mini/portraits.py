"""Renders a person of the miniature world as a portrait with its five face landmarks and its face box.

Longer than 300 lines, because all layers of a face share its measures.
"""

import math
from dataclasses import dataclass

import numpy as np

from ldm.mini import accessories
from ldm.mini.people import GEOMETRY, Character, View
from ldm.mini.sketch import BLACK, RGB, WHITE, Color, Sketch, arc, between, blend

SKIN_RGB = {"pale": (243, 209, 186), "tan": (214, 162, 118), "brown": (160, 104, 66), "dark": (98, 62, 42)}
HAIR_RGB = {"black": (30, 26, 28), "brown": (98, 60, 34), "blond": (226, 190, 104), "red": (188, 72, 30), "grey": (150, 150, 155),
            "white": (236, 234, 228)}
EYE_RGB = {"blue": (60, 120, 215), "green": (60, 160, 80), "brown": (92, 56, 28)}
SIDES = (-1, 1)


@dataclass(frozen=True)
class Portrait:
    """A rendered portrait."""

    image: np.ndarray       # (size, size, 3) uint8 RGB
    landmarks: np.ndarray   # (5, 2) pixels: left eye, right eye, nose, left and right mouth corner, as seen by the viewer
    box: np.ndarray         # (4,) pixels: left, top, right, bottom of the face from forehead to chin


def draw_portrait(person: Character, view: View, size: int = 128) -> Portrait:
    """A portrait of `person` in the given view, `size` pixels wide."""
    back = blend(RGB[view.background], WHITE, 0.12)
    sketch = Sketch(size, back, blend(back, BLACK, 0.22))
    sketch.pose(view.shift + 0.01j, 1.08 * view.zoom, view.roll)
    face = DrawnFace(person, view, sketch)
    face.back_hair()
    face.body()
    if view.accessory == "scarf":
        accessories.scarf(face)
    face.head()
    if view.accessory == "earrings":
        accessories.earrings(face)
    face.eyes_and_brows()
    face.nose()
    face.beard_below_mouth()
    face.mouth()
    face.moustache()
    face.front_hair()
    if view.accessory in ("cap", "headband"):
        getattr(accessories, view.accessory)(face)
    face.glasses()
    ramp = 1 - 0.14 * view.light * np.linspace(-1, 1, size)[None, :, None]
    lit = sketch.finish() * ramp * view.brightness * np.array([1 + view.warmth, 1, 1 - view.warmth])
    outline = sketch.pixels_of(face.outline())
    return Portrait(image=np.clip(lit, 0, 255).astype(np.uint8), landmarks=sketch.pixels_of(face.landmarks()),
                    box=np.concatenate([outline.min(0), outline.max(0)]))


class DrawnFace:
    """Measures of one face in image widths, and its layers, rendered from back to front."""

    def __init__(self, person: Character, view: View, sketch: Sketch) -> None:
        g = dict(zip(GEOMETRY, person.geometry, strict=True))
        self.person, self.view, self.sketch = person, view, sketch
        self.male = person.gender == "male"
        self.up = -0.03                                               # of the face centre over the image's
        self.width = between(0.180, 0.285, g["face_width"])           # half widths and heights
        self.height = between(0.245, 0.345, g["face_height"])
        self.jaw = between(0.52, 0.95, 0.8 * g["jaw"] + (0.2 if self.male else 0.0))
        self.square = between(2.0, 3.1, g["chin"])
        self.turn = 0.03 * view.yaw                                   # how far the features slide sideways
        self.eye_x = between(0.072, 0.134, g["eye_distance"]) * (0.8 + 0.2 * self.width / 0.23)
        self.eye_y = between(-0.085, 0.025, g["eye_height"]) + self.up
        self.eye_width = between(0.034, 0.062, g["eye_width"])
        self.eye_opening = self.eye_width * between(0.36, 0.92, g["eye_opening"])
        self.eye_tilt = between(-0.36, 0.36, g["eye_tilt"])
        self.brow_gap = between(0.016, 0.068, g["brow_height"])
        self.brow_tilt = between(-0.5, 0.5, g["brow_tilt"]) + (0.12 if view.expression == "frown" else 0.0)
        self.brow = between(0.009, 0.034, g["brow_thickness"]) * (1.1 if self.male else 0.85)
        self.nose_y = self.eye_y + 0.03 + between(0.055, 0.155, g["nose_length"])
        self.nose_width = between(0.018, 0.062, g["nose_width"])
        self.mouth_y = min(self.nose_y + between(0.042, 0.11, g["mouth_height"]), 0.86 * self.height + self.up)
        self.mouth_width = between(0.048, 0.118, g["mouth_width"]) * (1.15 if view.expression == "smile" else 1.0)
        self.lips = between(0.009, 0.038, g["lips"]) * (0.85 if self.male else 1.1)
        self.ear = between(0.024, 0.07, g["ears"])
        self.hairline = between(0.40, 0.84, g["hairline"])
        self.volume = between(0.015, 0.085, g["hair_volume"])
        self.parting = (g["hairline"] - 0.5) * self.width
        self.skin = _tinted(SKIN_RGB[person.skin], (255, 190, 160), (150, 110, 60), g["skin_tint"], 0.22)
        self.shade = blend(self.skin, (60, 20, 10), 0.22)
        self.dark = blend(self.skin, (40, 12, 6), 0.5)
        self.hair = _tinted(HAIR_RGB[person.hair_color], (255, 240, 200), (20, 10, 10), g["hair_tint"], 0.35)
        self.hair_dark, self.hair_light = blend(self.hair, BLACK, 0.3), blend(self.hair, WHITE, 0.2)
        self.beard_color = blend(self.hair, (50, 35, 25), 0.15)
        lips = blend(self.skin, (190, 60, 60), 0.5 if self.male else 0.8)
        self.lip_color = blend(lips, (120, 20, 60), 0.45 * g["lip_tint"])
        self.iris = blend(EYE_RGB[person.eye_color], (20, 20, 20), 0.3 * g["iris_tint"])
        self.lit_side = 1 if view.light > 0 else -1

    def outline(self, scale: float = 1.0, start: float = 0.0, end: float = 2 * math.pi) -> np.ndarray:
        """The head: an ellipse above, a superellipse that narrows to the jaw below."""
        t = np.linspace(start, end, 60)
        cos, sin = np.cos(t), np.sin(t)
        power = np.where(sin > 0, 2 / self.square, 1.0)
        x, y = np.sign(cos) * np.abs(cos) ** power, np.sign(sin) * np.abs(sin) ** power
        x = x * np.where(sin > 0, 1 + (self.jaw - 1) * np.abs(y) ** 1.3, 1.0)
        return (x * self.width + 1j * y * self.height) * scale + 1j * self.up

    def landmarks(self) -> np.ndarray:
        corner = self._mouth_curve(1.0)
        return np.array([complex(self.turn - self.eye_x, self.eye_y), complex(self.turn + self.eye_x, self.eye_y),
                         complex(1.5 * self.turn, self.nose_y),
                         complex(self.turn - self.mouth_width, corner), complex(self.turn + self.mouth_width, corner)])

    # ---- behind the face

    def back_hair(self) -> None:
        style, sketch, up = self.person.hair_style, self.sketch, 1j * self.up
        if style in ("long", "bob"):
            width, length = self.width + self.volume + 0.025, 1.45 if style == "long" else 0.75
            sketch.fill(arc(up - 0.05j, width, self.height + self.volume), self.hair_dark)
            sketch.fill([up - width - 0.05j, up - 1.08 * width + 1j * length * self.height,
                         up + 1.08 * width + 1j * length * self.height, up + width - 0.05j], self.hair_dark)
        elif style == "curly":
            around = arc(up, self.width + 0.5 * self.volume, self.height + 0.4 * self.volume, 0, 0.88 * math.pi, 2.12 * math.pi, 15)
            for i, center in enumerate(around):
                radius = 0.05 + 0.6 * self.volume
                sketch.ellipse(center, radius, radius, self.hair_dark if i % 2 else self.hair)
        elif style == "bun":
            sketch.ellipse(up - 1j * (self.height + self.volume + 0.035), 0.085 + 0.4 * self.volume, 0.075 + 0.3 * self.volume, self.hair)

    def body(self) -> None:
        sketch, neck = self.sketch, 0.075 + 0.02 * self.jaw + (0.025 if self.male else 0.0)
        chin = self.height + self.up
        cloth, trim = self._clothes()
        shoulders = [-0.6 + 0.8j, -0.5 + 1j * (chin + 0.17), -neck - 0.03 + 1j * (chin + 0.06), neck + 0.03 + 1j * (chin + 0.06),
                     0.5 + 1j * (chin + 0.17), 0.6 + 0.8j]
        sketch.fill(shoulders, cloth)
        sketch.fill([-neck + 1j * (chin - 0.12), -neck + 1j * (chin + 0.07), 1j * (chin + 0.12), neck + 1j * (chin + 0.07),
                     neck + 1j * (chin - 0.12)], self.shade)
        self._uniform(chin, neck, trim)
        for side in SIDES:
            ear = complex(side * (self.width + 0.25 * self.ear) + 0.3 * self.turn, self.up + 0.01)
            sketch.ellipse(ear, 0.75 * self.ear, 1.15 * self.ear, self.shade)
            sketch.ellipse(ear, 0.4 * self.ear, 0.7 * self.ear, self.dark)

    def _clothes(self) -> tuple[Color, Color]:
        """Main colour and trim by occupation; painter, singer, writer and athlete wear the view's colour."""
        free = RGB[self.view.clothes]
        return {"actor": (RGB["black"], RGB["white"]), "doctor": (RGB["white"], (90, 190, 200)), "chef": (RGB["white"], RGB["red"]),
                "pilot": ((30, 42, 90), RGB["yellow"]), "painter": (RGB["white"], (40, 60, 130)), "singer": (free, (50, 50, 55)),
                "writer": (free, blend(free, BLACK, 0.35)), "athlete": (free, WHITE)}[self.person.occupation]

    def _uniform(self, chin: float, neck: float, trim: Color) -> None:
        """The mark of the occupation, rendered over the chest."""
        sketch, occupation, y = self.sketch, self.person.occupation, chin + 0.10
        if occupation == "actor":                                                       # shirt front and bow tie
            sketch.fill([-0.09 + 1j * (y - 0.02), 0.09 + 1j * (y - 0.02), 0.4j + 1j * y], trim)
            for side in SIDES:
                sketch.fill([1j * (y + 0.04), side * 0.085 + 1j * y, side * 0.085 + 1j * (y + 0.08)], RGB["red"])
        elif occupation == "doctor":                                                    # stethoscope
            sketch.line(arc(1j * (y - 0.03), neck + 0.05, 0.14, 0, 0.05 * math.pi, 0.95 * math.pi), trim, 0.022)
            sketch.ellipse(0.02 + 1j * (y + 0.115), 0.035, 0.035, (120, 125, 130))
        elif occupation == "chef":                                                      # neckerchief and buttons
            sketch.fill([-neck - 0.04 + 1j * (y - 0.045), neck + 0.04 + 1j * (y - 0.045), 1j * (y + 0.07)], trim)
            for side in SIDES:
                sketch.ellipse(side * 0.12 + 1j * (y + 0.07), 0.017, 0.017, BLACK)
        elif occupation == "pilot":                                                     # epaulettes and tie
            for side in SIDES:
                sketch.line([side * 0.24 + 1j * (y + 0.0), side * 0.42 + 1j * (y + 0.06)], trim, 0.035)
            sketch.fill([-0.035 + 1j * y, 0.035 + 1j * y, 0.05 + 1j * (y + 0.3), -0.05 + 1j * (y + 0.3)], trim)
        elif occupation == "painter":                                                   # sailor stripes
            for row in range(4):
                dy = y + 0.035 + 0.05 * row
                sketch.line([complex(-0.6, dy + 0.06), complex(-0.2, dy), complex(0.2, dy), complex(0.6, dy + 0.06)], trim, 0.02)
        elif occupation == "singer":                                                    # microphone
            sketch.line([-0.24 + 0.56j, -0.19 + 0.42j], trim, 0.035)
            sketch.ellipse(-0.18 + 0.39j, 0.055, 0.05, (95, 95, 102))
        elif occupation == "writer":                                                    # turtleneck
            sketch.fill([-neck - 0.02 + 1j * (y - 0.06), neck + 0.02 + 1j * (y - 0.06), neck + 0.03 + 1j * (y + 0.03),
                         -neck - 0.03 + 1j * (y + 0.03)], trim)
        else:                                                                           # athlete: a sash
            sketch.line([-0.34 + 1j * (y - 0.02), 0.12 + 1j * (y + 0.3)], trim, 0.07)

    # ---- the face

    def head(self) -> None:
        self.sketch.fill(self.outline(), self.shade)
        self.sketch.fill((self.outline() - 1j * self.up) * 0.965 + 1j * self.up + 0.01 * self.lit_side + 0.3 * self.turn, self.skin)
        for side in SIDES:
            cheek = complex(side * 0.55 * self.width + self.turn, 0.085 + self.up)
            self.sketch.ellipse(cheek, 0.042, 0.03, blend(self.skin, (230, 90, 80), 0.13 if self.male else 0.22))

    def eyes_and_brows(self) -> None:
        sketch, width, opening = self.sketch, self.eye_width, self.eye_opening
        brow_color = blend(self.hair_dark if self.person.hair_color in ("white", "blond") else self.hair, (40, 25, 20), 0.35)
        for side in SIDES:
            eye, tilt = complex(side * self.eye_x + self.turn, self.eye_y), -side * self.eye_tilt
            sketch.ellipse(eye, 1.14 * width, 1.22 * opening, self.shade, tilt)
            sketch.ellipse(eye, width, opening, (250, 250, 248), tilt)
            iris, pupil = min(0.95 * opening, 0.62 * width), eye + 0.3 * self.view.gaze * width
            sketch.ellipse(pupil, iris, iris, self.iris)
            sketch.ellipse(pupil, 0.48 * iris, 0.48 * iris, (15, 12, 12))
            lid = arc(eye, 1.05 * width, 1.05 * opening, tilt, math.pi, 2 * math.pi, 12)
            sketch.line(lid, blend(self.skin, (20, 8, 4), 0.75) if self.male else (30, 18, 14), 0.010 if self.male else 0.015)
            brow = eye - 1j * (opening + self.brow_gap)
            slope = 0.035j * self.brow_tilt
            sketch.line([brow - side * 1.25 * width + slope, brow - 0.014j, brow + side * 1.25 * width - slope], brow_color, self.brow)

    def nose(self) -> None:
        sketch, tip, wing = self.sketch, complex(1.5 * self.turn, self.nose_y), self.nose_width
        bridge = complex(1.2 * self.turn - 0.012 * self.lit_side, self.eye_y + 0.02)
        sketch.fill([bridge, tip + 0.9 * self.lit_side * wing, tip + 0.008j], blend(self.skin, self.shade, 0.8))
        sketch.line([tip - wing - 0.006j, tip - 0.55 * wing + 0.012j, tip + 0.016j, tip + 0.55 * wing + 0.012j, tip + wing - 0.006j],
                    self.dark, 0.012)

    def _mouth_curve(self, u: np.ndarray | float) -> np.ndarray | float:
        """Height of the line between the lips at u = -1 (left corner) .. 1 (right corner)."""
        bend = {"neutral": 0.0, "smile": 0.034, "open": 0.012, "frown": -0.026}[self.view.expression]
        return self.mouth_y - bend * np.abs(u) ** 2

    def mouth(self) -> None:
        sketch, lips, center = self.sketch, self.lips, complex(self.turn, self.mouth_y)
        if self.view.expression == "open":
            sketch.ellipse(center + 0.008j, 0.7 * self.mouth_width, 0.8 * lips + 0.022, self.lip_color)
            sketch.ellipse(center + 0.008j, 0.55 * self.mouth_width, 0.022, (70, 15, 20))
            return
        u = np.linspace(-1, 1, 9)
        x, line, thick = self.turn + u * self.mouth_width, self._mouth_curve(u), 1 - u * u
        upper, lower = x + 1j * (line - 0.75 * lips * thick), x + 1j * (line + 1.2 * lips * thick)
        sketch.fill(np.concatenate([upper, lower[::-1]]), self.lip_color)
        if self.view.expression == "smile":
            teeth = self.turn + 0.8 * (x - self.turn)
            upper, lower = teeth + 1j * (line - 0.2 * lips * thick), teeth + 1j * (line + (0.55 * lips + 0.006) * thick)
            sketch.fill(np.concatenate([upper, lower[::-1]]), (248, 246, 240))
        else:
            sketch.line(x + 1j * line, blend(self.lip_color, (40, 0, 0), 0.55), 0.009)

    def beard_below_mouth(self) -> None:
        mouth, center = self.mouth_y - self.up, complex(self.turn, self.mouth_y)
        if self.person.beard == "beard":
            inner = [0.80 * self.width + 0.02j, 0.6 * self.width + 1j * (mouth - 0.045), 0.3 * self.width + 1j * (mouth - 0.055)]
            inner = np.array(inner + [-point.conjugate() for point in inner[::-1]]) + 1j * self.up
            self.sketch.fill(np.concatenate([self.outline(1.04, -0.02, math.pi + 0.02), inner[::-1]]), self.beard_color)
        elif self.person.beard == "goatee":
            below = (self.height + self.up - self.mouth_y) / 2
            self.sketch.ellipse(center + 1j * (below + 0.025), 0.75 * self.mouth_width, below + 0.03, self.beard_color)

    def moustache(self) -> None:
        if self.person.beard in ("moustache", "beard"):
            top, half = complex(self.turn, self.mouth_y - 0.6 * self.lips - 0.014), 1.1 * self.mouth_width
            wing = [half + 0.022j, 0.6 * half - 0.018j, -0.008j, -0.6 * half - 0.018j, -half + 0.022j, -0.5 * half + 0.012j, 0.010j,
                    0.5 * half + 0.012j]
            self.sketch.fill(top + np.array(wing), blend(self.beard_color, BLACK, 0.12))

    # ---- in front of the face

    def _hair_cap(self, lift: float, hairline: float, color: Color) -> None:
        """Hair on the skull from the top of the head down to the hairline."""
        t = np.linspace(0, math.pi, 21)
        edge = 1.03 * self.width * np.cos(t) + 1j * self.height * (-hairline - 0.18 * np.sin(t) + 0.34 * np.abs(np.cos(t)) ** 3)
        skull = arc(0j, 1.03 * (self.width + 0.55 * self.volume), 1.03 * (self.height + lift), 0, math.pi, 2 * math.pi, 30)
        self.sketch.fill(np.concatenate([skull, edge]) + 1j * self.up, color)

    def front_hair(self) -> None:
        sketch, style, up, width, height = self.sketch, self.person.hair_style, 1j * self.up, self.width, self.height
        if style == "bald":
            sketch.ellipse(complex(self.turn - 0.05 * self.lit_side, self.up - 0.75 * height), 0.05, 0.025, blend(self.skin, WHITE, 0.35))
        elif style == "short":
            self._hair_cap(0.6 * self.volume, self.hairline, self.hair)
            shine = arc(up - 0.02 - 0.8j * height, 0.6 * width, 0.14 * height, 0, 1.1 * math.pi, 1.6 * math.pi, 8)
            sketch.line(shine, self.hair_light, 0.014)
        elif style == "spiky":
            self._hair_cap(0.3 * self.volume, self.hairline, self.hair)
            for i, u in enumerate(np.linspace(-1, 1, 9)):
                root = complex(0.95 * u * width, self.up - math.sqrt(1 - (0.93 * u) ** 2) * height + 0.02)
                tip = complex(1.12 * root.real, root.imag - 0.055 - 1.2 * self.volume)
                sketch.fill([root - 0.04 + 0.03j, tip, root + 0.04 + 0.03j], self.hair if i % 2 else self.hair_light)
        elif style == "curly":
            self._hair_cap(0.3 * self.volume, min(0.9, self.hairline + 0.12), self.hair)
            fringe = arc(up - 0.01j, 0.92 * width, height * (0.28 * self.hairline + 0.72), 0, 1.1 * math.pi, 1.9 * math.pi, 9)
            for i, center in enumerate(fringe):
                radius = 0.042 + 0.35 * self.volume
                sketch.ellipse(center, radius, radius, self.hair_light if i % 3 == 0 else self.hair)
        elif style == "bun":
            self._hair_cap(0.35 * self.volume, self.hairline + 0.04, self.hair)
            for side in SIDES:
                sketch.line([up - 1.05j * height, up + 0.6 * side * width - 0.72j * height], self.hair_light, 0.012)
        else:
            self._curtains(0.5 if style == "bob" else 0.9)

    def _curtains(self, length: float) -> None:
        """Long hair and bob: two halves that fall from the parting past the cheeks."""
        width, height, top = self.width + 0.7 * self.volume + 0.012, self.height, -self.height - 0.8 * self.volume
        for side in SIDES:
            lock = [self.parting + 1j * (top + 0.01), side * 0.6 * width + 1j * (top + 0.035), side * 0.98 * width - 0.45j * height,
                    side * 1.03 * width + 1j * length * height, side * 0.93 * self.width + 0.8j * length * height,
                    side * 0.92 * self.width - 0.05j, side * 0.62 * self.width + 0.3 * self.parting - 1j * (self.hairline - 0.1) * height,
                    self.parting - 0.80j * height]
            self.sketch.fill(np.array(lock) + 1j * self.up, self.hair)
            shine = [self.parting + 0.02 * side + 1j * (top + 0.04), side * 0.65 * width - 0.62j * height, side * 0.95 * width - 0.02j]
            self.sketch.line(np.array(shine) + 1j * self.up, self.hair_light, 0.012)

    def glasses(self) -> None:
        if self.person.glasses == "no glasses":
            return
        half, color = max(1.35 * self.eye_width, 0.06), (28, 28, 34)
        apart = max(self.eye_x, half + 0.012)
        for side in SIDES:
            center = complex(side * apart + self.turn, self.eye_y)
            if self.person.glasses == "round glasses":
                self.sketch.line(arc(center, half, half, points=24), color, 0.017)
            else:
                corners = np.array([-1 - 0.7j, 1 - 0.7j, 1 + 0.7j, -1 + 0.7j, -1 - 0.7j])
                self.sketch.line(center + half * corners, color, 0.017)
            self.sketch.line([center + side * half - 0.01j, complex(0.99 * side * self.width, self.eye_y - 0.015)], color, 0.013)
        bridge = complex(self.turn, self.eye_y - 0.008)
        self.sketch.line([bridge - (apart - half), bridge + (apart - half)], color, 0.015)


def _tinted(color: Color, warm: Color, cold: Color, t: float, strength: float) -> Color:
    """A personal tint: towards `warm` for t above one half, towards `cold` below."""
    return blend(color, warm if t > 0.5 else cold, 2 * strength * abs(t - 0.5))
