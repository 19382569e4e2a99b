"""The miniature's face recogniser: a small network trained with ArcFace's loss (arXiv 1801.07698) on families of strangers."""

import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.mini.face_layers import Block, calibrated
from ldm.mini.face_renders import STRANGERS, aligned, alike_strangers, soften, stranger
from ldm.mini.people import GEOMETRY, standardised
from ldm.mini.stage import train_stage

DIM = 512
SCALE, MARGIN = 32.0, 0.3      # of ArcFace
MARGIN_FULL = 0.4              # share of the steps over which the margin grows from 0
GROUPS, MEMBERS = 8, 8         # of a batch: strangers who share all attributes, one image each
GEOMETRY_WEIGHT = 2.0          # of reading the geometry off the embedding, which starts the training; the reader is dropped
JITTER = 1.2                   # pixels of the 128-pixel image: how far detected key points are off
STEPS = 5000


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
        self.geometry = nn.Linear(DIM, len(GEOMETRY))
        self.centres = nn.Parameter(torch.randn(STRANGERS, DIM) * 0.05)


def _batch(step: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Softened aligned faces (B, 3, 112, 112) in [-1, 1], group by group, the strangers' numbers (B,), and their geometry (B, 24)."""
    rng = random.Random(f"recogniser {step}")
    faces, classes = [], []
    for _ in range(GROUPS):
        for index, portrait in alike_strangers(MEMBERS, rng):
            size = rng.choice((0.3, 0.7, 1.0, 1.0)) * JITTER
            jitter = np.array([[rng.gauss(0, size), rng.gauss(0, size)] for _ in range(5)])
            faces.append(aligned(soften(portrait.image, rng), portrait.landmarks + jitter))
            classes.append(index)
    batch = torch.from_numpy(np.stack(faces)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    geometry = torch.tensor([stranger(index).geometry for index in classes], device=device)
    return batch, torch.tensor(classes, device=device), standardised(geometry)


def train_recogniser(work_dir: Path, device: str = "cpu", *, steps: int = STEPS, lr: float = 2e-3) -> FaceRecogniser:
    """The averaged recogniser after `steps` steps, in evaluation mode; started again, it resumes.

    The loss is ArcFace's over all strangers plus ArcFace's among the members of a group, where only geometry helps, plus the error of the
    geometry that a linear layer reads off the embedding.
    """
    place = torch.device(device)
    torch.manual_seed(0)
    module = _Trained().to(place, memory_format=torch.channels_last).train()

    def embed(net: FaceRecogniser, step: int) -> tuple[Tensor, Tensor, Tensor]:
        faces, classes, geometry = _batch(step, place)
        with torch.autocast(place.type, torch.bfloat16):
            return net(faces).float(), classes, geometry

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        embeddings, classes, geometry = embed(module.net, step)
        logits = arcface_logits(embeddings, module.centres, classes, MARGIN * min(1.0, step / (MARGIN_FULL * steps)))
        group = classes.view(GROUPS, MEMBERS).repeat_interleave(MEMBERS, 0)                      # (B, MEMBERS)
        within = F.cross_entropy(logits.gather(1, group), torch.arange(MEMBERS, device=place).repeat(GROUPS))
        right = (logits.argmax(1) == classes).float().mean().item() if step % 25 == 0 else 0.0
        error = F.mse_loss(module.geometry(embeddings), geometry)
        return F.cross_entropy(logits, classes) + within + GEOMETRY_WEIGHT * error, {"within": within.item(), "right": right,
                                                                                     "geometry": error.item()}

    average = train_stage("recogniser", module, loss_of, steps=steps, lr=lr, work_dir=work_dir, decay=0.5)
    return calibrated(average.net, lambda step: embed(average.net, step))
