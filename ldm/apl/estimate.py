"""Estimate memory and time of a training from the architecture alone, before any weight is read (train.py --dry_run).

Operations and bytes are counted on fake tensors, which have shapes and lifetimes but no data.
"""

import math
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ldm.apl.look_ahead import SAMPLES
from ldm.device import DTYPES
from ldm.loading import read_config
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.openaimodel import Downsample
from ldm.util import instantiate_from_config

DRAWN_AT_ONCE = 16  # images per batch of the final table


@dataclass(frozen=True)
class Work:
    """Floating-point operations per sample or image, and peak memory beside the weights in bytes."""

    flops: float
    peak: float


@dataclass(frozen=True)
class Cost:
    """Cost of a frozen model in one precision, on one device."""

    weights: float  # bytes
    frozen: Work    # eps without gradients, on the rows of all samples ahead, or of a batch of generated images if that is larger
    step: Work      # eps with the prefix, and its gradient, on the samples of a step or of one of its parts
    encode: Work    # one image to a latent
    decode: Work    # DRAWN_AT_ONCE latents to images

    @property
    def peak(self) -> float:
        """Required memory of the device, in bytes."""
        return self.weights + max(work.peak for work in (self.frozen, self.step, self.encode, self.decode))


def cost_of(config_path: str | Path, *, batch_size: int, precision: str, samples_ahead: int = SAMPLES, checkpointing: bool = False) -> Cost:
    """Cost of the model of a config.

    Args:
        batch_size: samples whose gradient is computed together on this device.
        precision: "fp32" or "bf16".
        samples_ahead: number of samples whose frozen predictions are computed together.
        checkpointing: recompute activations in the backward pass.

    Raises:
        UserError: the config is not there, or of another architecture.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        model: LatentDiffusion = instantiate_from_config(read_config(config_path)).eval().requires_grad_(False)
        side, dtype, rows = model.image_size, DTYPES[precision], 2 * max(samples_ahead, DRAWN_AT_ONCE)  # for c1 and c2, or for guidance
        model.model.diffusion_model.checkpointing = checkpointing
        for module in model.model.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                setattr(module, name, torch.nn.Parameter(weight.to(dtype), requires_grad=False))
        weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())

        def eps(samples: int, *, gradient: bool = False) -> None:
            context = torch.randn(samples, *model.cond_stage_model.context_shape, requires_grad=gradient)
            noisy_latent, timestep = torch.randn(samples, model.channels, side, side), torch.zeros(samples, dtype=torch.int64)
            with torch.set_grad_enabled(gradient):
                predicted = model.apply_model(noisy_latent, timestep, context)
                if gradient:
                    predicted.float().sum().backward()

        @torch.no_grad()
        def decode(images: int) -> None:
            model.decode_first_stage(torch.randn(images, model.channels, side, side))

        @torch.no_grad()
        def encode() -> None:
            model.encode_first_stage(torch.randn(1, 3, 8 * side, 8 * side))

        return Cost(weights, frozen=_work(lambda: eps(rows), rows, model),
                    step=_work(lambda: eps(batch_size, gradient=True), batch_size, model),
                    encode=_work(encode, 1, model), decode=_work(lambda: decode(DRAWN_AT_ONCE), DRAWN_AT_ONCE, model))


def training_flops(cost: Cost, *, samples: int, names: float) -> float:
    """Operations of the steps: frozen predictions under c2, and c1 for the share `names` of the samples; prefixed ones and gradients."""
    return samples * ((1 + names) * cost.frozen.flops + cost.step.flops)


def sampling_flops(cost: Cost, *, images: int, ddim_steps: int) -> float:
    """Operations to generate `images` images with guidance."""
    return images * (2 * ddim_steps * cost.frozen.flops + cost.decode.flops)


def speed_of(config_path: str | Path, *, batch_size: int, precision: str, device: torch.device) -> float:
    """Operations per second of the U-Net on this device, measured on its first residual and attention blocks."""
    with torch.device("meta"):
        model: LatentDiffusion = instantiate_from_config(read_config(config_path))
    unet, downsampled = model.model.diffusion_model, 0
    for block in unet.input_blocks:  # to the first with attention, which in SDXL is on the second level
        if any(isinstance(layer, SpatialTransformer) for layer in block):
            break
        downsampled += isinstance(block[0], Downsample)
    side, channels = model.image_size >> downsampled, block[0].in_layers[0].num_channels
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
    """Torch's counter with the CPU attention that some versions leave out; counts alike for every attention kernel."""
    def forward(query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
        return 4 * math.prod(query) * key[-2]  # q k^T and its product with v; (B, heads, n, d) and (B, heads, k, d)

    def backward(_: Sequence[int], query: Sequence[int], key: Sequence[int], *__: Any, **___: Any) -> int:
        return 2 * forward(query, key)  # as of every product of two matrices

    aten = torch.ops.aten
    return FlopCounterMode(display=False, custom_mapping={aten._scaled_dot_product_flash_attention_for_cpu: forward,
                                                          aten._scaled_dot_product_flash_attention_for_cpu_backward: backward})


def _work(run: Callable[[], None], count: int, model: torch.nn.Module) -> Work:
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
        self.known: dict[int, Any] = {tensor.untyped_storage()._cdata: None for tensor in [*model.parameters(), *model.buffers()]}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.known:
                self._take(tensor.untyped_storage())
        return result

    def _take(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def released(_: object) -> None:
            self.now -= size
            del self.known[key]

        self.known[key] = weakref.ref(storage, released)
        self.now += size
        self.peak = max(self.peak, self.now)
