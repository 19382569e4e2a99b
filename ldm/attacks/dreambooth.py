"""DreamBooth (arXiv 2208.12242), the attack of section 4.4: fine-tunes the model on a few photos of a person under a rare token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.finetuning.samples import ImageLatents, noise_of, rng_of, timesteps_of
from ldm.finetuning.weights import Weights


@dataclass
class DreamBooth:
    """DreamBooth as a `ldm.finetuning.trainer.Method`.

    A training sample is a photo with the prompt "a photo of sks person", and a generated image of the prompt "a photo of a person".
    """

    trained: Weights       # if they include the text encoder, contexts are computed with it
    photos: ImageLatents   # of the person
    prompt: str            # of the photos
    class_prompt: str
    class_latents: Tensor  # (N, 4, h, w), images that the frozen model generates for class_prompt
    prior_weight: float    # weight of the loss on the class's images (prior preservation); 0 omits it
    seed: int

    def loss(self, numbers: range) -> Tensor:
        model = self.trained.model
        rngs = [rng_of(self.seed, number) for number in numbers]
        latent = self.photos([rng.randrange(len(self.photos.sources)) for rng in rngs], rngs)
        prompts: Sequence[str] = [self.prompt] * len(rngs)
        if self.prior_weight:
            prior = self.class_latents[[rng.randrange(len(self.class_latents)) for rng in rngs]]
            latent, prompts, rngs = torch.cat([latent, prior.to(latent)]), [*prompts, *[self.class_prompt] * len(rngs)], [*rngs, *rngs]
        timestep, noise = timesteps_of(model, rngs), noise_of(model, rngs)
        noisy_latent = model.q_sample(latent, timestep, noise)
        with self.trained.in_place():
            eps = model.apply_model(noisy_latent, timestep, model.get_learned_conditioning(prompts)).float()
        error = F.mse_loss(eps, noise, reduction="none").mean((1, 2, 3))
        own, prior = error[:len(numbers)].mean(), error[len(numbers):]
        return own + self.prior_weight * prior.mean() if self.prior_weight else own
