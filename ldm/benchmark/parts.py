"""The parts of the benchmark, each a list of rows: machine, step, memory, sampling, growth, devices."""

import importlib.util
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ldm.apl.launch import launch
from ldm.apl.look_ahead import SAMPLES
from ldm.apl.prefix import build_prefix
from ldm.benchmark.diffusers_twin import diffusers_images, our_images
from ldm.benchmark.measure import Implementation, matmul_peak, paired, peak_bytes, ratios, seconds_of, used_shares
from ldm.benchmark.naive import REMEDIES, NaiveSteps, wastes_of
from ldm.benchmark.ours import OurSteps, as_trained, random_examples, random_model, seconds_on
from ldm.device import pick_precision
from ldm.evaluation.tables import Row
from ldm.loading import read_config
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import UserError

BATCHES = (1, 2, 4, 8, 16)
LENGTHS = (1, 5, 10, 20, 40)  # m
STEP_BATCHES = {"cpu": (1,), "cuda": (1, 16)}    # of our steps next to the naive one, which is of batch 1
NAIVE_STEPS = {"cpu": 1, "cuda": 8}              # in a timed call
SAMPLING_BATCHES = {"cpu": (1, 4), "cuda": (1, 16)}
SAMPLING_GROWTH = (1, 2, 4, 8)


@dataclass(frozen=True)
class BenchmarkOptions:
    """Options of the benchmark, named like its flags."""

    config_path: Path
    devices: str
    parts: Sequence[str]
    kinds: Sequence[str]
    precision: Sequence[str]
    compile: bool
    threads: int
    repeats: int
    seed: int


