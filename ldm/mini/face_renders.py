"""The faces that the miniature's face pack learns from: strangers rendered on the fly, softened and aligned.

A stranger keeps gender and geometry. Hair, skin, eyes, beard, glasses, occupation and what the view changes are random in every image,
as real people change theirs, and a group of strangers in one batch shares them: only the geometry tells its members apart.
No stranger is one of the named people.
"""

import random
from dataclasses import replace
from functools import cache

import cv2
import numpy as np

from ldm.mini.people import Character, sample_person, sample_view
from ldm.mini.portraits import Portrait, draw_portrait

SIZE, CROP = 128, 112
STRANGERS = 2_400
# Where the five key points lie in ArcFace's 112 x 112 crop (published with arXiv 1801.07698), as complex numbers.
TEMPLATE = np.array([38.2946 + 51.6963j, 73.5318 + 51.5014j, 56.0252 + 71.7366j, 41.5493 + 92.3655j, 70.7299 + 92.2041j])


@cache
def stranger(index: int) -> Character:
    """Stranger `index` below STRANGERS, with one set of attributes."""
    return sample_person(random.Random(f"stranger {index}"))


@cache
def strangers_of(gender: str) -> tuple[int, ...]:
    """Numbers of all strangers of one gender."""
    return tuple(index for index in range(STRANGERS) if stranger(index).gender == gender)


def other_attributes(person: Character, rng: random.Random) -> Character:
    """The same gender and geometry with random other attributes."""
    while (other := sample_person(rng)).gender != person.gender:
        pass
    return replace(other, geometry=person.geometry)


def alike_strangers(count: int, rng: random.Random) -> list[tuple[int, Portrait]]:
    """`count` strangers of one gender as portraits that share all attributes, each in a view of its own: (number, portrait)."""
    first = sample_person(rng)
    return [(index, draw_portrait(replace(first, geometry=stranger(index).geometry), sample_view(rng), SIZE))
            for index in rng.sample(strangers_of(first.gender), count)]


def points_of(portrait: Portrait) -> np.ndarray:
    """Five landmarks, then the face box's left top and right bottom, (7, 2) pixels."""
    return np.concatenate([portrait.landmarks, portrait.box.reshape(2, 2)])


def soften(image: np.ndarray, rng: random.Random) -> np.ndarray:
    """`image` (H, W, 3) uint8 as a small diffusion model might generate it: blurred, slightly wrong in colour, noisy, compressed."""
    height, width = image.shape[:2]
    if rng.random() < 0.75:
        kind = rng.random()
        if kind < 0.5:
            small = rng.uniform(0.28, 0.9)
            image = cv2.resize(image, None, fx=small, fy=small, interpolation=cv2.INTER_AREA)
            image = cv2.resize(image, (width, height), interpolation=rng.choice((cv2.INTER_LINEAR, cv2.INTER_CUBIC)))
        else:
            image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.7) * width / SIZE)
    pixels = image.astype(np.float32)
    generator = np.random.default_rng(rng.getrandbits(32))
    if rng.random() < 0.8:
        pixels = (pixels - 127.5) * rng.uniform(0.8, 1.15) + 127.5 + generator.normal(0, 9, 3) + rng.gauss(0, 10)
    if rng.random() < 0.4:                                                # uneven colour, as from an under-trained decoder
        spots = generator.normal(0, rng.uniform(2, 10), (4, 4, 3)).astype(np.float32)
        pixels = pixels + cv2.resize(spots, (width, height), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.4:
        pixels = pixels + generator.normal(0, rng.uniform(1, 7), pixels.shape).astype(np.float32)
    image = np.clip(pixels, 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, rng.randint(35, 95)])
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return image


def similarity_to_template(landmarks: np.ndarray) -> np.ndarray:
    """The turn, scale and shift that best carries landmarks (5, 2) to ArcFace's template in least squares, (2, 3)."""
    points = landmarks[:, 0] + 1j * landmarks[:, 1]
    centred, target = points - points.mean(), TEMPLATE - TEMPLATE.mean()
    turn = np.vdot(centred, target) / np.vdot(centred, centred).real
    shift = TEMPLATE.mean() - turn * points.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def aligned(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The face in ArcFace's position, (112, 112, 3) uint8."""
    return cv2.warpAffine(image, similarity_to_template(landmarks), (CROP, CROP))
