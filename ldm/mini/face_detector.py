"""The miniature's face detector: a small network with SCRFD's outputs (arXiv 2105.04714), key points included."""

import random
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.mini.face_layers import Block, calibrated
from ldm.mini.face_renders import SIZE, points_of, soften
from ldm.mini.people import sample_person, sample_view
from ldm.mini.portraits import draw_portrait
from ldm.mini.scenes import draw_scene, sample_scene
from ldm.mini.stage import train_stage

ANCHORS = {8: (16, 32), 16: (64, 128), 32: (256, 512)}    # stride -> sizes in pixels of the faces that its two anchors find
OUTPUTS = 15                                              # of an anchor: score, 4 box distances, 5 key points
STEPS = 6500
SCENE_SHARE = 0.45         # of the images that show no face


class FaceDetector(nn.Module):
    """Images (B, 3, H, W), (RGB - 127.5) / 128 -> (B, N, 15) of all anchors, by stride, row, column, anchor.

    An anchor's numbers: score before the sigmoid, distances to left, top, right and bottom of the face, and x, y of the
    five key points, all seen from its cell's corner (column, row) * stride and in strides.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
                                  nn.Conv2d(16, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.levels = nn.ModuleList([Block(24, 32, 2), nn.Sequential(Block(32, 48, 2), Block(48, 48)), Block(48, 48, 2)])
        self.heads = nn.ModuleList([nn.Conv2d(width, 2 * OUTPUTS, 1) for width in (32, 48, 48)])
        for head in self.heads:
            nn.init.constant_(head.bias, 0.0)
            nn.init.constant_(head.bias[::OUTPUTS], -4.0)                         # faces are rare
        for stride, sizes in ANCHORS.items():
            scale = torch.tensor([[1.0] + [size / stride] * (OUTPUTS - 1) for size in sizes])
            self.register_buffer(f"scale{stride}", scale, persistent=False)       # (2, 15)

    def levels_of(self, images: Tensor) -> list[Tensor]:
        """Outputs of the three strides, (B, cells * 2, 15) each."""
        x, found = self.stem(images), []
        for stride, level, head in zip(ANCHORS, self.levels, self.heads, strict=True):
            x = level(x)
            cells = head(x).permute(0, 2, 3, 1).float().reshape(images.shape[0], -1, 2, OUTPUTS)
            found.append((cells * self.get_buffer(f"scale{stride}")).flatten(1, 2))
        return found

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat(self.levels_of(images), 1)


@cache
def _anchors(side: int) -> np.ndarray:
    """x, y, stride, size of every anchor of a square image, (N, 4), in the network's order."""
    rows = [(column * stride, row * stride, stride, size) for stride, sizes in ANCHORS.items()
            for row in range(side // stride) for column in range(side // stride) for size in sizes]
    return np.array(rows, np.float32)


def targets(points: np.ndarray | None, side: int) -> np.ndarray:
    """What the anchors of a square image should say, (N, 15); column 0 is 1 for a face, 0 for none, -1 where it does not matter.

    Args:
        points: (7, 2) five landmarks and the corners of the face box in pixels, or None where there is no face.
    """
    anchors = _anchors(side)
    wanted = np.zeros((len(anchors), OUTPUTS), np.float32)
    if points is None:
        return wanted
    corner, stride = anchors[:, :2], anchors[:, 2:3]
    low, high = points[5], points[6]
    away = np.abs((corner - (low + high) / 2) / (high - low)).max(1)              # 0.5 on the box's edge
    misfit = np.abs(np.log2(np.sqrt((high - low).prod()) / anchors[:, 3]))        # octaves
    wanted[(away < 0.4) & (misfit < 1.3), 0] = -1
    wanted[(away < 0.2) & (misfit < 0.75), 0] = 1
    wanted[:, 1:3], wanted[:, 3:5] = (corner - low) / stride, (high - corner) / stride
    wanted[:, 5:] = ((points[None, :5] - corner[:, None]) / stride[:, None]).reshape(-1, 10)
    return wanted


def detection_loss(found: Tensor, wanted: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Focal loss of the scores (arXiv 1708.02002) and L1 of box and key points in anchor sizes, each a scalar.

    Args:
        found, wanted: (B, N, 15), as FaceDetector gives and as `targets` gives.
    """
    anchors = torch.from_numpy(_anchors(side)).to(found.device)
    face, counted = wanted[..., 0] == 1, wanted[..., 0] >= 0
    label, logit = face.float(), found[..., 0]
    wrong = (label - logit.sigmoid()).abs()
    score = (wrong.square() * F.binary_cross_entropy_with_logits(logit, label, reduction="none"))[counted].sum()
    count = face.sum().clamp(min=1)
    error = ((found - wanted)[..., 1:].abs() * (anchors[:, 2] / anchors[:, 3])[:, None])[face]    # (faces, 14)
    return score / count, error[:, :4].sum() / count, error[:, 4:].sum() / count


def place(image: np.ndarray, points: np.ndarray | None, side: int, rng: random.Random) -> tuple[np.ndarray, np.ndarray | None]:
    """`image` (and its points) mirrored, turned, scaled and shifted at random into a square of `side` pixels."""
    zoom = side / image.shape[1] * (rng.uniform(0.55, 1.4) if rng.random() < 0.5 else rng.uniform(0.9, 1.1))
    middle = np.array([image.shape[1], image.shape[0]]) / 2 if points is None else points[5:].mean(0)
    half = 0.0 if points is None else zoom * (points[6] - points[5]).max() / 2
    free = max(0.0, side / 2 - half)
    goal = np.array([side / 2 + rng.uniform(-free, free) for _ in range(2)])
    if rng.random() < 0.5:
        goal = side / 2 + zoom * (middle - image.shape[0] / 2)                    # where the image has it
    turn = cv2.getRotationMatrix2D(tuple(middle), rng.gauss(0, 6), zoom)
    if rng.random() < 0.5:
        turn[0] *= -1
        order = [1, 0, 2, 4, 3]
    else:
        order = [0, 1, 2, 3, 4]
    turn[:, 2] += goal - turn[:, :2] @ middle - turn[:, 2]
    border = rng.choice((cv2.BORDER_CONSTANT, cv2.BORDER_REPLICATE))
    placed = cv2.warpAffine(image, turn, (side, side), borderMode=border)
    if points is None:
        return placed, None
    moved = points @ turn[:, :2].T + turn[:, 2]
    corners = np.array([points[[a, b], [0, 1]] for a in (5, 6) for b in (5, 6)]) @ turn[:, :2].T + turn[:, 2]
    return placed, np.concatenate([moved[order], [corners.min(0), corners.max(0)]])


def _batch(step: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Images (B, side, side, 3) uint8, targets (B, N, 15) and the side; one batch in four has enlarged images."""
    rng = random.Random(f"detector {step}")
    side, count = (2 * SIZE, 10) if step % 4 == 3 else (SIZE, 32)
    images, wanted = [], []
    for _ in range(count):
        if rng.random() < SCENE_SHARE:
            image, marks = draw_scene(sample_scene(rng), SIZE), None
        else:
            portrait = draw_portrait(sample_person(rng), sample_view(rng), SIZE)
            image, marks = portrait.image, points_of(portrait)
        image, marks = place(soften(image, rng), marks, side, rng)
        images.append(image)
        wanted.append(targets(marks, side))
    return np.stack(images), np.stack(wanted), side


def train_detector(work_dir: Path, device: str = "cpu", *, steps: int = STEPS, lr: float = 2e-3) -> FaceDetector:
    """The averaged detector after `steps` steps, in evaluation mode; started again, it resumes."""
    torch.manual_seed(0)
    module = FaceDetector().to(device, memory_format=torch.channels_last).train()

    def detect(net: FaceDetector, step: int) -> tuple[Tensor, Tensor, int]:
        images, wanted, side = _batch(step)
        batch = (torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() - 127.5) / 128
        with torch.autocast(batch.device.type, torch.bfloat16):
            return net(batch), torch.from_numpy(wanted).to(device), side

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        score, box, key_points = detection_loss(*detect(module, step))
        return score + box + 2 * key_points, {"score": score.item(), "box": box.item(), "key_points": key_points.item()}

    average = train_stage("detector", module, loss_of, steps=steps, lr=lr, work_dir=work_dir, decay=0.5)
    return calibrated(average, lambda step: detect(average, step))
