"""Our step, computed by the code that train.py runs, on random samples and a model with random weights in the architecture of a config.

As a command, which `seconds_on` runs, it starts one process per device, as train.py does. They make steps of one sample per device, and the
first prints the wall-clock seconds per sample of each repeat.
"""

import copy
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from args.paths import ROOT
from ldm.apl.acceleration import RecordedStep, compile_blocks
from ldm.apl.examples import Samples, Texts
from ldm.apl.fast_step import Batch, batch_of, frozen_predictions, training_step
from ldm.apl.launch import launch, set_precision
from ldm.apl.look_ahead import SAMPLES
from ldm.apl.prefix import build_prefix
from ldm.apl.trainer import adam
from ldm.benchmark.measure import synchronize
from ldm.loading import read_config
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import Manager
from ldm.sharing import Devices
from ldm.util import UserError, instantiate_from_config

METHODS = {"identity": "apl", "regularising": "apl", "apl-released": "apl-released"}  # kind of step -> --train_method
NAMES = ("Alden Dunwick", "Alina Brunfield", "Bram Ashton", "Calla Cormond")
ATTRIBUTES = ("a woman with long red hair", "a man with a grey beard", "a young man with black hair", "an old woman with glasses")


@dataclass(frozen=True)
class Example:
    """One training sample of a loop with batch size 1."""

    image: Tensor            # (1, 3, H, W) in [-1, 1]
    latent: Tensor           # z_0, (1, 4, h, w), sampled from the image's posterior with `posterior_noise`
    posterior_noise: Tensor  # as `latent`
    noise: Tensor            # as `latent`
    timestep: Tensor         # t, (1,)
    name_prompt: str         # c1
    attribute_prompt: str    # c2; c1 in a regularising step


def random_model(config: Mapping[str, Any], *, seed: int, device: torch.device) -> LatentDiffusion:
    """Frozen model of a config with random weights, none of them zero: a zero weight would cut off an input and its gradient."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: LatentDiffusion = instantiate_from_config(config)
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    return model.to(device).eval().requires_grad_(False)


def as_trained(model: LatentDiffusion, precision: str, *, compiled: bool = False) -> LatentDiffusion:
    """Copy of the model in the precision and layout of train.py ("fp32" or "bf16"); shares text encoder and autoencoder."""
    copied = copy.deepcopy(model, {id(part): part for part in (model.cond_stage_model, model.first_stage_model)})
    set_precision(copied, precision)
    if compiled:
        compile_blocks(copied)
    return copied


@torch.no_grad()
def random_examples(model: LatentDiffusion, count: int, *, regularising: bool, seed: int) -> list[Example]:
    """Samples with random images, noise and timesteps; prompts repeat, as in a training."""
    generator, side, examples = torch.Generator().manual_seed(seed), model.image_size, []
    for number in range(count):
        image = (torch.rand(1, 3, 8 * side, 8 * side, generator=generator) * 2 - 1).to(model.device)
        posterior_noise, noise = (torch.randn(1, model.channels, side, side, generator=generator).to(model.device) for _ in range(2))
        name = f"A portrait of {NAMES[number % len(NAMES)]}"
        attributes = name if regularising else f"A portrait of {ATTRIBUTES[number % len(ATTRIBUTES)]}"
        timestep = torch.randint(model.num_timesteps, (1,), generator=generator).to(model.device)
        examples.append(Example(image, latent_of(model, image, posterior_noise), posterior_noise, noise, timestep, name, attributes))
    return examples


def latent_of(model: LatentDiffusion, image: Tensor, posterior_noise: Tensor) -> Tensor:
    """z_0 (B, 4, h, w) of an image (B, 3, H, W): sample of the posterior with this noise."""
    posterior = model.encode_first_stage(image)
    return model.get_first_stage_encoding(posterior.mean + posterior.std * posterior_noise)


class OurSteps:
    """Training steps of one kind, see `naive.NaiveSteps`, with `recorded` as one CUDA graph; predicts for all examples of a run at once.

    Latents and frozen contexts are cached, as after the first epoch of a training; sampling the noise is not timed.
    """

    def __init__(self, fabric: Devices, model: LatentDiffusion, prefix: Manager, kind: str, *, recorded: bool = False):
        self.model, self.prefix, self.kind = model, prefix, kind
        self.texts = Texts(model, prefix)
        optimizer = adam(prefix, 1e-3, recorded=recorded)

        def step(batch: Batch) -> Tensor:
            return training_step(fabric, model, prefix, optimizer, batch, train_method=METHODS[kind])

        self.step = RecordedStep(step, optimizer) if recorded else step

    def run(self, examples: Sequence[Example], batch_size: int = 1) -> None:
        """Make a step on each `batch_size` examples, which updates the prefix."""
        latent, timestep, noise = (torch.cat([getattr(example, name) for example in examples])
                                   for name in ("latent", "timestep", "noise"))
        name_prompts = [example.name_prompt for example in examples]
        samples = Samples(list(range(len(examples))), timestep.tolist(), name_prompts,
                          [example.attribute_prompt for example in examples], name_prompts, [self.kind != "regularising"] * len(examples),
                          [-1] * len(examples))
        noisy_latent = self.model.q_sample(latent, timestep, noise)
        targets = frozen_predictions(self.model, samples, noisy_latent, self.texts, with_names=self.kind != "apl-released")
        for batch in batch_of(samples, {"noisy_latent": noisy_latent, **targets}, self.texts).parts(len(examples) // batch_size):
            self.step(batch)


def seconds_on(devices: str, config_path: Path, **numbers: Any) -> list[float]:
    """Wall-clock seconds per sample of each repeat, on devices such as "cpu:2" or "0,1", measured by `main` in a separate process."""
    given = json.dumps({"devices": devices, "config_path": str(config_path.resolve()), **numbers})
    done = subprocess.run([sys.executable, "-m", "ldm.benchmark.ours", given], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["without a message"])[-1]
        raise UserError(f"the processes on --devices {devices} ended with status {done.returncode} ({reason}); leave out 'devices'")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(config_path: str, devices: str, *, precision: str, threads: int, seed: int, repeats: int) -> None:
    torch.set_num_threads(threads)
    fabric = launch(devices)
    model = as_trained(random_model(read_config(config_path), seed=seed, device=fabric.device), precision)
    steps = OurSteps(fabric, model, build_prefix(model), "identity")
    count = max(1, SAMPLES // fabric.world_size)
    examples = random_examples(model, count, regularising=False, seed=seed + fabric.global_rank)
    seconds = []
    for _ in range(repeats + 1):  # the first is not counted
        fabric.barrier()
        start = time.perf_counter()
        steps.run(examples)
        synchronize(model.device)
        fabric.barrier()
        seconds.append((time.perf_counter() - start) / (count * fabric.world_size))
    if fabric.is_global_zero:
        print(json.dumps(seconds[1:]))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
