"""Where and how a training runs: devices, precision and repeatable arithmetic."""

import os

import torch
from lightning_fabric import Fabric

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import UserError


def launch(devices: str, batch_size: int | None = None) -> Fabric:
    """A launched Fabric on "auto" (a GPU, or else the CPU), "cpu", "cpu:N" (N processes) or GPU numbers like "0,1".

    With several devices this script is started again for each of them, unless torchrun has done so.

    Args:
        batch_size: of a step that the devices share; None where each takes batches of its own.

    Raises:
        UserError: a GPU that is not there, or a batch that the devices cannot share evenly.
    """
    accelerator, chosen, count = devices_of(devices)
    if batch_size is not None and batch_size % count:
        raise UserError(f"--batch_size {batch_size} cannot be shared evenly by the {count} devices of --devices "
                        f"{devices}; give a multiple of {count}")
    # A killed run must end with the same bytes, so nothing may depend on the order in which threads finish.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    fabric = Fabric(accelerator=accelerator, devices=chosen, strategy="ddp" if count > 1 else "auto")
    fabric.launch()
    return fabric


def devices_of(devices: str) -> tuple[str, int | list[int], int]:
    """Fabric's accelerator and devices for the flag --devices, and their number; UserError if a GPU is not there."""
    there = torch.cuda.device_count()
    if devices == "auto":
        return ("cuda", [0], 1) if there else ("cpu", 1, 1)
    if devices.startswith("cpu"):
        count = int(devices.partition(":")[2] or 1)
        return "cpu", count, count
    numbers = [int(number) for number in devices.split(",")]
    missing = [number for number in numbers if number >= there]
    if missing:
        has = f"only the GPUs 0 to {there - 1}" if there else "no GPU that torch can use"
        raise UserError(f"--devices {devices} asks for GPU {missing[0]}, but this machine has {has}; give other "
                        "numbers, or --devices cpu")
    return "cuda", numbers, len(numbers)


def set_precision(model: LatentDiffusion, precision: str) -> None:
    """The U-Net in bfloat16 for "bf16"; text encoder, autoencoder, prefix and loss stay in float32.

    Its weights lie channels last, as the convolutions want them, and as its transformers read pixels without a copy.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model.model.to(dtype, memory_format=torch.channels_last)
