"""The seeded mixture of S_ID and S_Reg (paper section 3.5): which sample is drawn when.

Sample i is a pure function of (seed, i). So a resumed run, another batch size or another number of devices draws the
same samples in the same order.
"""

import random
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sample:
    """One draw; the seeds are those of torch generators on the CPU."""

    is_identity: bool   # from S_ID, else from S_Reg
    item: int           # index into that set
    template: int       # index into the templates; S_Reg's captions stand alone
    timestep: int       # t, 0 .. num_timesteps - 1
    posterior_seed: int  # of the latent's draw from the autoencoder's posterior
    noise_seed: int


@dataclass(frozen=True)
class Mixture:
    """How samples are drawn: S_ID with probability `mix`, uniform within each set.

    t is uniform within one of `bins` equal parts of the training timesteps, and the part is uniform too: the released
    code's --ddim_steps.
    """

    seed: int
    n_identity: int
    n_caption: int
    n_templates: int
    bins: int = 50
    mix: float = 0.5
    num_timesteps: int = 1000

    def sample(self, i: int) -> Sample:
        """Draw number i, i >= 0."""
        rng = random.Random(f"apl sample {self.seed} {i}")
        is_identity = rng.random() < self.mix
        item = rng.randrange(self.n_identity if is_identity else self.n_caption)
        return Sample(
            is_identity=is_identity, item=item, template=rng.randrange(self.n_templates),
            timestep=int((rng.randrange(self.bins) + rng.random()) * self.num_timesteps / self.bins),
            posterior_seed=rng.getrandbits(63), noise_seed=rng.getrandbits(63))


def normal(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal numbers that depend on `seed` alone; drawn on the CPU, so equal for every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
