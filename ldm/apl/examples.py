"""Training samples as the U-Net sees them: latents and frozen text contexts, each computed once (paper section 3.5)."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.data.captions import CaptionImage
from ldm.data.identities import IdentityImage
from ldm.data.images import load_image
from ldm.data.mixture import Mixture, Sample, normal
from ldm.data.templates import fill
from ldm.models.diffusion.ddpm import LatentDiffusion

IMAGES_AT_ONCE = 8     # through the autoencoder
CONTEXTS_KEPT = 4096   # 30 kB each for the miniature, 240 kB for Stable Diffusion v1


@dataclass(frozen=True)
class Batch:
    """B samples; the first `n_identity` are from S_ID, the others from S_Reg with c1 = c2."""

    noisy_latent: Tensor          # z_t, (B, 4, h, w)
    timestep: Tensor              # t, (B,)
    name_prompts: list[str]       # c1
    attribute_prompts: list[str]  # c2
    n_identity: int


class TrainingSet:
    """S_ID and S_Reg in the order that the mixture draws them.

    Args:
        model: frozen; its autoencoder encodes each picture once.
        identities, captions: S_ID and S_Reg; a set that the mixture never draws from may be empty.
        templates: filled alike into c1 and c2 of S_ID.
        mixture: which sample is drawn when.
    """

    def __init__(self, model: LatentDiffusion, identities: Sequence[IdentityImage], captions: Sequence[CaptionImage],
                 templates: Sequence[str], mixture: Mixture):
        self.model, self.mixture = model, mixture
        self.identities, self.captions, self.templates = identities, captions, templates
        self._moments: dict[tuple[bool, int], Tensor] = {}  # mean and log-variance, (8, h, w), on the CPU

    @torch.no_grad()
    def encode(self, numbers: Iterable[int], *, show_progress: bool = False) -> None:
        """Posteriors of every picture that the samples of these numbers need.

        Raises:
            UserError: a picture cannot be decoded.
        """
        drawn = (self.mixture.sample(i) for i in numbers)
        missing = sorted({(sample.is_identity, sample.item) for sample in drawn} - set(self._moments))
        size = 8 * self.model.image_size
        groups = range(0, len(missing), IMAGES_AT_ONCE)
        for start in tqdm(groups, "encoding images", unit_scale=IMAGES_AT_ONCE, disable=not show_progress, leave=False):
            keys = missing[start:start + IMAGES_AT_ONCE]
            images = torch.stack([load_image(self._item(*key).source, size) for key in keys])
            posterior = self.model.encode_first_stage(images.to(self.model.device))
            moments = torch.cat([posterior.mean, posterior.logvar], dim=1).cpu()  # (B, 8, h, w)
            self._moments |= zip(keys, moments.unbind(), strict=True)

    def batch(self, numbers: Iterable[int]) -> Batch:
        """The samples of these numbers, S_ID first; their pictures must be encoded."""
        samples = sorted((self.mixture.sample(i) for i in numbers), key=lambda sample: not sample.is_identity)
        device = self.model.device
        latent = torch.stack([self._latent(sample) for sample in samples]).to(device)
        noise = torch.stack([normal(sample.noise_seed, latent.shape[1:]) for sample in samples]).to(device)
        timestep = torch.tensor([sample.timestep for sample in samples], device=device)
        prompts = [self._prompts(sample) for sample in samples]
        return Batch(self.model.q_sample(latent, timestep, noise), timestep, [c1 for c1, _ in prompts],
                     [c2 for _, c2 in prompts], sum(sample.is_identity for sample in samples))

    def _item(self, is_identity: bool, number: int) -> IdentityImage | CaptionImage:
        return (self.identities if is_identity else self.captions)[number]

    def _latent(self, sample: Sample) -> Tensor:
        mean, logvar = self._moments[sample.is_identity, sample.item].chunk(2)  # (4, h, w) each
        drawn = mean + torch.exp(0.5 * logvar) * normal(sample.posterior_seed, mean.shape)
        return self.model.get_first_stage_encoding(drawn)

    def _prompts(self, sample: Sample) -> tuple[str, str]:
        """c1 and c2 of a sample."""
        item = self._item(sample.is_identity, sample.item)
        if isinstance(item, CaptionImage):
            return item.caption, item.caption
        template = self.templates[sample.template]
        return fill(template, item.name), fill(template, item.attributes)


class FrozenContexts:
    """tau(c) without the prefix; each text is encoded once, and alone, so that its last bit depends on nothing else."""

    def __init__(self, model: LatentDiffusion):
        def encode(text: str) -> Tensor:
            with torch.no_grad():
                return model.get_learned_conditioning([text])[0]

        self._context = functools.lru_cache(CONTEXTS_KEPT)(encode)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Contexts (B, 77, d) of B texts."""
        return torch.stack([self._context(text) for text in texts])
