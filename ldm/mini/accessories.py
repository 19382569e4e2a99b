"""What a person of the miniature world wears in one image: a cap, a headband, a scarf or earrings, in any color.

The face's measures (`portraits.DrawnFace`) say where each lies; all lengths are in image widths.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ldm.mini.sketch import BLACK, RGB, WHITE, arc, blend

if TYPE_CHECKING:
    from ldm.mini.portraits import DrawnFace

SIDES = (-1, 1)


def scarf(face: DrawnFace) -> None:
    """A scarf around the neck with one loose end."""
    color, y = RGB[face.view.accessory_color], face.height + face.up
    dark = blend(color, BLACK, 0.25)
    face.sketch.fill([-0.05 + 1j * (y + 0.08), 0.06 + 1j * (y + 0.08), 0.10 + 0.6j, -0.03 + 0.6j], dark)
    face.sketch.ellipse(1j * (y + 0.035), 0.20, 0.075, color)
    face.sketch.line(arc(1j * (y + 0.0), 0.18, 0.075, 0, 0.1 * math.pi, 0.9 * math.pi, 12), dark, 0.014)


def earrings(face: DrawnFace) -> None:
    """Two round earrings below the ears."""
    color = RGB[face.view.accessory_color]
    for side in SIDES:
        lobe = complex(side * (face.width + 0.25 * face.ear) + 0.3 * face.turn, face.up + 0.035 + 1.15 * face.ear)
        face.sketch.ellipse(lobe, 0.028, 0.034, blend(color, BLACK, 0.35))
        face.sketch.ellipse(lobe - 0.004j, 0.019, 0.024, color)


def headband(face: DrawnFace) -> None:
    """A band across the top of the forehead."""
    color, half = RGB[face.view.accessory_color], face.width + 0.35 * face.volume
    edge = arc(1j * face.up, half, 0.80 * face.height, 0, 1.08 * math.pi, 1.92 * math.pi, 24)
    face.sketch.line(edge, color, 0.052)
    face.sketch.line(edge + 0.016j, blend(color, BLACK, 0.2), 0.012)


def cap(face: DrawnFace) -> None:
    """A cap with a peak, over the hair."""
    color, up = RGB[face.view.accessory_color], 1j * face.up
    half, top = face.width + 0.4 * face.volume + 0.012, face.height + 0.35 * face.volume + 0.02
    rim = -0.60j * face.height
    crown = arc(rim + up, half, top - 0.60 * face.height, 0, math.pi, 2 * math.pi, 30)
    face.sketch.fill(crown, color)
    peak = np.array([-0.80 * half, 0.80 * half, 0.62 * half + 0.042j, -0.62 * half + 0.042j]) + rim + up + face.turn
    face.sketch.fill(peak, blend(color, BLACK, 0.3))
    face.sketch.line([rim + up - half, rim + up + half], blend(color, BLACK, 0.15), 0.018)
    face.sketch.ellipse(up - 1j * top, 0.018, 0.014, blend(color, WHITE, 0.25))
