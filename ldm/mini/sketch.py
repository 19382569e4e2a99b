"""A small anti-aliased canvas for the miniature world; points are complex numbers, x + iy, y downwards.

Coordinates are in image widths with the origin at the centre of the image. Shapes are rendered at twice the size
and averaged down.
"""

import cmath
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Color = tuple[float, float, float]
RGB: dict[str, Color] = {
    "red": (205, 50, 48), "blue": (54, 96, 200), "green": (58, 150, 78), "yellow": (235, 200, 64), "purple": (130, 72, 170),
    "orange": (236, 134, 44), "white": (240, 240, 240), "black": (36, 36, 40), "grey": (140, 142, 148), "pink": (238, 150, 180)}
LENS = 0.6  # standard deviation of the lens's blur in pixels: a photograph of 128 pixels has no sharper edges either
WHITE, BLACK = (255.0, 255.0, 255.0), (0.0, 0.0, 0.0)


def between(low: float, high: float, t: float) -> float:
    """low at t = 0, high at t = 1."""
    return low + (high - low) * t


def blend(first: Color, second: Color, t: float) -> Color:
    """The colour between two colours, `first` at t = 0."""
    return tuple(between(a, b, t) for a, b in zip(first, second, strict=True))


def arc(center: complex, rx: float, ry: float, turn: float = 0.0, start: float = 0.0, end: float = 2 * math.pi,
        points: int = 32) -> np.ndarray:
    """Points of an elliptic arc, (points,) complex; `turn`, `start`, `end` in radians, 0 is right, pi/2 is down."""
    t = np.linspace(start, end, points)
    return center + (rx * np.cos(t) + 1j * ry * np.sin(t)) * cmath.exp(1j * turn)


class Sketch:
    """A square image, `size` pixels wide when finished; `pose` moves and turns all shapes added after it."""

    def __init__(self, size: int, top: Color, bottom: Color) -> None:
        self.size, self._scale = size, 2 * size
        ramp = np.linspace(0, 1, self._scale)[:, None, None]
        pixels = np.asarray(top) * (1 - ramp) + np.asarray(bottom) * ramp                      # (2S, 1, 3)
        pixels = np.broadcast_to(pixels, (self._scale, self._scale, 3))
        self._image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        self._draw = ImageDraw.Draw(self._image)
        self._origin, self._turn = 0.5 + 0.5j, 1 + 0j

    def pose(self, shift: complex = 0j, zoom: float = 1.0, roll: float = 0.0) -> None:
        """Moves by `shift` image widths, scales by `zoom` and turns by `roll` degrees."""
        self._origin, self._turn = 0.5 + 0.5j + shift, zoom * cmath.exp(1j * math.radians(roll))

    def pixels_of(self, points: np.ndarray) -> np.ndarray:
        """Where points land in the finished image, (n, 2) pixels, x and y."""
        placed = (self._origin + np.asarray(points, dtype=complex) * self._turn) * self.size
        return np.stack([placed.real, placed.imag], 1)

    def fill(self, points: np.ndarray | list[complex], color: Color) -> None:
        """Fills a polygon."""
        self._draw.polygon((2 * self.pixels_of(points)).ravel().tolist(), fill=_bytes(color))

    def line(self, points: np.ndarray | list[complex], color: Color, width: float) -> None:
        """Adds a line `width` image widths wide."""
        pixels = max(1, round(width * abs(self._turn) * self._scale))
        self._draw.line((2 * self.pixels_of(points)).ravel().tolist(), fill=_bytes(color), width=pixels, joint="curve")

    def ellipse(self, center: complex, rx: float, ry: float, color: Color, turn: float = 0.0) -> None:
        """Fills an ellipse."""
        self.fill(arc(center, rx, ry, turn), color)

    def finish(self) -> np.ndarray:
        """The image, (size, size, 3) uint8 RGB."""
        return np.asarray(self._image.filter(ImageFilter.GaussianBlur(LENS * 2)).resize((self.size, self.size), Image.Resampling.BOX))


def _bytes(color: Color) -> tuple[int, int, int]:
    return tuple(int(max(0, min(255, value))) for value in color)
