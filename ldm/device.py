"""Selects devices and precision from the flags --devices and --precision."""

import os
from collections.abc import Mapping
from typing import NamedTuple

import torch

from ldm.util import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # by precision


def devices_of(devices: str) -> tuple[str, int | list[int], int]:
    """Fabric's accelerator, Fabric's devices and the number of devices for --devices; UserError if a GPU is not available."""
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


def same_devices(devices: str) -> str:
    """Part of --devices that determines a result: the number of GPUs, since a run may resume on other GPUs."""
    return devices if devices[0].isalpha() else f"{len(devices.split(','))} GPU"


def pick_device(devices: str) -> torch.device:
    """The first device of the flag --devices; UserError if it is not available."""
    numbers = devices_of(devices)[1]
    return torch.device("cuda", numbers[0]) if isinstance(numbers, list) else torch.device("cpu")


def pick_precision(precision: str, device: torch.device) -> str:
    """Resolve "auto" to "bf16" if the GPU, or the CPU (avx512_bf16), supports it natively, else to "fp32"; other values are returned."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if getattr(torch.cpu, "get_capabilities", dict[str, bool])().get("avx512_bf16") else "fp32"


class Place(NamedTuple):
    """Place of a worker: its flag --devices and its environment variables."""

    devices: str
    environment: Mapping[str, str] = {}


def places(devices: str) -> list[Place]:
    """Places of the workers: for "cpu:2" two with half of the CPU cores, or OMP_NUM_THREADS threads, each; for "0,1" two with one GPU."""
    if devices.startswith("cpu:"):
        count = int(devices.partition(":")[2])
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return [Place("cpu", {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // count))})] * count
    return [Place(device) for device in devices.split(",")]
