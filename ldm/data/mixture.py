"""The seeded mixture of S_ID and S_Reg (paper section 3.5).

Sample i is a pure function of (seed, i). A resumed run, another batch size and another number of devices therefore see the same
samples in the same order.
"""

import random
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Sample:
    """One training sample. The seeds are for torch generators on the CPU."""

    is_identity: bool   # from S_ID, else from S_Reg
    item: int           # index into that set
    template: int       # index into the templates; unused for S_Reg
    timestep: int       # t, 0 .. num_timesteps - 1
    posterior_seed: int  # for sampling the latent from the autoencoder's posterior
    noise_seed: int
    attack_seed: int    # for the attack on half of S_ID's prompts, see ldm/apl/robust.py; -1: no attack


@dataclass(frozen=True)
class Mixture:
    """Distribution of training samples: S_ID with probability `mix`, uniform within each set.

    The timestep is uniform within a uniformly chosen one of `bins` equal parts of 0 .. num_timesteps - 1, as the released code's
    --ddim_steps does.
    """

    seed: int
    n_identity: int
    n_caption: int
    n_templates: int
    bins: int = 50
    mix: float = 0.5
    num_timesteps: int = 1000
    attacked: tuple[int, ...] = ()  # indices into S_ID of the samples under attack; empty: of any

    def sample(self, i: int) -> Sample:
        """Sample number i, i >= 0."""
        rng = random.Random(f"apl sample {self.seed} {i}")
        is_identity = rng.random() < self.mix
        item = rng.randrange(self.n_identity if is_identity else self.n_caption)
        sample = Sample(
            is_identity=is_identity, item=item, template=rng.randrange(self.n_templates),
            timestep=int((rng.randrange(self.bins) + rng.random()) * self.num_timesteps / self.bins),
            posterior_seed=rng.getrandbits(63), noise_seed=rng.getrandbits(63),
            attack_seed=rng.getrandbits(63) if is_identity and rng.random() < 0.5 else -1)
        if self.attacked and sample.attack_seed >= 0:
            return replace(sample, item=self.attacked[sample.attack_seed % len(self.attacked)])
        return sample


def normal(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal noise of this shape, a function of `seed` only; generated on the CPU, so equal for every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
