"""Paired timings, A B A B ... in one process, and what is reported of them: medians, and the range of the pairs' ratios."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm


@dataclass(frozen=True)
class Variant:
    """Something that does the same work as others, in its way; a call of `run` does it `count` times."""

    run: Callable[[], object]
    count: int = 1


class Clock:
    """Seconds that a call takes: of the processor for one CPU thread, where other programs hardly matter, else of the wall clock."""

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
    """Seconds of each variant's work in each round; a round runs all of them in turn, and one round before is not counted.

    Args:
        clock: seconds of a call.
        title: of the progress bar.
    """
    seconds = {name: [] for name in variants}
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
