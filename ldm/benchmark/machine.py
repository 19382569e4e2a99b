"""Machine limits and their use: peak of a matrix product, peak memory, model FLOPs utilisation (MFU)."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ldm.apl.estimate import LiveBytes, cost_of, sampling_flops, training_flops
from ldm.benchmark.clock import Clock
from ldm.benchmark.sampling import DDIM_STEPS
from ldm.device import DTYPES
from ldm.models.diffusion.ddpm import LatentDiffusion

SIDES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}  # of square matrices


def matmul_peak(device: torch.device, precision: str, clock: Clock, repeats: int) -> float:
    """Floating-point operations per second of the fastest product of two square matrices; multiply-add counts as 2."""
    best = 0.0
    for side in SIDES[device.type]:
        a, b = (torch.randn(side, side, device=device).to(DTYPES[precision]) for _ in range(2))
        seconds = [clock(partial(torch.matmul, a, b)) for _ in range(repeats + 1)][1:]
        best = max(best, 2 * side**3 / min(seconds))
    return best


def used_shares(rows: Sequence[dict[str, Any]], config_path: Path, peaks: dict[str, float]) -> list[dict[str, Any]]:
    """MFU rows of our steps and our sampling: operations that U-Net and decoder need, per second, as a share of the peak."""
    shares = []
    for precision, peak in peaks.items():
        cost = cost_of(config_path, batch_size=1, precision=precision)
        flops = {"step identity": training_flops(cost, samples=1, names=1.0),
                 "step regularising": training_flops(cost, samples=1, names=0.0),
                 "step apl-released": training_flops(cost, samples=1, names=0.0),
                 "sampling": sampling_flops(cost, images=1, ddim_steps=DDIM_STEPS)}
        for row in rows:
            if row["what"] in flops and row["variant"].startswith(f"ours {precision}"):
                share = flops[row["what"]] / row["seconds"] / peak
                shares.append({"what": f"MFU {row['what']}", "variant": row["variant"], "ratio": share, "unit": "of peak"})
    return shares


def peak_bytes(run: Callable[[], object], model: LatentDiffusion) -> int:
    """Peak memory of `run` in bytes, without what was allocated before; on a CPU, of tensors only."""
    device = model.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with LiveBytes(model) as live:
        run()
    return live.peak
