"""The pictures that the miniature's face pack learns from: families of strangers, drawn once, softened and aligned on the fly.

A family shares every attribute that words can name and differs in geometry, so hair and skin do not tell its members apart.
No member is one of the 200 named people.
"""

import random
from multiprocessing import Pool
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from ldm.mini.people import Person, sample_person, sample_view, stranger_like
from ldm.mini.portraits import draw_portrait
from ldm.util import write_atomically

SIZE, CROP = 128, 112
FAMILIES, MEMBERS, VIEWS = 420, 8, 10
# Where the five key points lie in ArcFace's 112 x 112 crop (published with arXiv 1801.07698), as complex numbers.
TEMPLATE = np.array([38.2946 + 51.6963j, 73.5318 + 51.5014j, 56.0252 + 71.7366j, 41.5493 + 92.3655j, 70.7299 + 92.2041j])


def family(index: int) -> list[Person]:
    """The MEMBERS people of family `index`: one set of attributes, as many geometries."""
    rng = random.Random(f"family {index}")
    first = sample_person(rng)
    return [first, *(stranger_like(first, rng) for _ in range(MEMBERS - 1))]


def _draw_family(index: int) -> tuple[np.ndarray, np.ndarray]:
    rng = random.Random(f"views of family {index}")
    portraits = [draw_portrait(person, sample_view(rng), SIZE) for person in family(index) for _ in range(VIEWS)]
    points = [np.concatenate([portrait.landmarks, portrait.box.reshape(2, 2)]) for portrait in portraits]
    return np.stack([portrait.image for portrait in portraits]), np.stack(points)


def family_pictures(work_dir: Path, workers: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of all families and the points in them; drawn on the first call.

    Returns:
        (FAMILIES, MEMBERS, VIEWS, 128, 128, 3) uint8 RGB, and (FAMILIES, MEMBERS, VIEWS, 7, 2) float32 pixels: five
        landmarks, then the face box's left top and right bottom.
    """
    pixels_path, points_path = work_dir / "families.u8", work_dir / "families.npy"
    shape = (FAMILIES, MEMBERS, VIEWS, SIZE, SIZE, 3)
    if not points_path.exists():
        work_dir.mkdir(parents=True, exist_ok=True)
        pixels, points = np.memmap(pixels_path, np.uint8, "w+", shape=shape), np.zeros((*shape[:3], 7, 2), np.float32)
        with Pool(workers) as pool:
            drawn = pool.imap(_draw_family, range(FAMILIES))
            for index, (images, found) in enumerate(tqdm(drawn, total=FAMILIES, desc="drawing families", unit="family")):
                pixels[index], points[index] = images.reshape(shape[1:]), found.reshape(*shape[1:3], 7, 2)
        pixels.flush()
        write_atomically(points_path, lambda path: np.save(path, points))
    return np.memmap(pixels_path, np.uint8, "r", shape=shape), np.load(points_path)


def soften(image: np.ndarray, rng: random.Random) -> np.ndarray:
    """`image` (H, W, 3) uint8 as a small diffusion model might draw it: blurred, slightly wrong in colour, noisy, compressed."""
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
