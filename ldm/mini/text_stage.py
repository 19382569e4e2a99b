"""Trains the miniature's text encoder: from a caption, predict what its image shows.

CLIP learns its text encoder from images; here the facts behind the images are known, so they take the images' place:
what can be named (as classes), and the face geometry. What a caption leaves open, the encoder learns to leave open: only a name tells
the geometry. The read-out is noisy, so that nothing but the facts finds room in a state: captions that say the same, by a name or by
attributes, come to lie close together, as an image's captions do in CLIP. Stable Diffusion then freezes it, and so do we.
"""

import random
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.mini.people import (
    ACCESSORIES,
    BEARDS,
    COLORS,
    EXPRESSIONS,
    EYE_COLORS,
    GEOMETRY,
    GLASSES,
    HAIR_COLORS,
    HAIR_STYLES,
    OCCUPATIONS,
    SKIN,
    standardised,
)
from ldm.mini.renders import COUNT, NAMED, Subject, subject
from ldm.mini.scenes import NOTHING, OBJECTS, PLACES
from ldm.mini.stage import rank_and_world, train_stage
from ldm.modules.encoders.modules import FrozenCLIPEmbedder, tokenize

BATCH = 96
NOISE = 0.5             # added to a state of unit variance before it is read
EXTRA, ALL_FROM = 6, 0.85   # positions of the padding that are computed, sampled in each step, up to this share of the steps
FACTS: dict[str, tuple[str, ...]] = {
    "kind": ("person", "scene"), "gender": ("male", "female"), "skin": SKIN, "occupation": OCCUPATIONS,
    "hair_style": tuple(dict.fromkeys(HAIR_STYLES["male"] + HAIR_STYLES["female"])), "hair_color": HAIR_COLORS,
    "eye_color": EYE_COLORS, "beard": BEARDS, "glasses": GLASSES, "expression": EXPRESSIONS, "background": COLORS,
    "accessory": ACCESSORIES, "accessory_color": COLORS,
    "object": OBJECTS, "color": COLORS, "place": tuple(PLACES), "count": (1, 2),
    "other": (NOTHING, *OBJECTS), "other_color": COLORS}
ONLY_WITH = {"accessory_color": "accessory", "other_color": "other"}   # the color of nothing is no fact
IGNORED = -100
SHARED_ROWS = 64        # random vectors that stand for all tokens that no caption has


class FactReader(nn.Module):
    """Linear read-out of every fact and of the face geometry from one text position, (B, d) -> classes and (B, 24)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classes = nn.ModuleDict({fact: nn.Linear(width, len(values)) for fact, values in FACTS.items()})
        self.geometry = nn.Linear(width, len(GEOMETRY))

    def loss(self, state: Tensor, noise: Tensor, classes: dict[str, Tensor], geometry: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of the facts and squared error of the geometry, read from the normalized state with noise."""
        state = F.layer_norm(state, state.shape[-1:]) + NOISE * noise
        entropy = sum(F.cross_entropy(self.classes[fact](state), target, ignore_index=IGNORED)
                      for fact, target in classes.items() if (target != IGNORED).any()) / len(FACTS)
        return entropy, F.mse_loss(self.geometry(state), geometry)


def facts_of(what: Subject) -> dict[str, int]:
    """Class of every fact that holds for a subject; facts that do not apply are IGNORED."""
    if what.scene is not None:
        holder, kind = [what.scene], "scene"
    else:
        holder, kind = [what.person, what.view], "person"
    found = {"kind": FACTS["kind"].index(kind)}
    for fact, values in FACTS.items():
        for part in holder:
            if hasattr(part, fact) and (fact not in ONLY_WITH or getattr(part, ONLY_WITH[fact]) != NOTHING):
                found[fact] = values.index(getattr(part, fact))
    return {fact: found.get(fact, IGNORED) for fact in FACTS}


def caption_batch(number: int, size: int) -> tuple[list[str], dict[str, Tensor], Tensor]:
    """Captions, classes, and geometry (size, 24) standardised, zero for a scene; half of the captions name a person."""
    rng = random.Random(f"captions {number}")
    subjects = [subject(rng.randrange(NAMED) if rng.random() < 0.5 else rng.randrange(NAMED, COUNT)) for _ in range(size)]
    facts = [facts_of(what) for what in subjects]
    classes = {fact: torch.tensor([row[fact] for row in facts]) for fact in FACTS}
    geometry = torch.tensor([what.person.geometry if what.person else (0.5,) * len(GEOMETRY) for what in subjects])
    return [what.caption(rng) for what in subjects], classes, standardised(geometry)


