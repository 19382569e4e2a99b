"""Trains mini-xl's second text encoder by CLIP's symmetric contrastive loss (arXiv 2103.00020) on the captions of `text_stage`.

What a caption's image shows (its facts and its geometry) passes a small tower in place of an image tower. Only the pooled text is
compared, as in CLIP; the states that the U-Net reads learn what they learn on the way there.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.mini.people import GEOMETRY
from ldm.mini.stage import rank_and_world, train_stage
from ldm.mini.text_stage import FACTS, IGNORED, caption_batch, share_unused_rows, used_tokens
from ldm.modules.encoders.modules import tokenize
from ldm.modules.encoders.sdxl import FrozenOpenCLIPEmbedder2

BATCH = 128
SCALE_LIMIT = 100.0   # of the cosines, as in CLIP


class FactTower(nn.Module):
    """Facts and geometry of B subjects -> embeddings (B, d)."""

    def __init__(self, width: int, hidden: int = 256) -> None:
        super().__init__()
        known = sum(len(values) for values in FACTS.values()) + len(GEOMETRY)
        self.layers = nn.Sequential(nn.Linear(known, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, classes: dict[str, Tensor], geometry: Tensor) -> Tensor:
        """Of classes (B,) by fact, IGNORED where a fact does not apply, and geometry (B, 24)."""
        one_hot = [F.one_hot(classes[fact].clamp(min=0), len(values)) * (classes[fact] != IGNORED)[:, None]
                   for fact, values in FACTS.items()]
        return self.layers(torch.cat([*one_hot, geometry], 1))


def train_second_text_encoder(embedder: FrozenOpenCLIPEmbedder2, work_dir: Path, *, steps: int,
                              lr: float = 1e-3) -> FrozenOpenCLIPEmbedder2:
    """The embedder after `steps` steps."""
    device = next(embedder.parameters()).device
    rank, world = rank_and_world()
    both = nn.ModuleDict({"embedder": embedder.train().requires_grad_(True), "tower": FactTower(embedder.pooled_width).to(device)})
    both.register_parameter("log_scale", nn.Parameter(torch.tensor(1 / 0.07, device=device).log()))

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        captions, classes, geometry = caption_batch(step * world + rank, BATCH)
        token_ids = tokenize(embedder.tokenizer, captions, embedder.max_length).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            _, pooled = embedder.context(token_ids)
            facts = both["tower"]({fact: target.to(device) for fact, target in classes.items()}, geometry.to(device))
        logits = both.log_scale.exp().clamp(max=SCALE_LIMIT) * F.normalize(pooled.float()) @ F.normalize(facts.float()).T
        target = torch.arange(BATCH, device=device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        return loss, {"right": (logits.argmax(1) == target).float().mean().item()}

    trained = train_stage("text-xl", both, loss_of, steps=steps, lr=lr, work_dir=work_dir, decay=0.5)["embedder"].eval()
    share_unused_rows(trained.get_input_embeddings(), used_tokens(trained))
    return trained
