"""Our step, computed by the code that train.py runs."""

from collections.abc import Sequence

import torch

from ldm.apl.acceleration import RecordedStep, compile_blocks
from ldm.apl.examples import Samples, Texts
from ldm.apl.fast_step import Batch, frozen_predictions, training_batches, training_step
from ldm.apl.launch import set_precision
from ldm.apl.look_ahead import SAMPLES
from ldm.apl.trainer import adam
from ldm.benchmark.subject import Example, method_of, twin
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import Manager
from ldm.sharing import Devices

STEPS_TOGETHER = SAMPLES


class OurSteps:
    """Training steps of one kind, see `naive.NaiveSteps`; `run` computes the frozen predictions of all its examples at once.

    Latents and frozen contexts are cached, as after the first epoch of a training; sampling the noise is not timed.

    Args:
        recorded: replay the step as one CUDA graph.
    """

    def __init__(self, fabric: Devices, model: LatentDiffusion, prefix: Manager, kind: str, *, recorded: bool = False):
        self.model, self.prefix, self.kind = model, prefix, kind
        self.texts = Texts(model, prefix)
        optimizer = adam(prefix, 1e-3, recorded=recorded)

        def step(batch: Batch) -> torch.Tensor:
            return training_step(fabric, model, prefix, optimizer, batch, train_method=method_of(kind))

        self.step = RecordedStep(step, optimizer) if recorded else step

    def run(self, examples: Sequence[Example], batch_size: int = 1) -> None:
        """Make a step on each `batch_size` examples, which updates the prefix."""
        samples = [self._samples(examples[start:start + batch_size]) for start in range(0, len(examples), batch_size)]
        latent, timestep, noise = (torch.cat([getattr(example, name) for example in examples])
                                   for name in ("latent", "timestep", "noise"))
        noisy_latent = self.model.q_sample(latent, timestep, noise)
        targets = frozen_predictions(self.model, samples, noisy_latent, self.texts, with_names=self.kind != "apl-released")
        for batch in training_batches(samples, {"noisy_latent": noisy_latent, **targets}, self.texts):
            self.step(batch)

    def _samples(self, examples: Sequence[Example]) -> Samples:
        return Samples(list(range(len(examples))), [example.t for example in examples], [example.name_prompt for example in examples],
                       [example.attribute_prompt for example in examples], 0 if self.kind == "regularising" else len(examples))


def as_trained(model: LatentDiffusion, precision: str, *, compiled: bool = False) -> LatentDiffusion:
    """Copy of the model in the precision and layout of train.py ("fp32" or "bf16"); shares text encoder and autoencoder."""
    copied = twin(model)
    set_precision(copied, precision)
    if compiled:
        compile_blocks(copied)
    return copied
