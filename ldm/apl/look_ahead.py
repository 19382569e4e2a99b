"""The batches of a training, with frozen predictions computed some steps ahead or read from a cache (paper section 3.4, Eq. 5)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.apl.examples import Samples, Texts, TrainingSet
from ldm.apl.fast_step import Batch, frozen_predictions, identity_rows, training_batches
from ldm.apl.target_cache import TargetCache
from ldm.models.diffusion.ddpm import LatentDiffusion

SAMPLES = 16  # per call of `frozen_predictions`, unless memory is short; more are no faster on a CPU
SHARE_OF_MEMORY = 0.5  # largest part of the free memory that such a call may use


@dataclass(frozen=True)
class Share:
    """The samples of one rank: its shard of every step, and the number of steps that it looks ahead."""

    batch_size: int   # of all devices together
    steps: int        # whose frozen predictions are computed together
    rank: int = 0
    world_size: int = 1

    def numbers(self, step: int) -> range:
        """Sample numbers (in the mixture) of this rank in a step, counted from 0."""
        return range(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.world_size)

    def groups(self, first_step: int, iterations: int) -> Iterator[range]:
        """Groups of steps whose frozen predictions are computed together, from the group of `first_step` on.

        The groups do not depend on `first_step`, so a resumed run computes the same bits.
        """
        first = first_step // self.steps * self.steps if first_step < iterations else iterations
        for start in range(first, iterations, self.steps):
            yield range(start, min(start + self.steps, iterations))


class LookAhead:
    """Iterable over the batches of the remaining steps; computes frozen predictions one group of steps at a time.

    Args:
        share: the samples of this rank.
        first_step: number of finished steps.
        with_names: False for a method that does not use eps_name, which is then a copy of eps_attributes.
        cache: frozen predictions on disk, read and written.
    """

    def __init__(self, model: LatentDiffusion, data: TrainingSet, texts: Texts, share: Share, *, first_step: int, iterations: int,
                 with_names: bool = True, cache: TargetCache | None = None):
        self.model, self.data, self.texts, self.share = model, data, texts, share
        self.first_step, self.iterations, self.with_names, self.cache = first_step, iterations, with_names, cache

    def check(self, *, show_progress: bool = False) -> None:
        """Decode the images of all samples that are not in the cache; UserError if one cannot be decoded."""
        groups = self.share.groups(self.first_step, self.iterations)
        missing = (steps for steps in groups if self.cache is None or not self.cache.has(steps))
        self.data.check((number for steps in missing for step in steps for number in self.share.numbers(step)),
                        show_progress=show_progress)

    def __iter__(self) -> Iterator[Batch]:
        for steps in self.share.groups(self.first_step, self.iterations):
            samples = [self.data.samples(self.share.numbers(step)) for step in steps]
            batches = training_batches(samples, self._targets(steps, samples), self.texts)
            for step, batch in zip(steps, batches, strict=True):
                if step >= self.first_step:
                    yield batch

    def _targets(self, steps: range, samples: Sequence[Samples]) -> dict[str, Tensor]:
        """noisy_latent and the result of `frozen_predictions`, from the cache or computed."""
        count, named = sum(len(one.numbers) for one in samples), len(identity_rows(samples)) if self.with_names else 0
        rows = {"noisy_latent": count, "eps_attributes": count, "eps_name": named}
        targets = self.cache.load(steps, rows) if self.cache else None
        if targets is None:
            noisy_latent = torch.cat([self.data.noisy_latent(one) for one in samples])
            targets = {"noisy_latent": noisy_latent,
                       **frozen_predictions(self.model, samples, noisy_latent, self.texts, with_names=self.with_names)}
            if self.cache:
                self.cache.save(steps, targets)
        return targets


def steps_ahead(model: LatentDiffusion, batch_size: int, world_size: int) -> int:
    """Number of steps of `batch_size` samples (of all devices together) whose frozen predictions fit into the memory of this device."""
    return max(1, _samples_that_fit(model) * world_size // batch_size)


@torch.no_grad()
def _samples_that_fit(model: LatentDiffusion) -> int:
    """SAMPLES, or fewer on a GPU with little free memory; a sample may need two rows of the U-Net, for c1 and c2."""
    if model.device.type != "cuda":
        return SAMPLES
    side = model.image_size
    row = (torch.randn(1, model.channels, side, side), torch.zeros(1, dtype=torch.int64),
           torch.zeros(1, *model.cond_stage_model.context_shape))
    before = torch.cuda.memory_allocated(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    model.apply_model(*(tensor.to(model.device) for tensor in row))
    taken = torch.cuda.max_memory_allocated(model.device) - before
    free, _ = torch.cuda.mem_get_info(model.device)
    return min(SAMPLES, int(SHARE_OF_MEMORY * free / (2 * taken)))