class Benchmark:
    """The benchmark on one device; each part is a method of its name."""

    def __init__(self, options: BenchmarkOptions):
        torch.set_num_threads(options.threads)
        self.options, self.config = options, read_config(options.config_path)
        self.fabric = launch(options.devices.partition(",")[0])
        self.device = self.fabric.device
        of_processor = self.device.type == "cpu" and options.threads == 1
        self.clock = partial(seconds_of, device=self.device, of_processor=of_processor)
        native = pick_precision("auto", self.device) == "bf16"
        self.precisions = [precision for precision in dict.fromkeys(options.precision) if precision == "fp32" or native]
        if not self.precisions:
            raise UserError("--precision bf16 was given alone but this device does not compute in it; give --precision fp32")
        self.diffusers = metadata.version("diffusers") if importlib.util.find_spec("diffusers") else None
        self.left_out = [] if native or "bf16" not in options.precision else ["bf16, in which this device does not compute"]
        self.model = random_model(self.config, seed=options.seed, device=self.device)  # the naive step's
        self.examples = cache(partial(random_examples, self.model, SAMPLES, seed=options.seed))
        self.ours = {precision: as_trained(self.model, precision) for precision in self.precisions}
        self.compiled: LatentDiffusion | None = None  # our model with compiled blocks, built on demand
        self.peaks: dict[str, float] = {}
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else f"CPU, threads: {options.threads}"
        self.setting = f"{options.config_path.stem} on {where}; seconds of the {'processor' if of_processor else 'wall clock'}"

    def rows(self) -> list[Row]:
        """Rows of the requested parts in order, then the shares of the machine's peak."""
        found = [row for part in self.options.parts for row in getattr(self, part)()]
        return found + used_shares(found, self.options.config_path, self.peaks)

    def machine(self) -> list[Row]:
        """Operations per second of the fastest matrix product, by precision."""
        self.peaks = {precision: matmul_peak(self.device, precision, self.clock, self.options.repeats) for precision in self.precisions}
        return [{"what": "matmul peak", "variant": precision, "ratio": peak / 1e9, "unit": "GFLOP/s"}
                for precision, peak in self.peaks.items()]

    def step(self) -> list[Row]:
        """Ratios of the naive step's seconds to those of each variant: the naive step with one waste less, and ours."""
        rows = []
        for kind in self.options.kinds:
            variants = {"naive fp32": self._naive(kind)} | {REMEDIES[waste]: self._naive(kind, without=waste) for waste in wastes_of(kind)}
            if "bf16" in self.ours:
                variants["bf16 weights, channels last"] = self._naive(kind, model=self.ours["bf16"])
            seconds = self._seconds(variants | self._our_steps(kind), f"step {kind}")
            rows += [timed(f"step {kind}", name, "naive / this", taken, ratios(seconds["naive fp32"], taken))
                     for name, taken in seconds.items()]
            for model in (self.model, *self.ours.values()):  # unused gradients of the weights, which naive steps accumulate
                model.zero_grad(set_to_none=True)
        return rows

    def memory(self) -> list[Row]:
        """Ratios of the naive step's peak memory to ours, without the weights but with their unused gradients."""
        rows = []
        for kind in self.options.kinds:
            held = {"naive fp32": peak_bytes(self._naive(kind, count=2).run, self.model)}  # two: the first has no gradients to add to
            self.model.zero_grad(set_to_none=True)
            held |= {f"ours {precision}": peak_bytes(self._our_step(kind, model).run, model) for precision, model in self.ours.items()}
            rows += [{"what": f"memory {kind}", "variant": name, **ratios([held["naive fp32"]], [taken]), "unit": "naive / this",
                      "peak_mb": taken / 1e6} for name, taken in held.items()]
        return rows

    def sampling(self) -> list[Row]:
        """Ratios of our seconds per image to those of diffusers."""
        if self.diffusers is None:
            self.left_out.append("the comparison of our sampling with diffusers, which is not installed")
        rows = []
        for precision, model in self.ours.items():
            images: dict[str, Callable[[int], object]] = {"ours": partial(our_images, model)}
            if self.diffusers:
                images["diffusers"] = diffusers_images(model, self.config)
            for count in SAMPLING_BATCHES[self.device.type]:
                taken = self._seconds({name: Implementation(partial(run, count), count) for name, run in images.items()},
                                      f"sampling {precision}, batch {count}")
                compared = ratios(taken["ours"], taken["diffusers"]) if self.diffusers else {}
                rows.append(timed("sampling", f"ours {precision}, batch {count}", "ours / diffusers", taken["ours"], compared))
        return rows

    def growth(self) -> list[Row]:
        """Seconds per sample of our identity step, and per image of our sampling, relative to the smallest size, in the first precision."""
        model = self.ours[self.precisions[0]]
        grown = {"batch": {batch: self._our_step("identity", model, batch=batch) for batch in BATCHES},
                 "m": {m: self._our_step("identity", model, num_vectors=m) for m in LENGTHS},
                 "sampling batch": {count: Implementation(partial(our_images, model, count), count) for count in SAMPLING_GROWTH}}
        return [row for what, variants in grown.items() for row in growth_rows(what, self._seconds(
            {f"{value}": variant for value, variant in variants.items()}, f"growth with {what}"))]

    def devices(self) -> list[Row]:
        """Wall-clock seconds per sample of our identity step relative to one device, on --devices or in two processes on a CPU."""
        sets = ["cpu:1", "cpu:2"]
        if self.device.type == "cuda":
            numbers = self.options.devices.replace("auto", "0").split(",")
            sets = [",".join(numbers[:count]) for count in range(1, len(numbers) + 1)]
        seconds = {count: seconds_on(devices, self.options.config_path, precision=self.precisions[0], threads=self.options.threads,
                                     seed=self.options.seed, repeats=self.options.repeats) for count, devices in enumerate(sets, start=1)}
        return growth_rows("devices", seconds, unit="of the first, wall clock")

    def _seconds(self, variants: Mapping[str, Implementation], title: str) -> dict[str, list[float]]:
        return paired(variants, repeats=self.options.repeats, clock=self.clock, title=title)

    def _naive(self, kind: str, *, without: str | None = None, model: LatentDiffusion | None = None, count: int = 0) -> Implementation:
        """`count` naive steps (0: NAIVE_STEPS) with all wastes but one."""
        model, count = model or self.model, count or NAIVE_STEPS[self.device.type]
        steps = NaiveSteps(model, build_prefix(model), kind, [waste for waste in REMEDIES if waste != without])
        return Implementation(partial(steps.run, self.examples(regularising=kind == "regularising")[:count]), count)

    def _our_step(self, kind: str, model: LatentDiffusion, *, batch: int = 1, num_vectors: int = 10,
                  recorded: bool = False) -> Implementation:
        steps = OurSteps(self.fabric, model, build_prefix(model, num_vectors=num_vectors), kind, recorded=recorded)
        return Implementation(partial(steps.run, self.examples(regularising=kind == "regularising"), batch), SAMPLES)

    def _our_steps(self, kind: str) -> dict[str, Implementation]:
        """Our steps by precision and batch; in the last precision also compiled if requested, and on a GPU as one CUDA graph."""
        variants = {f"ours {precision}" + f", batch {batch}" * (batch > 1): self._our_step(kind, model, batch=batch)
                    for batch in STEP_BATCHES[self.device.type] for precision, model in self.ours.items()}
        precision, model = list(self.ours.items())[-1]
        models = {f"ours {precision}": model}
        if self.options.compile:
            self.compiled = self.compiled or as_trained(self.model, precision, compiled=True)
            models[f"ours {precision}, compiled"] = self.compiled
        variants |= {name: self._our_step(kind, one) for name, one in models.items() if name not in variants}
        if self.device.type == "cuda":
            variants |= {f"{name}, CUDA graph": self._our_step(kind, one, recorded=True) for name, one in models.items()}
        return variants


def timed(what: str, variant: object, unit: str, seconds: Sequence[float], compared: dict[str, float]) -> Row:
    """Row of the ratios of a comparison, with the median of the seconds."""
    return {"what": what, "variant": f"{variant}", **compared, "unit": unit, "seconds": statistics.median(seconds)}


def growth_rows(what: str, seconds: Mapping[Any, Sequence[float]], unit: str = "of the first") -> list[Row]:
    """One row per value, relative to the first value."""
    first = next(iter(seconds.values()))
    return [timed(f"growth {what}", value, unit, taken, ratios(taken, first)) for value, taken in seconds.items()]
