"""Where a command draws: the device of a flag, and the arithmetic that suits it."""

import torch

from ldm.util import UserError


def pick_device(name: str) -> torch.device:
    """The device called "auto" (a GPU, or else the CPU), "cpu", "cuda" or "cuda:N"; UserError if it is not there."""
    there = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if there else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= there:
        has = f"the GPUs 0 to {there - 1}" if there else "no GPU that torch can use"
        raise UserError(f"--device {name} is not there, this machine has {has}; give another, or --device cpu")
    return device


def pick_precision(precision: str, device: torch.device) -> str:
    """"fp32" or "bf16" for "auto": bf16 where the GPU, or the CPU (avx512_bf16), computes in it, fp32 elsewhere; else what was asked."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported()
    else:
        native = getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16", False)
    return "bf16" if native else "fp32"
