"""train.py --dry_run: one page with the inputs of a training, the missing ones and their origin, and an estimate of memory and time.

The estimate needs only the architecture: operations and bytes are counted on fake tensors, which have shapes and lifetimes but no data.
"""

import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from args.paths import ROOT
from ldm.apl.look_ahead import SAMPLES
from ldm.apl.training_run import TrainingOptions, TrainingRun, describe, prepare_run
from ldm.data.identities import GROUPS
from ldm.device import DTYPES, devices_of, pick_precision
from ldm.loading import read_config
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.openaimodel import Downsample
from ldm.util import UserError, instantiate_from_config

IMAGES_AT_ONCE = 16  # images per batch of the final table


def show_plan(options: TrainingOptions, inputs: Sequence[Any]) -> None:
    """Print the page for the inputs that `args.train_args.train_inputs` returns; UserError at the end if one is missing."""
    width = max(len(f"{given.path}") for given in inputs)
    lines = ["reads"]
    for given in inputs:
        where = "" if given.flaw is None else where_from(given.path) or given.flaw.partition("; ")[2]
        where = where.replace("--preset sd-v1-5", f"--preset {options.preset}")
        state = "MISSING" if given.flaw else "there  " if given.path.exists() else "Hub    "  # downloaded by the training if necessary
        lines.append(f"  {state}  {str(given.path):{width}}  {where}".rstrip())
    missing = sum(given.flaw is not None for given in inputs)
    run = None if missing else prepare_run(options)
    if run is not None:
        lines += ["", describe(options, run)] + [f"left out  {run.left_out}"] * bool(run.left_out.rows)
    if all(given.flaw is None for given in inputs if given.flag == "config_path"):
        lines += ["", *estimate(options, run)]
    print("\n".join(lines))
    if missing:
        raise UserError(f"{missing} of the {len(inputs)} files and folders above are missing; data/README.md says how to get them")


def where_from(path: Path) -> str:
    """Origin and size of a file according to the tables of data/README.md; empty for a file that they do not list."""
    for line in (ROOT / "data" / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().replace("`", "") for cell in line.strip("| ").split(" | ")]
        if cells[0].strip("/") == path.as_posix():
            return ", ".join(filter(None, cells[2:4]))
    return ""


