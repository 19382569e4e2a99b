"""One person under attack, what an attack returns, and the loss and the projection that several attacks share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.attacks.service import FREE, Service, Submission
from ldm.finetuning.samples import noise_of, rng_of, timesteps_of


@dataclass(frozen=True)
class Verdict:
    """Whether the largest face of one generated image is the person."""

    success: bool
    cosine: float  # to the reference face; -1 without a face


@dataclass(frozen=True)
class Case:
    """A person, and all that the attacker has."""

    service: Service              # that the attacker optimizes against: with the prefix for those who know it (L2), else the base model
    name: str
    attributes: str               # c2
    template: str                 # prompt with {name}
    latents: Tensor               # (N, 4, h, w), z_0 of images of the person
    photos: Sequence[np.ndarray]  # these images, (H, W, 3) uint8 RGB
    judge: Callable[[Submission], Verdict] | None  # generates one image with `service`; None without queries
    clip: Any = None              # open_clip model with `preprocess`, see ldm.evaluation.clip_score.ImageEncoder

    @property
    def prompt(self) -> str:
        """The prompt with the name."""
        return self.filled(self.name)

    def filled(self, text: str) -> str:
        """The prompt with another text in place of the name."""
        return self.template.replace("{name}", text)

    def worded(self, row: Sequence[int], words: Tensor) -> Submission:
        """The text of token ids with `words` in the places FREE."""
        chosen = iter(words.tolist())
        return Submission(self.service.text([next(chosen) if token == FREE else token for token in row]))


@dataclass(frozen=True)
class Found:
    """Result of an attack."""

    submissions: Sequence[Submission]
    control: Submission | None = None  # as many random tokens in the same places; None if the attack chooses no tokens


Attack = Callable[..., Found]  # (case, generator, **settings of configs/paper/attacks.yaml)


def denoising_loss(case: Case, context: Tensor, numbers: Sequence[int], *, timestep: int | None = None,
                   reference: Tensor | None = None) -> Tensor:
    """MSE(n, eps(z_t, context)), or with `reference` MSE(eps(z_t, reference), eps(z_t, context)); scalar, over all samples.

    Args:
        context: tau_AP of what is attacked, (1 or B, 77, d).
        numbers: of B samples, which determine image, noise and timestep.
        timestep: t of all samples; None samples it.
        reference: context of the base model, (1 or B, 77, d); no gradient flows through it.
    """
    model, rngs = case.service.model, [rng_of(0, number) for number in numbers]
    latent = case.latents[[rng.randrange(len(case.latents)) for rng in rngs]].to(model.device)
    t, noise = timesteps_of(model, rngs), noise_of(model, rngs)
    t = t if timestep is None else torch.full_like(t, timestep)
    noisy_latent = model.q_sample(latent, t, noise)
    target = noise
    if reference is not None:
        with torch.no_grad():
            target = model.apply_model(noisy_latent, t, reference.expand(len(rngs), -1, -1)).float()
    return F.mse_loss(model.apply_model(noisy_latent, t, context.expand(len(rngs), -1, -1)).float(), target)


def nearest_rows(vectors: Tensor, table: Tensor) -> Tensor:
    """For each of (k, d) vectors, the row of (V, d) `table` with the largest cosine; (k,) int64."""
    return (F.normalize(vectors, dim=1) @ F.normalize(table, dim=1).T).argmax(1)
