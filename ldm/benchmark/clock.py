"""Paired timings, A B A B ... in one process, reported as medians and the range of the ratios of the pairs."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm


@dataclass(frozen=True)
class Variant:
    """One of several implementations of the same work; a call of `run` does it `count` times."""

    run: Callable[[], object]
    count: int = 1


class Clock:
    """Duration of a call in seconds: processor time for one CPU thread, which other programs hardly affect, else wall-clock time."""

    def __init__(self, device: torch.device, threads: int):
        self.device = device
        self.name = "processor" if device.type == "cpu" and threads == 1 else "wall clock"
        self._now = time.process_time if self.name == "processor" else time.perf_counter

    def __call__(self, run: Callable[[], object]) -> float:
        self._wait()
        start = self._now()
        run()
        self._wait()
        return self._now() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def paired(variants: Mapping[str, Variant], *, repeats: int, clock: Callable[[Callable[[], object]], float],
           title: str) -> dict[str, list[float]]:
    """Time the variants in rounds, each of which runs all of them in turn; the first round is a warm-up and is not counted.

    Args:
        clock: returns the seconds of a call.
        title: of the progress bar.

    Returns:
        Seconds of each variant's work, by round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    with tqdm(total=(repeats + 1) * len(variants), desc=title, unit="run", leave=False) as bar:
        for number in range(repeats + 1):
            for name, variant in variants.items():
                bar.set_postfix_str(name)
                taken = clock(variant.run) / variant.count
                if number:
                    seconds[name].append(taken)
                bar.update()
    return seconds


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """`ratio`, `low` and `high`: median and range of numerator / denominator over the rounds."""
    found = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return {"ratio": statistics.median(found), "low": min(found), "high": max(found)}
