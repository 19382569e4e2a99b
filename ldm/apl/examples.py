"""Training samples as the U-Net receives them: images and texts, each encoded once by the frozen encoders (paper section 3.5)."""

import functools
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.data.benchmarks import fill
from ldm.data.captions import CaptionImage
from ldm.data.frozen import TEXTS_KEPT, Contexts, image_moments, sample_latent
from ldm.data.identities import IdentityImage, Person
from ldm.data.images import ImageSource, load_image
from ldm.data.mixture import Mixture, Sample, normal
from ldm.generation import with_prefix
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import Manager

READERS = 8  # threads that decode images


@dataclass(frozen=True)
class Samples:
    """Samples without their images, by one list for each property; those of S_Reg have c1 = c2."""

    numbers: list[int]            # in the mixture
    timesteps: list[int]          # t
    name_prompts: list[str]       # c1
    attribute_prompts: list[str]  # c2
    prefixed_prompts: list[str]   # what stands behind the prefix: c1, or with a token in place of the name, see `robust_tokens`
    is_identity: list[bool]       # from S_ID
    attack_seeds: list[int]       # see `ldm.data.mixture.Sample`

    @property
    def identity_rows(self) -> list[int]:
        """Indices of the samples of S_ID."""
        return [row for row, is_identity in enumerate(self.is_identity) if is_identity]


class TrainingSet:
    """S_ID and S_Reg in the order of the mixture; each image is encoded once.

    A set that the mixture never samples from may be empty. People may stand for S_ID where no image is read ("apl-text").
    c1 and c2 of a sample use the same one of the templates. `token` takes the name's place behind the prefix in samples that are attacked.
    """

    def __init__(self, model: LatentDiffusion, identities: Sequence[IdentityImage | Person], captions: Sequence[CaptionImage],
                 templates: Sequence[str], mixture: Mixture, token: str | None = None):
        self.model, self.mixture, self.token = model, mixture, token
        self.identities, self.captions, self.templates = identities, captions, templates
        self._moments: dict[tuple[bool, int], Tensor] = {}  # mean and log-variance, (8, h, w), on the CPU

    def sources(self, numbers: Iterable[int]) -> dict[tuple[bool, int], ImageSource]:
        """Sources of the distinct images of these samples, by (is S_ID, index into the set)."""
        return {(sample.is_identity, sample.item): self._item(sample).source for sample in map(self.mixture.sample, numbers)}

    def check(self, numbers: Iterable[int], *, show_progress: bool = False) -> None:
        """Decode every image of these samples, to find a broken one before a long training; UserError if one cannot be decoded."""
        sources, size = list(self.sources(numbers).values()), 8 * self.model.image_size
        with ThreadPoolExecutor(READERS) as readers:
            images = readers.map(lambda source: load_image(source, size).shape, sources)
            for _ in tqdm(images, "checking images", len(sources), unit="image", disable=not show_progress, leave=False):
                pass

    def encode(self, numbers: Iterable[int]) -> None:
        """Compute the posterior of every image of these samples, one image at a time, so that its bits depend on no other image."""
        for key, source in self.sources(numbers).items():
            if key not in self._moments:
                self._moments[key] = image_moments(self.model, source)

    def samples(self, *steps: Iterable[int]) -> Samples:
        """The samples with the numbers of each step; within a step S_ID first."""
        numbers = [i for step in steps for i in sorted(step, key=lambda i: not self.mixture.sample(i).is_identity)]
        chosen = [self.mixture.sample(i) for i in numbers]
        name_prompts, attribute_prompts, prefixed_prompts = map(list, zip(*map(self._prompts, chosen), strict=True))
        return Samples(numbers, [sample.timestep for sample in chosen], name_prompts, attribute_prompts, prefixed_prompts,
                       [sample.is_identity for sample in chosen], [sample.attack_seed for sample in chosen])

    def noisy_latent(self, samples: Samples) -> Tensor:
        """z_t of the samples, (B, 4, h, w) on the model's device; encodes images that have not been encoded yet."""
        self.encode(samples.numbers)
        chosen, device = [self.mixture.sample(i) for i in samples.numbers], self.model.device
        latent = torch.stack([sample_latent(self.model, self._moments[sample.is_identity, sample.item], sample.posterior_seed)
                              for sample in chosen])
        noise = torch.stack([normal(sample.noise_seed, latent.shape[1:]) for sample in chosen])
        return self.model.q_sample(latent.to(device), torch.tensor(samples.timesteps, device=device), noise.to(device))

    def _item(self, sample: Sample) -> Any:
        return (self.identities if sample.is_identity else self.captions)[sample.item]

    def _prompts(self, sample: Sample) -> tuple[str, str, str]:
        """c1 and c2 of a sample, and what stands behind the prefix."""
        item = self._item(sample)
        if isinstance(item, CaptionImage):
            return item.caption, item.caption, item.caption
        template, subject = self.templates[sample.template], self.token if self.token and sample.attack_seed >= 0 else item.name
        return fill(template, item.name), fill(template, item.attributes), fill(template, subject)


class Texts:
    """Cache of tau(c) without the prefix, and of the token ids of [AP] + c."""

    def __init__(self, model: LatentDiffusion, prefix: Manager):
        def token_ids(text: str) -> Tensor:
            return model.cond_stage_model.tokenize(with_prefix([text], prefix), prefix.extra_length)[0]

        self.contexts = Contexts(model)  # (texts) -> tau(c), (B, 77, d)
        self._device, self._token_ids = model.device, functools.lru_cache(TEXTS_KEPT)(token_ids)

    def token_ids(self, texts: Sequence[str]) -> Tensor:
        """Token ids (B, 77) of B texts with the placeholder in front, on the model's device."""
        return torch.stack([self._token_ids(text) for text in texts]).to(self._device)
