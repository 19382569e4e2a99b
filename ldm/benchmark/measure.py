"""Measurements: paired timings, peak of a matrix product, peak memory, and model FLOPs utilisation (MFU)."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from ldm.apl.dry_run import LiveBytes, cost_of
from ldm.benchmark.diffusers_twin import DDIM_STEPS
from ldm.device import DTYPES
from ldm.evaluation.tables import Row
from ldm.models.diffusion.ddpm import LatentDiffusion

Clock = Callable[[Callable[[], object]], float]  # seconds of a call
SIDES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}  # of square matrices


class Implementation(NamedTuple):
    """One of several implementations of the same work; a call of `run` does it `times` times."""

    run: Callable[..., object]
    times: int = 1


def seconds_of(run: Callable[[], object], device: torch.device, *, of_processor: bool) -> float:
    """Duration of a call: processor time, which other programs hardly affect, of one CPU thread; or wall-clock time."""
    now = time.process_time if of_processor else time.perf_counter
    synchronize(device)
    start = now()
    run()
    synchronize(device)
    return now() - start


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def paired(variants: Mapping[str, Implementation], *, repeats: int, clock: Clock, title: str) -> dict[str, list[float]]:
    """Time the variants in rounds A B A B ...; returns the seconds of each variant's work, by round, without the first, a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    rounds = [name for _ in range(repeats + 1) for name in variants]
    for name in tqdm(rounds, title, unit="run", leave=False):
        seconds[name].append(clock(variants[name].run) / variants[name].times)
    return {name: taken[1:] for name, taken in seconds.items()}


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """`ratio`, `low` and `high`: median and range of numerator / denominator over the rounds."""
    found = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return {"ratio": statistics.median(found), "low": min(found), "high": max(found)}


def matmul_peak(device: torch.device, precision: str, clock: Clock, repeats: int) -> float:
    """Floating-point operations per second of the fastest product of two square matrices; multiply-add counts as 2."""
    best = 0.0
    for side in SIDES[device.type]:
        a, b = (torch.randn(side, side, device=device).to(DTYPES[precision]) for _ in range(2))
        seconds = [clock(partial(torch.matmul, a, b)) for _ in range(repeats + 1)][1:]
        best = max(best, 2 * side**3 / min(seconds))
    return best


def used_shares(rows: Sequence[Row], config_path: Path, peaks: Mapping[str, float]) -> list[Row]:
    """MFU rows of our steps and our sampling: operations that U-Net and decoder need, per second, as a share of the peak."""
    shares = []
    for precision, peak in peaks.items():
        cost = cost_of(config_path, batch_size=1, precision=precision)
        flops = {"step identity": cost.training_flops(1, names=1.0), "step regularising": cost.training_flops(1, names=0.0),
                 "step apl-released": cost.training_flops(1, names=0.0), "sampling": cost.sampling_flops(1, DDIM_STEPS)}
        shares += [{"what": f"MFU {row['what']}", "variant": row["variant"], "ratio": flops[row["what"]] / row["seconds"] / peak,
                    "unit": "of peak"} for row in rows if row["what"] in flops and row["variant"].startswith(f"ours {precision}")]
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
