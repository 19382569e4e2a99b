"""The miniature's face recogniser: a small network trained with ArcFace's loss (arXiv 1801.07698) on families of strangers."""

import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.mini.face_layers import Block, calibrated
from ldm.mini.face_pictures import FAMILIES, MEMBERS, VIEWS, aligned, family_pictures, soften
from ldm.mini.stage import train_stage

DIM = 512
SCALE, MARGIN = 32.0, 0.3      # of ArcFace; the margin grows from 0 over the first fifth of the training
FAMILIES_PER_BATCH = 8         # each with all its members, one view a member
JITTER = 1.2                   # pixels of the 128-pixel picture: how far detected key points are off
STEPS = 3000


class FaceRecogniser(nn.Module):
    """Aligned faces (B, 3, 112, 112) RGB in [-1, 1] -> embeddings (B, 512), not normalised.

    The head keeps the 7 x 7 positions: where features lie is what tells people apart.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 48, 7, 4, 3, bias=False), nn.BatchNorm2d(48), nn.ReLU(), Block(48, 48, 1),     # 28 x 28
            Block(48, 80, 2), Block(80, 80, 1),                                                        # 14 x 14
            Block(80, 112, 2), nn.Conv2d(112, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())        # 7 x 7
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(16 * 49, DIM, bias=False), nn.BatchNorm1d(DIM))

    def forward(self, faces: Tensor) -> Tensor:
        return self.head(self.trunk(faces).float())


def arcface_logits(embeddings: Tensor, centres: Tensor, classes: Tensor, margin: float) -> Tensor:
    """SCALE cos(theta), with `margin` radians added to theta of the right class; (B, C).

    Args:
        embeddings: (B, d), of any length; centres: (C, d), one for each class; classes: (B,) int64.
    """
    cosine = F.normalize(embeddings) @ F.normalize(centres).T
    right = cosine.gather(1, classes[:, None]).clamp(-1 + 1e-5, 1 - 1e-5)
    moved = torch.cos((right.acos() + margin).clamp(max=torch.pi))
    return SCALE * cosine.scatter(1, classes[:, None], moved)


class _Trained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = FaceRecogniser()
        self.centres = nn.Parameter(torch.randn(FAMILIES * MEMBERS, DIM) * 0.05)


def _batch(pictures: np.ndarray, landmarks: np.ndarray, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Softened aligned faces (B, 3, 112, 112) in [-1, 1] of whole families, and their classes (B,)."""
    rng = random.Random(f"recogniser {step}")
    faces, classes = [], []
    for family in rng.sample(range(FAMILIES), FAMILIES_PER_BATCH):
        for member in range(MEMBERS):
            view = family, member, rng.randrange(VIEWS)
            size = rng.choice((0.3, 0.7, 1.0, 1.0)) * JITTER
            jitter = np.array([[rng.gauss(0, size), rng.gauss(0, size)] for _ in range(5)])
            faces.append(aligned(soften(pictures[view], rng), landmarks[view] + jitter))
            classes.append(family * MEMBERS + member)
    batch = torch.from_numpy(np.stack(faces)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return batch, torch.tensor(classes, device=device)


def train_recogniser(work_dir: Path, device: str = "cpu", *, steps: int = STEPS, lr: float = 2e-3) -> FaceRecogniser:
    """The averaged recogniser after `steps` steps, in evaluation mode; started again, it goes on where it was.

    The loss is ArcFace's over all people plus ArcFace's among the eight of the same family, where only geometry helps.
    """
    pictures, points = family_pictures(work_dir)
    landmarks = points[..., :5, :]
    place = torch.device(device)
    torch.manual_seed(0)
    module = _Trained().to(place, memory_format=torch.channels_last).train()

    def embed(net: FaceRecogniser, step: int) -> tuple[Tensor, Tensor]:
        faces, classes = _batch(pictures, landmarks, step, place)
        with torch.autocast(place.type, torch.bfloat16):
            return net(faces).float(), classes

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        embeddings, classes = embed(module.net, step)
        logits = arcface_logits(embeddings, module.centres, classes, MARGIN * min(1.0, step / (0.2 * steps)))
        relatives = classes[:, None] // MEMBERS * MEMBERS + torch.arange(MEMBERS, device=place)
        within = F.cross_entropy(logits.gather(1, relatives), classes % MEMBERS)
        right = (logits.argmax(1) == classes).float().mean().item() if step % 25 == 0 else 0.0
        return F.cross_entropy(logits, classes) + within, {"within": within.item(), "right": right}

    average = train_stage("recogniser", module, loss_of, steps=steps, lr=lr, work_dir=work_dir, decay=0.5)
    return calibrated(average.net, lambda step: embed(average.net, step))
