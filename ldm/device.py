"""Where a command computes: the devices of its flag, and the arithmetic that suits them."""

import torch

from ldm.util import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # by precision


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


def same_devices(devices: str) -> str:
    """What the flag --devices says about a result: of GPUs their number, for a run may go on on others."""
    return devices if devices[0].isalpha() else f"{len(devices.split(','))} GPU"


def pick_device(devices: str) -> torch.device:
    """The first device of the flag --devices; UserError if it is not there."""
    _, chosen, _ = devices_of(devices)
    return torch.device("cuda", chosen[0]) if isinstance(chosen, list) else torch.device("cpu")


def pick_precision(precision: str, device: torch.device) -> str:
    """"fp32" or "bf16" for "auto": bf16 where the GPU, or the CPU (avx512_bf16), computes in it, fp32 elsewhere; else what was asked."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported()
    else:
        native = bool(getattr(torch.cpu, "get_capabilities", dict[str, bool])().get("avx512_bf16"))
    return "bf16" if native else "fp32"