def estimate(options: TrainingOptions, run: TrainingRun | None) -> list[str]:
    """Lines on memory and time; without a run, assume that every sample needs an image of its own."""
    accelerator, _, count = devices_of(options.devices)
    count *= options.num_nodes
    device, config_path = torch.device(accelerator), options.files.config_path
    precision = pick_precision(options.precision, device)
    batch_size = max(1, options.batch_size // count)
    cost = cost_of(config_path, batch_size=max(1, batch_size // options.grad_accum), precision=precision,
                   samples_ahead=options.lookahead * batch_size if options.lookahead else max(SAMPLES, batch_size),
                   checkpointing=options.checkpointing)
    speed = speed_of(config_path, batch_size=batch_size, precision=precision, device=device)

    samples = options.iterations * options.batch_size
    images = samples if run is None else min(samples, len(run.identities) + len(run.captions))
    people = 2 * options.eval_names if run is None else sum(
        min(options.eval_names, sum(person.group == group for person in run.people.values())) for group in GROUPS)
    faces = people * options.eval_samples * (3 if options.c2 else 2)
    names = 0.0 if options.train_method == "apl-released" else options.identity_share
    parts = {f"{options.iterations} steps": cost.training_flops(samples, names=names, inner_steps=options.inner_steps) / count,
             f"encoding {images} images": images * cost.encode.flops / count,
             f"generating {faces} faces for the table": cost.sampling_flops(faces, options.eval_ddim_steps) / count}
    return [f"memory    {cost.peak / 1e9:.1f} GB on {'each ' * (count > 1)}{accelerator}: {cost.weights / 1e9:.1f} GB of weights, U-Net in "
            f"{precision}, and at most {(cost.peak - cost.weights) / 1e9:.1f} GB of intermediate results;",
            "          Python and torch need about 2 GB more, as measured on a CPU",
            f"time      about {duration(sum(parts.values()) / speed)}: "
            + ", ".join(f"{name} {duration(flops / speed)}" for name, flops in parts.items()),
            f"          at {speed / 1e12:.2g} TFLOP/s, measured just now on a block of this U-Net"]


def duration(seconds: float) -> str:
    """Such as "40 s", "12 min", "3.5 h", "5 days"."""
    for limit, unit, digits, name in ((90, 1, 0, "s"), (5400, 60, 0, "min"), (3 * 86400, 3600, 1, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{digits}f} {name}"
    return f"{seconds / 86400:.0f} days"


@dataclass(frozen=True)
class Work:
    """Floating-point operations per sample or image, and peak memory besides the weights in bytes."""

    flops: float
    peak: float


@dataclass(frozen=True)
class Cost:
    """Cost of a frozen model in one precision, on one device."""

    weights: float  # bytes
    frozen: Work    # eps without gradients, on the rows of all samples ahead, or of a batch of generated images if that is larger
    step: Work      # eps with the prefix, and its gradient, on the samples of a step or of one of its parts
    encode: Work    # one image to a latent
    decode: Work    # IMAGES_AT_ONCE latents to images

    @property
    def peak(self) -> float:
        """Required memory of the device, in bytes."""
        return self.weights + max(work.peak for work in (self.frozen, self.step, self.encode, self.decode))

    def training_flops(self, samples: int, *, names: float, inner_steps: float = 0.0) -> float:
        """Operations to train on samples: frozen predictions for c2, and for c1 of a share `names` of them; prefixed ones and gradients,
        which each inner step of an attack makes as well."""
        return samples * ((1 + names) * self.frozen.flops + (1 + inner_steps) * self.step.flops)

    def sampling_flops(self, images: int, ddim_steps: int) -> float:
        """Operations to generate images with guidance."""
        return images * (2 * ddim_steps * self.frozen.flops + self.decode.flops)


def cost_of(config_path: str | Path, *, batch_size: int, precision: str, samples_ahead: int = SAMPLES, checkpointing: bool = False) -> Cost:
    """Cost of the model of a config.

    Args:
        batch_size: samples whose gradient is computed together on this device.
        samples_ahead: samples whose frozen predictions are computed together.

    Raises:
        UserError: the config does not exist, or describes another architecture.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        model: LatentDiffusion = instantiate_from_config(read_config(config_path)).eval().requires_grad_(False)
        side, dtype, rows = model.image_size, DTYPES[precision], 2 * max(samples_ahead, IMAGES_AT_ONCE)  # for c1 and c2, or for guidance
        model.model.diffusion_model.checkpointing = checkpointing
        for module in model.model.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                setattr(module, name, torch.nn.Parameter(weight.to(dtype), requires_grad=False))
        weights = sum(weight.nbytes for weight in model.parameters())

        def eps(samples: int) -> Tensor:
            context = torch.randn(samples, *model.cond_stage_model.context_shape, requires_grad=torch.is_grad_enabled())
            return model.apply_model(torch.randn(samples, model.channels, side, side), torch.zeros(samples, dtype=torch.int64), context)

        step = _work(lambda: eps(batch_size).float().sum().backward(), batch_size, model)
        with torch.no_grad():
            return Cost(weights, frozen=_work(lambda: eps(rows), rows, model), step=step,
                        encode=_work(lambda: model.encode_first_stage(torch.randn(1, 3, 8 * side, 8 * side)), 1, model),
                        decode=_work(lambda: model.decode_first_stage(torch.randn(IMAGES_AT_ONCE, model.channels, side, side)),
                                     IMAGES_AT_ONCE, model))


def speed_of(config_path: str | Path, *, batch_size: int, precision: str, device: torch.device) -> float:
    """Operations per second of the U-Net on this device, measured on its first input block with residual and attention layers."""
    with torch.device("meta"):
        model: LatentDiffusion = instantiate_from_config(read_config(config_path))
    unet, side = model.model.diffusion_model, model.image_size
    for block in unet.input_blocks:  # to the first with attention, which in SDXL is on the second level
        if any(isinstance(layer, SpatialTransformer) for layer in block):
            break
        side >>= isinstance(block[0], Downsample)
    channels = block[0].in_layers[0].num_channels
    block.to_empty(device=device).to(DTYPES[precision])
    for weight in block.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    hidden, embedding, context = (torch.randn(batch_size, *shape, device=device, dtype=DTYPES[precision]) for shape in (
        (channels, side, side), (unet.time_embed[0].out_features,), model.cond_stage_model.context_shape))
    seconds = []
    with torch.no_grad(), flop_counter() as flops:
        for _ in range(5):
            start = time.perf_counter()
            block(hidden, embedding, context).sum().item()  # .item() waits for the device
            seconds.append(time.perf_counter() - start)
    return flops.get_total_flops() / len(seconds) / min(seconds)


def flop_counter() -> FlopCounterMode:
    """Torch's counter with the attention on a CPU, which it lacks; all attention kernels count alike."""
    aten = torch.ops.aten
    return FlopCounterMode(display=False, custom_mapping={
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),  # two products
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda _, q, k, v, *__, **___: 2 * sdpa_flop_count(q, k, v)})


def _work(run: Callable[[], object], count: int, model: torch.nn.Module) -> Work:
    """Work of `run`, which processes `count` samples or images."""
    with flop_counter() as flops:
        run()
    with LiveBytes(model) as live:  # separately: the other counter keeps tensors alive
        run()
    return Work(flops.get_total_flops() / count, live.peak)


class LiveBytes(TorchDispatchMode):
    """Count the bytes of live tensors, without those of the model."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.now = self.peak = 0
        self.known = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._release, storage._cdata, storage.nbytes())
        return result

    def _release(self, key: int, size: int) -> None:
        self.known.remove(key)
        self.now -= size
