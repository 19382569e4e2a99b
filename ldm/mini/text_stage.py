"""Trains the miniature's text encoder: from a caption, predict what its picture shows.

CLIP learns its text encoder from pictures; here the facts behind the pictures are known, so they take the pictures' place:
what can be named (as classes), and the face geometry. What a caption leaves open, the encoder learns to leave open: only a name tells
the geometry. The read-out is noisy, so that nothing but the facts finds room in a state: captions that say the same, by a name or by
attributes, come to lie close together, as a picture's captions do in CLIP. Stable Diffusion then freezes it, and so do we.
"""

import random
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.mini.people import (
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
)
from ldm.mini.renders import COUNT, NAMED, Subject, subject
from ldm.mini.scenes import OBJECTS, PLACES
from ldm.mini.stage import rank_and_world, train_stage
from ldm.modules.encoders.modules import FrozenCLIPEmbedder, tokenize
from ldm.modules.encoders.sdxl import FrozenOpenCLIPEmbedder2

BATCH = 96
NOISE = 0.5             # added to a state of unit variance before it is read
STRANGE_WORDS = 0.25    # share of captions with words in front that say nothing here, any of the vocabulary
FACTS: dict[str, tuple[str, ...]] = {
    "kind": ("person", "scene"), "gender": ("male", "female"), "skin": SKIN, "occupation": OCCUPATIONS,
    "hair_style": tuple(dict.fromkeys(HAIR_STYLES["male"] + HAIR_STYLES["female"])), "hair_color": HAIR_COLORS,
    "eye_color": EYE_COLORS, "beard": BEARDS, "glasses": GLASSES, "expression": EXPRESSIONS, "background": COLORS,
    "object": OBJECTS, "color": COLORS, "place": tuple(PLACES), "count": (1, 2)}
IGNORED = -100

Embedder = TypeVar("Embedder", FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder2)


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
            if hasattr(part, fact):
                found[fact] = values.index(getattr(part, fact))
    return {fact: found.get(fact, IGNORED) for fact in FACTS}


def caption_batch(number: int, size: int, vocabulary: list[str]) -> tuple[list[str], dict[str, Tensor], Tensor]:
    """Captions, classes, and geometry (size, 24) standardised, zero for a scene; half of the captions name a person."""
    rng = random.Random(f"captions {number}")
    subjects = [subject(rng.randrange(NAMED) if rng.random() < 0.5 else rng.randrange(NAMED, COUNT)) for _ in range(size)]
    facts = [facts_of(what) for what in subjects]
    classes = {fact: torch.tensor([row[fact] for row in facts]) for fact in FACTS}
    geometry = torch.tensor([what.person.geometry if what.person else (0.5,) * len(GEOMETRY) for what in subjects])
    captions = [what.caption(rng) for what in subjects]
    strange = [" ".join(rng.choices(vocabulary, k=rng.randint(1, 8))) + " " if rng.random() < STRANGE_WORDS else "" for _ in captions]
    return [words + caption for words, caption in zip(strange, captions, strict=True)], classes, (geometry - 0.5) * 12 ** 0.5


def train_text_encoder(embedder: Embedder, work_dir: Path, *, steps: int, lr: float = 2e-3, name: str = "text") -> Embedder:
    """The embedder after `steps` steps; its facts can be read at the end-of-text token, at every position after it, and in the pooled text.

    Args:
        embedder: of either form; the pooled text of OpenCLIP's is as wide as its states.
        name: of the stage's files.
    """
    device = next(embedder.parameters()).device
    rank, world = rank_and_world()
    words = sorted(embedder.tokenizer.get_vocab())
    vocabulary = [word.removesuffix("</w>") for word in words if word.isascii() and word.endswith("</w>")]
    both = nn.ModuleDict({"embedder": embedder.train().requires_grad_(True),
                          "reader": FactReader(embedder.get_input_embeddings().embedding_dim).to(device)})
    end_of_text = embedder.tokenizer.eos_token_id

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        captions, classes, geometry = caption_batch(step * world + rank, BATCH, vocabulary)
        classes = {fact: target.to(device) for fact, target in classes.items()}
        token_ids = tokenize(embedder.tokenizer, captions, embedder.max_length).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            context = embedder.context(token_ids)                                               # (B, 77, d)
        pooled = ()
        if isinstance(context, tuple):
            context, *pooled = context                                                          # and (B, d)
        end = (token_ids == end_of_text).int().argmax(1)                                        # (B,) first end-of-text
        generator = torch.Generator().manual_seed(step * world + rank)
        chance = torch.rand(len(end), generator=generator).to(device)
        later = end + ((context.shape[1] - end) * chance).long()                                # somewhere in the padding
        rows = torch.arange(len(end), device=device)
        states = [context[rows, end], context[rows, later], *pooled]                            # (B, d) each
        state, count = torch.cat(states).float(), len(states)
        noise = torch.randn(state.shape, generator=generator).to(device)
        entropy, error = both["reader"].loss(state, noise, {fact: target.repeat(count) for fact, target in classes.items()},
                                             geometry.to(device).repeat(count, 1))
        return entropy + 0.5 * error, {"facts": entropy.item(), "geometry": error.item()}

    return train_stage(name, both, loss_of, steps=steps, lr=lr, work_dir=work_dir, decay=0.5)["embedder"].eval()
