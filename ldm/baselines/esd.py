"""Erased Stable Diffusion (ESD, arXiv 2303.07345): trains the model to predict the negative guidance for a name.

The variants differ in the trained parameters: esd-x (cross-attention), esd-x-strict (only its keys and values), esd-u (all but
cross-attention), esd-full (all).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.data.frozen import Contexts
from ldm.finetuning.samples import ImageLatents, noise_of, rng_of
from ldm.finetuning.weights import Weights
from ldm.models.diffusion.ddim import DDIMSampler

PARAMETERS_OF = {"esd-x": "xattn", "esd-x-strict": "xattn-kv", "esd-u": "noxattn", "esd-full": "full"}  # variant -> parameter group


def esd_target(eps_empty: Tensor, eps_name: Tensor, eta: float) -> Tensor:
    """Target for the name (ESD Eq. 7): eps_0(x, "", t) - eta (eps_0(x, c, t) - eps_0(x, "", t)).

    Args:
        eps_empty, eps_name: predictions of the frozen model, (B, 4, h, w).
        eta: strength of the negative guidance.

    Returns:
        (B, 4, h, w), detached.
    """
    return (eps_empty - eta * (eps_name - eps_empty)).detach()


def esd_loss(eps_edited: Tensor, eps_empty: Tensor, eps_name: Tensor, eta: float) -> Tensor:
    """Mean squared error to `esd_target`, scalar."""
    return F.mse_loss(eps_edited, esd_target(eps_empty, eps_name, eta))


@dataclass
class ESD:
    """ESD as a `ldm.finetuning.trainer.Method`.

    A training sample is a name c, a part k of the schedule, and the latent z_t that the edited model reaches when it samples for c down
    to that part. With `photos`, z_t is the latent of an image of the name with noise added, which takes a fiftieth of the time.
    """

    trained: Weights
    names: Sequence[str]   # to erase, chosen uniformly
    eta: float             # see `esd_target`
    start_guidance: float  # guidance scale for sampling z_t
    bins: int              # number of DDIM steps and of parts of the schedule
    seed: int
    photos: tuple[ImageLatents, dict[str, list[int]]] | None = None  # images and, per name, their indices

    def __post_init__(self) -> None:
        self.model = self.trained.model
        self.contexts, self.sampler = Contexts(self.model), DDIMSampler(self.model)
        self.sampler.make_schedule(self.bins, verbose=False)
        with torch.no_grad():
            self.empty = self.model.get_negative_conditioning("")  # (1, 77, d)

    def loss(self, numbers: range) -> Tensor:
        rngs = [rng_of(self.seed, number) for number in numbers]
        names = [rng.choice(self.names) for rng in rngs]
        bins = [rng.randrange(self.bins) for rng in rngs]
        timestep = torch.tensor([int((k + rng.random()) * self.model.num_timesteps / self.bins) for k, rng in zip(bins, rngs, strict=True)],
                                device=self.model.device)
        context, noise = self.contexts(names), noise_of(self.model, rngs)
        empty = self.empty.expand_as(context)
        with torch.no_grad():
            if self.photos:
                latents, of_name = self.photos
                latent = latents([rng.choice(of_name[name]) for name, rng in zip(names, rngs, strict=True)], rngs)
                noisy_latent = self.model.q_sample(latent, timestep, noise)
            else:
                noisy_latent = torch.cat([self.partly_drawn(one, k, context[i:i + 1], empty[i:i + 1])
                                          for i, (one, k) in enumerate(zip(noise.split(1), bins, strict=True))])
            eps_empty, eps_name = self.model.apply_model(torch.cat([noisy_latent, noisy_latent]), torch.cat([timestep, timestep]),
                                                         torch.cat([empty, context])).float().chunk(2)
        return esd_loss(self.trained.eps(noisy_latent, timestep, context), eps_empty, eps_name, self.eta)

    @torch.no_grad()
    def partly_drawn(self, noise: Tensor, k: int, context: Tensor, empty: Tensor) -> Tensor:
        """z_t at the k-th DDIM timestep, (1, 4, h, w), sampled by the edited model from noise; the noise itself for k = bins - 1."""
        latent = noise
        with self.trained.in_place():
            for index in range(len(self.sampler.ddim_timesteps) - 1, k, -1):
                timestep = torch.full((1,), int(self.sampler.ddim_timesteps[index]), device=noise.device)
                latent, _ = self.sampler.p_sample_ddim(latent, context, timestep, index, unconditional_guidance_scale=self.start_guidance,
                                                       unconditional_conditioning=empty)
        return latent
