"""Model and samples of the benchmark: random weights in the architecture of a config, and random training samples."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import instantiate_from_config

NAMES = ("Alden Dunwick", "Alina Brunfield", "Bram Ashton", "Calla Cormond")
ATTRIBUTES = ("a woman with long red hair", "a man with a grey beard", "a young man with black hair", "an old woman with glasses")


@dataclass(frozen=True)
class Example:
    """One training sample of a loop with batch size 1."""

    image: Tensor            # (1, 3, H, W) in [-1, 1]
    latent: Tensor           # z_0, (1, 4, h, w), sampled from the image's posterior with `posterior_noise`
    posterior_noise: Tensor  # as `latent`
    noise: Tensor            # as `latent`
    t: int                   # timestep
    name_prompt: str         # c1
    attribute_prompt: str    # c2; c1 in a regularising step

    @property
    def timestep(self) -> Tensor:
        """(1,)"""
        return torch.tensor([self.t], device=self.latent.device)


def method_of(kind: str) -> str:
    """--train_method of a kind of step; "identity" and "regularising" differ only in their samples."""
    return "apl-released" if kind == "apl-released" else "apl"


def random_model(config: Mapping[str, Any], *, seed: int, device: torch.device) -> LatentDiffusion:
    """Frozen model of a config with random weights, none of them zero: a zero weight would cut off an input and its gradient."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: LatentDiffusion = instantiate_from_config(config)
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    return model.to(device).eval().requires_grad_(False)


def twin(model: LatentDiffusion) -> LatentDiffusion:
    """Copy of the model with its own U-Net; shares text encoder and autoencoder."""
    shared = (model.cond_stage_model, model.first_stage_model)
    return copy.deepcopy(model, {id(part): part for part in shared})


@torch.no_grad()
def random_examples(model: LatentDiffusion, count: int, *, regularising: bool, seed: int) -> list[Example]:
    """Samples with random images, noise and timesteps; prompts repeat, as in a training."""
    generator = torch.Generator().manual_seed(seed)
    side, device, examples = model.image_size, model.device, []
    for number in range(count):
        image = (torch.rand(1, 3, 8 * side, 8 * side, generator=generator) * 2 - 1).to(device)
        posterior_noise, noise = (torch.randn(1, model.channels, side, side, generator=generator).to(device) for _ in range(2))
        name = f"A portrait of {NAMES[number % len(NAMES)]}"
        attributes = name if regularising else f"A portrait of {ATTRIBUTES[number % len(ATTRIBUTES)]}"
        t = int(torch.randint(model.num_timesteps, (1,), generator=generator))
        examples.append(Example(image, draw_latent(model, image, posterior_noise), posterior_noise, noise, t, name, attributes))
    return examples


def draw_latent(model: LatentDiffusion, image: Tensor, posterior_noise: Tensor) -> Tensor:
    """z_0 (B, 4, h, w) of an image (B, 3, H, W): sample of the posterior with this noise."""
    posterior = model.encode_first_stage(image)
    return model.get_first_stage_encoding(posterior.mean + posterior.std * posterior_noise)
