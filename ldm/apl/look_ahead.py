"""The batches of a training, with frozen predictions computed some steps ahead or read from a cache (paper section 3.4, Eq. 5)."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.apl.examples import Samples, Texts, TrainingSet
from ldm.apl.fast_step import Batch, batch_of, frozen_predictions
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.run_folder import write_json
from ldm.util import warn, write_atomically

SAMPLES = 16           # per call of `frozen_predictions`; more are no faster on a CPU
SHARE_OF_MEMORY = 0.5  # largest share of the free memory that such a call may use


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
        """Groups of steps whose frozen predictions are computed together, from that of `first_step` on; a resumed run has the same ones."""
        first = first_step // self.steps * self.steps if first_step < iterations else iterations
        for start in range(first, iterations, self.steps):
            yield range(start, min(start + self.steps, iterations))


class LookAhead:
    """Iterable over the batches of the steps after `first_step`; computes frozen predictions one group of steps at a time.

    Args:
        with_names: False for a method that does not use eps_name, which is then a copy of eps_attributes.
        cache: frozen predictions on disk, read and written.
    """

    def __init__(self, model: LatentDiffusion, data: TrainingSet, texts: Texts, share: Share, *, first_step: int, iterations: int,
                 with_names: bool = True, cache: "TargetCache | None" = None):
        self.model, self.data, self.texts, self.share = model, data, texts, share
        self.first_step, self.iterations, self.with_names, self.cache = first_step, iterations, with_names, cache

    def check(self, *, show_progress: bool = False) -> None:
        """Decode the images of all samples that are not in the cache; UserError if one cannot be decoded."""
        self.data.check((number for steps in self.share.groups(self.first_step, self.iterations)
                         if self.cache is None or not self.cache.has(steps)
                         for step in steps for number in self.share.numbers(step)), show_progress=show_progress)

    def __iter__(self) -> Iterator[Batch]:
        for steps in self.share.groups(self.first_step, self.iterations):
            samples = self.data.samples(*map(self.share.numbers, steps))
            batches = batch_of(samples, self._targets(steps, samples), self.texts).parts(len(steps))
            yield from (batch for step, batch in zip(steps, batches, strict=True) if step >= self.first_step)

    def _targets(self, steps: range, samples: Samples) -> dict[str, Tensor]:
        """noisy_latent and the result of `frozen_predictions`, from the cache or computed."""
        count, named = len(samples.numbers), len(samples.identity_rows) if self.with_names else 0
        latent = self.model.channels, self.model.image_size, self.model.image_size
        shapes = {"noisy_latent": (count, *latent), "eps_attributes": (count, *latent), "eps_name": (named, *latent)}
        targets = self.cache.load(steps, shapes) if self.cache else None
        if targets is None:
            noisy_latent = self.data.noisy_latent(samples)
            targets = {"noisy_latent": noisy_latent,
                       **frozen_predictions(self.model, samples, noisy_latent, self.texts, with_names=self.with_names)}
            if self.cache:
                self.cache.save(steps, targets)
        return targets


@torch.no_grad()
def steps_ahead(model: LatentDiffusion, batch_size: int, world_size: int) -> int:
    """Number of steps of `batch_size` samples (of all devices together) whose frozen predictions are computed together.

    They have SAMPLES samples, or fewer on a GPU with little free memory. A sample may need two rows of the U-Net, for c1 and c2.
    """
    fitting, side, device = SAMPLES, model.image_size, model.device
    if device.type == "cuda":
        row = (torch.randn(1, model.channels, side, side), torch.zeros(1, dtype=torch.int64),
               torch.zeros(1, *model.cond_stage_model.context_shape))
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        model.apply_model(*(tensor.to(device) for tensor in row))
        taken = torch.cuda.max_memory_allocated(device) - before
        fitting = min(SAMPLES, int(SHARE_OF_MEMORY * torch.cuda.mem_get_info(device)[0] / (2 * taken)))
    return max(1, fitting * world_size // batch_size)


class TargetCache:
    """Frozen predictions on disk, shared by sweeps over alpha, m, lr, init and seed (train.py --target_cache).

        <folder>/<hash of the key>/key.json                          the key
        <folder>/<hash of the key>/<first step>-<last>.safetensors   z_t, eps_attributes and eps_name of a group of steps

    Args:
        folder: may contain the targets of other keys, and serve several runs at the same time.
        key: everything that determines the targets, as JSON values.
        limit: size limit of all files in `folder` together, in bytes; what does not fit is computed each time.
        dtype: of the U-Net, whose inputs and outputs it stores without loss.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], *, limit: float, dtype: torch.dtype, device: torch.device):
        self.root, self.limit, self.dtype, self.device = folder, limit, dtype, device
        self.folder = folder / hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
        self._is_full = False
        files = (path for path in folder.rglob("*.safetensors") if path.name[0] != ".")  # a leading dot marks unfinished files
        self._used = sum(path.stat().st_size for path in files)  # other runs may add files, so the limit is approximate
        write_json(self.folder / "key.json", key)

    def has(self, steps: range) -> bool:
        """Whether the cache holds the targets of these steps."""
        return self._path(steps).exists()

    def load(self, steps: range, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
        """Load the targets of these steps, float32 of these shapes (N, 4, h, w) by name; None if there are no usable ones."""
        if not self.has(steps):
            return None
        path = self._path(steps)
        try:
            targets = load_file(path)
        except (OSError, SafetensorError) as error:
            warn(f"the stored targets {path} cannot be read ({error}) and are computed again")
            return None
        if {name: tuple(tensor.shape) for name, tensor in targets.items()} != shapes:
            warn(f"{path} holds no targets of this training, and they are computed again")
            return None
        return {name: tensor.to(self.device, torch.float32) for name, tensor in targets.items()}

    def save(self, steps: range, targets: Mapping[str, Tensor]) -> None:
        """Write the targets of these steps to one file, unless the cache is full."""
        kept = {name: tensor.to("cpu", self.dtype).contiguous() for name, tensor in targets.items()}
        size = sum(tensor.nbytes for tensor in kept.values())
        if self._is_full or self._used + size > self.limit:
            return self._stop(f"its {self.limit / 1e9:g} GB are used up (--target_cache_gb)")
        try:
            write_atomically(self._path(steps), lambda path: save_file(kept, path))
            self._used += size
        except (OSError, SafetensorError) as error:  # a full disk
            self._stop(str(error))

    def _stop(self, reason: str) -> None:
        if not self._is_full:
            warn(f"the target cache {self.root} takes no more ({reason}); further targets are computed each time")
        self._is_full = True

    def _path(self, steps: range) -> Path:
        return self.folder / f"{steps.start:07d}-{steps[-1]:07d}.safetensors"
