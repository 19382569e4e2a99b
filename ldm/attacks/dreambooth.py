"""DreamBooth (arXiv 2208.12242), the attack of section 4.4: the model learns a new person from a few photos, under a rare token."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.finetuning.samples import ImageLatents, noise_of, rng_of, timesteps_of
from ldm.finetuning.weights import Weights


class DreamBooth:
    """Training samples: one of the photos with the prompt "a photo of sks person", and a drawn picture of "a photo of a person".

    Args:
        weights: what is trained; with the text encoder's among them, contexts are computed with those.
        photos: of the person, encoded.
        prompt, class_prompt: of the photos and of the class's pictures.
        class_latents: (N, 4, h, w), what the frozen model draws for class_prompt.
        prior_weight: of the loss on the class's pictures (prior preservation).
    """

    def __init__(self, weights: Weights, photos: ImageLatents, *, prompt: str, class_prompt: str,
                 class_latents: Tensor, prior_weight: float, seed: int):
        self.model, self.trained, self.photos = weights.model, weights, photos
        self.prompt, self.class_prompt, self.class_latents = prompt, class_prompt, class_latents
        self.prior_weight, self.seed = prior_weight, seed

    def loss(self, numbers: range) -> Tensor:
        """See `ldm.finetuning.trainer.Method`."""
        rngs = [rng_of(self.seed, number) for number in numbers]
        latent = self.photos([rng.randrange(len(self.photos.sources)) for rng in rngs], rngs)
        prompts: Sequence[str] = [self.prompt] * len(rngs)
        if self.prior_weight:
            drawn = self.class_latents[[rng.randrange(len(self.class_latents)) for rng in rngs]]
            latent, prompts, rngs = torch.cat([latent, drawn.to(latent)]), [*prompts, *[self.class_prompt] * len(rngs)], [*rngs, *rngs]
        timestep, noise = timesteps_of(self.model, rngs), noise_of(self.model, rngs)
        noisy_latent = self.model.q_sample(latent, timestep, noise)
        with self.trained.in_place():
            eps = self.model.apply_model(noisy_latent, timestep, self.model.get_learned_conditioning(prompts)).float()
        error = F.mse_loss(eps, noise, reduction="none").mean((1, 2, 3))
        own, prior = error[:len(numbers)].mean(), error[len(numbers):]
        return own + self.prior_weight * prior.mean() if self.prior_weight else own
