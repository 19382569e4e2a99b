"""DreamBooth (arXiv 2208.12242), the attack of section 4.4: fine-tunes the model on a few photos of a person under a rare token."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.finetuning.samples import ImageLatents, noise_of, rng_of, timesteps_of
from ldm.finetuning.weights import Weights


class DreamBooth:
    """DreamBooth as a `ldm.finetuning.trainer.Method`. A training sample is a photo with the prompt "a photo of sks person", and a
    generated image of the prompt "a photo of a person".

    Args:
        weights: the trained parameters; if they include the text encoder, contexts are computed with it.
        photos: latents of the person's photos.
        prompt, class_prompt: prompts of the photos and of the class's images.
        class_latents: (N, 4, h, w), images that the frozen model generates for class_prompt.
        prior_weight: weight of the loss on the class's images (prior preservation); 0 omits it.
    """

    def __init__(self, weights: Weights, photos: ImageLatents, *, prompt: str, class_prompt: str,
                 class_latents: Tensor, prior_weight: float, seed: int):
        self.model, self.trained, self.photos = weights.model, weights, photos
        self.prompt, self.class_prompt, self.class_latents = prompt, class_prompt, class_latents
        self.prior_weight, self.seed = prior_weight, seed

    def loss(self, numbers: range) -> Tensor:
        """Loss as defined by `ldm.finetuning.trainer.Method`."""
        rngs = [rng_of(self.seed, number) for number in numbers]
        latent = self.photos([rng.randrange(len(self.photos.sources)) for rng in rngs], rngs)
        prompts: Sequence[str] = [self.prompt] * len(rngs)
        if self.prior_weight:
            prior = self.class_latents[[rng.randrange(len(self.class_latents)) for rng in rngs]]
            latent, prompts, rngs = torch.cat([latent, prior.to(latent)]), [*prompts, *[self.class_prompt] * len(rngs)], [*rngs, *rngs]
        timestep, noise = timesteps_of(self.model, rngs), noise_of(self.model, rngs)
        noisy_latent = self.model.q_sample(latent, timestep, noise)
        with self.trained.in_place():
            eps = self.model.apply_model(noisy_latent, timestep, self.model.get_learned_conditioning(prompts)).float()
        error = F.mse_loss(eps, noise, reduction="none").mean((1, 2, 3))
        own, prior = error[:len(numbers)].mean(), error[len(numbers):]
        return own + self.prior_weight * prior.mean() if self.prior_weight else own
