"""Our step, through the code that train.py runs; all that this benchmark knows of the trainer is in this file."""

from collections.abc import Sequence

import torch

from ldm.apl.acceleration import RecordedStep, compile_blocks
from ldm.apl.examples import Samples, Texts
from ldm.apl.launch import set_precision
from ldm.apl.look_ahead import SAMPLES, Batch, frozen_predictions, training_batches
from ldm.apl.trainer import Settings, adam, training_step
from ldm.benchmark.subject import Example, twin
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.sharing import Devices

STEPS_TOGETHER = SAMPLES


class OurSteps:
    """Steps of one kind, see `naive.NaiveSteps`; `run` makes the frozen predictions of all its examples at once.

    Latents and frozen contexts are there before, as in a training that has drawn each picture and text once; drawing noise is not timed.

    Args:
        recorded: replay the step as one CUDA graph.
    """

    def __init__(self, fabric: Devices, model: LatentDiffusion, prefix: EmbeddingManager, kind: str, *, recorded: bool = False):
        self.model, self.prefix, self.kind = model, prefix, kind
        self.texts = Texts(model, prefix)
        settings = Settings(iterations=1000, batch_size=1, grad_accum=1, lr=1e-3, lr_decay=0.0, alpha=1.0, log_every=50,
                            save_every=1000, val_every=0, train_method="apl-released" if kind == "apl-released" else "apl")
        optimizer = adam(prefix, settings.lr, recorded=recorded)

        def step(batch: Batch) -> torch.Tensor:
            return training_step(fabric, model, prefix, optimizer, batch, settings)

        self.step = RecordedStep(step, optimizer) if recorded else step

    def run(self, examples: Sequence[Example], batch_size: int = 1) -> None:
        """A step on each `batch_size` examples; the prefix moves."""
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
    """A copy of the model as train.py has it in "fp32" or "bf16"; text encoder and autoencoder are shared."""
    copied = twin(model)
    set_precision(copied, precision)
    if compiled:
        compile_blocks(copied)
    return copied