def chosen_positions(ends: Tensor, length: int, extra: int, generator: torch.Generator) -> Tensor:
    """Positions of a batch that a step computes: all of the texts and `extra` of the padding after them, in order; (B, n).

    Args:
        ends: first end-of-text of each text, (B,).
    """
    first = int(ends.max()) + 1
    if first + extra >= length:
        return torch.arange(length).expand(len(ends), -1)
    padding = torch.rand(len(ends), length - first, generator=generator).argsort(1)[:, :extra].sort(1).values + first
    return torch.cat([torch.arange(first).expand(len(ends), -1), padding], 1)


def train_text_encoder(embedder: FrozenCLIPEmbedder, work_dir: Path, *, steps: int, lr: float = 2e-3) -> FrozenCLIPEmbedder:
    """The embedder after `steps` steps; its facts can be read at the end-of-text token and at every position after it."""
    device = next(embedder.parameters()).device
    rank, world = rank_and_world()
    width = embedder.get_input_embeddings().embedding_dim
    both = nn.ModuleDict({"embedder": embedder.train().requires_grad_(True), "reader": FactReader(width).to(device)})
    end_of_text = embedder.tokenizer.eos_token_id

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        captions, classes, geometry = caption_batch(step * world + rank, BATCH)
        token_ids = tokenize(embedder.tokenizer, captions, embedder.max_length)
        ends = (token_ids == end_of_text).int().argmax(1)                                       # (B,)
        generator = torch.Generator().manual_seed(step * world + rank)
        states, samples = [], []
        for rows in ends.argsort().chunk(2):                                                    # short texts, then long ones
            extra = EXTRA if step < ALL_FROM * steps else embedder.max_length
            positions = chosen_positions(ends[rows], embedder.max_length, extra, generator)     # (B/2, n)
            with torch.autocast(device.type, torch.bfloat16):
                context = embedder.transformer.text_model(input_ids=token_ids[rows].gather(1, positions).to(device),
                                                          position_ids=positions.to(device)).last_hidden_state   # (B/2, n, d)
            room = positions.shape[1] - ends[rows]
            later = ends[rows] + (room * torch.rand(len(rows), generator=generator)).long()     # somewhere in the padding
            states += [context[torch.arange(len(rows)), ends[rows]], context[torch.arange(len(rows)), later]]
            samples += [rows, rows]
        order = torch.cat(samples)
        state = torch.cat(states).float()
        noise = torch.randn(state.shape, generator=generator).to(device)
        entropy, error = both["reader"].loss(state, noise, {fact: target[order].to(device) for fact, target in classes.items()},
                                             geometry[order].to(device))
        return entropy + 0.5 * error, {"facts": entropy.item(), "geometry": error.item()}

    trained = train_stage("text", both, loss_of, steps=steps, lr=lr, work_dir=work_dir, decay=0.5)["embedder"].eval()
    share_unused_rows(trained.get_input_embeddings(), used_tokens(trained))
    return trained


@torch.no_grad()
def share_unused_rows(table: nn.Embedding, used: Tensor) -> None:
    """Gives tokens that no caption has one of SHARED_ROWS random vectors, small ones: they say nothing, and the file packs well.

    Args:
        used: token ids that captions have.
    """
    spread = table.weight[used].std() / 4
    rows = spread * torch.randn(SHARED_ROWS, table.embedding_dim, generator=torch.Generator().manual_seed(0))
    unused = torch.ones(table.num_embeddings, dtype=torch.bool)
    unused[used] = False
    ids = unused.nonzero().flatten()
    table.weight[ids] = rows[ids % SHARED_ROWS].to(table.weight)


def used_tokens(embedder: nn.Module, captions: int = 30_000) -> Tensor:
    """Ids of all tokens in that many captions, and of the special ones."""
    rng = random.Random("used tokens")
    texts = [subject(rng.randrange(COUNT)).caption(rng) for _ in range(captions)]
    ids = [tokenize(embedder.tokenizer, texts[i:i + 1000], embedder.max_length).unique() for i in range(0, captions, 1000)]
    return torch.cat(ids).unique()
