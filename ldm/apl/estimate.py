"""What a training will take, before any weight is read: memory and time, from the architecture alone (train.py --dry_run).

Model and tensors are fakes, which have shapes and lifetimes and no numbers; operations and bytes are counted on them.
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

DRAWN_AT_ONCE = 16  # as the final table does


@dataclass(frozen=True)
class Work:
    """Floating-point operations of one sample or picture, and the most bytes that are held at once beside the weights."""

    flops: float
    peak: float


@dataclass(frozen=True)
class Cost:
    """Of a frozen model in one precision, on one device."""

    weights: float  # bytes
    frozen: Work    # eps without a gradient; the rows of all samples ahead together, or those of all pictures drawn, if they are more
    step: Work      # eps with the prefix, and the gradient; the samples of a step, or of one of its parts, together
    encode: Work    # a picture to a latent, alone
    decode: Work    # a latent to a picture; DRAWN_AT_ONCE together

    @property
    def peak(self) -> float:
        """Bytes that the device must have."""
        return self.weights + max(work.peak for work in (self.frozen, self.step, self.encode, self.decode))


def cost_of(config_path: str | Path, *, batch_size: int, precision: str, samples_ahead: int = SAMPLES, checkpointing: bool = False) -> Cost:
    """What the model of a config takes.

    Args:
        batch_size: samples whose gradient is computed together on this device.
        precision: "fp32" or "bf16".
        samples_ahead: whose frozen predictions are made together.
        checkpointing: inner results are computed again for the gradient.

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
    """Operations of the steps: the frozen prediction of c2, that of c1 for the share `names` of the samples, the prefix's, its gradient."""
    return samples * ((1 + names) * cost.frozen.flops + cost.step.flops)


def drawing_flops(cost: Cost, *, images: int, ddim_steps: int) -> float:
    """Operations of so many images, with guidance."""
    return images * (2 * ddim_steps * cost.frozen.flops + cost.decode.flops)


def speed_of(config_path: str | Path, *, batch_size: int, precision: str, device: torch.device) -> float:
    """Operations a second of the U-Net on this device: those of its first residual and attention blocks, on a sample that is run."""
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
    """Torch's counter, with the attention of the CPU, which some versions leave out; the same operations whichever kernel computes it."""
    def forward(query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
        return 4 * math.prod(query) * key[-2]  # q k^T and its product with v; (B, heads, n, d) and (B, heads, k, d)

    def backward(_: Sequence[int], query: Sequence[int], key: Sequence[int], *__: Any, **___: Any) -> int:
        return 2 * forward(query, key)  # as of every product of two matrices

    aten = torch.ops.aten
    return FlopCounterMode(display=False, custom_mapping={aten._scaled_dot_product_flash_attention_for_cpu: forward,
                                                          aten._scaled_dot_product_flash_attention_for_cpu_backward: backward})


def _work(run: Callable[[], None], count: int, model: torch.nn.Module) -> Work:
    """Of a run on `count` samples or pictures."""
    with flop_counter() as flops:
        run()
    with LiveBytes(model) as live:  # on its own, for the other counter keeps tensors alive
        run()
    return Work(flops.get_total_flops() / count, live.peak)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, those of the model left out."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.now = self.peak = 0
        self.known = {tensor.untyped_storage()._cdata: None for tensor in [*model.parameters(), *model.buffers()]}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.known:
                self._take(tensor.untyped_storage())
        return result

    def _take(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def let_go(_: object) -> None:
            self.now -= size
            del self.known[key]

        self.known[key] = weakref.ref(storage, let_go)
        self.now += size
        self.peak = max(self.peak, self.now)
