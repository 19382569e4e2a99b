"""What the training steps ahead need of the frozen model: eps(x, tau(c1), t) and eps(x, tau(c2), t) (paper section 3.4, Eq. 5).

They do not depend on the prefix. So those of the next steps come from one call of the U-Net, and can be kept on disk.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.apl.examples import Samples, Texts, TrainingSet
from ldm.apl.target_cache import TargetCache
from ldm.models.diffusion.ddpm import LatentDiffusion

SAMPLES = 16  # whose frozen predictions are made at once, unless memory is short; more were no faster on a CPU
SHARE_OF_MEMORY = 0.5  # of what is free, at most, for these predictions


@dataclass(frozen=True)
class Batch:
    """A training step's samples on the device, with what the frozen model predicts for them; S_ID first."""

    noisy_latent: Tensor    # z_t, (B, 4, h, w)
    timestep: Tensor        # t, (B,)
    token_ids: Tensor       # of [AP] + c1, (B, 77)
    eps_name: Tensor        # as noisy_latent
    eps_attributes: Tensor  # as noisy_latent
    is_identity: Tensor     # 1 for S_ID, 0 for S_Reg; (B,) float32

    def parts(self, count: int) -> Iterator["Batch"]:
        """The samples in `count` parts of nearly equal size, in order; none is empty, so there may be fewer."""
        pieces = [tensor.tensor_split(min(count, len(self.timestep))) for tensor in vars(self).values()]
        return (Batch(*piece) for piece in zip(*pieces, strict=True))


@dataclass(frozen=True)
class Share:
    """Which samples one device takes: its share of every step, and how many steps it looks ahead."""

    batch_size: int   # of all devices together
    steps: int        # whose frozen predictions are made at once
    rank: int = 0     # of the device, below world_size
    world_size: int = 1

    def numbers(self, step: int) -> range:
        """Numbers in the mixture of the samples that this device takes in one step (from 0)."""
        return range(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.world_size)

    def groups(self, first_step: int, iterations: int) -> Iterator[range]:
        """The steps that look ahead together, from the group of `first_step` on.

        Which steps belong together does not depend on `first_step`, so that a run that goes on computes the same bits.
        """
        first = first_step // self.steps * self.steps if first_step < iterations else iterations
        for start in range(first, iterations, self.steps):
            yield range(start, min(start + self.steps, iterations))


class LookAhead:
    """Iterates over the batch of each step that is left, and keeps the frozen predictions one group of steps ahead.

    Args:
        share: what this device takes.
        first_step: number of steps that are done.
        with_names: False where eps_name is never used; it is eps_attributes then.
        cache: where frozen predictions are taken from, and kept.
    """

    def __init__(self, model: LatentDiffusion, data: TrainingSet, texts: Texts, share: Share, *, first_step: int, iterations: int,
                 with_names: bool = True, cache: TargetCache | None = None):
        self.model, self.data, self.texts, self.share = model, data, texts, share
        self.first_step, self.iterations, self.with_names, self.cache = first_step, iterations, with_names, cache

    def check(self, *, show_progress: bool = False) -> None:
        """Whether the pictures of all samples whose targets are not kept can be decoded; UserError if not."""
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
        """noisy_latent and what `frozen_predictions` returns, kept or computed."""
        count, named = sum(len(one.numbers) for one in samples), len(_named(samples)) if self.with_names else 0
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
    """Steps of `batch_size` samples (of all devices together) whose frozen predictions fit into this device's memory at once."""
    return max(1, _samples_that_fit(model) * world_size // batch_size)


@torch.no_grad()
def frozen_predictions(model: LatentDiffusion, samples: Sequence[Samples], noisy_latent: Tensor, texts: Texts, *,
                       with_names: bool = True) -> dict[str, Tensor]:
    """The predictions of Eq. 5 without the prefix, from one call of the U-Net.

    Args:
        samples: of some steps, N in all.
        noisy_latent: z_t of all of them, (N, 4, h, w).
        with_names: False leaves out eps_name, for an objective that never uses it.

    Returns:
        eps_attributes (N, 4, h, w), and eps_name of the samples of S_ID alone, (M, 4, h, w): where c1 = c2 one serves for both.
    """
    timestep = torch.tensor([t for one in samples for t in one.timesteps], device=model.device)
    prompts = [c2 for one in samples for c2 in one.attribute_prompts]
    named = _named(samples) if with_names else []
    names = [c1 for one in samples for c1 in one.name_prompts[:one.n_identity]] if with_names else []
    eps = model.apply_model(torch.cat([noisy_latent, noisy_latent[named]]), torch.cat([timestep, timestep[named]]),
                            texts.contexts(prompts + names))
    return {"eps_attributes": eps[:len(prompts)], "eps_name": eps[len(prompts):]}


def _named(samples: Sequence[Samples]) -> list[int]:
    """Which of all the samples are from S_ID."""
    rows, start = [], 0
    for one in samples:
        rows += range(start, start + one.n_identity)
        start += len(one.numbers)
    return rows


def training_batches(samples: Sequence[Samples], targets: dict[str, Tensor], texts: Texts) -> Iterator[Batch]:
    """The batch of each step.

    Args:
        samples: of each step.
        targets: noisy_latent of all of them, and what `frozen_predictions` returns.
    """
    device = targets["noisy_latent"].device
    eps_name = targets["eps_attributes"].clone()
    if len(targets["eps_name"]):
        eps_name[_named(samples)] = targets["eps_name"]
    sizes = [len(one.numbers) for one in samples]
    pieces = [tensor.split(sizes) for tensor in (targets["noisy_latent"], eps_name, targets["eps_attributes"])]
    for one, noisy_latent, name, attributes in zip(samples, *pieces, strict=True):
        is_identity = torch.arange(len(one.numbers), device=device) < one.n_identity
        yield Batch(noisy_latent, torch.tensor(one.timesteps, device=device), texts.token_ids(one.name_prompts), name, attributes,
                    is_identity.float())


@torch.no_grad()
def _samples_that_fit(model: LatentDiffusion) -> int:
    """SAMPLES, or fewer on a GPU with little free memory; each may need two rows of the U-Net, for c1 and c2."""
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
