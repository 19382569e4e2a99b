"""The parts of the benchmark, each a list of rows: machine, step, memory, sampling, growth, devices."""

import argparse
import importlib.util
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from typing import Any

import torch

from ldm.apl.launch import launch
from ldm.apl.prefix import build_prefix
from ldm.benchmark.clock import Clock, Variant, paired, ratios
from ldm.benchmark.devices import seconds_on
from ldm.benchmark.machine import matmul_peak, peak_bytes, used_shares
from ldm.benchmark.naive import REMEDIES, NaiveSteps, Wastes, wastes_of
from ldm.benchmark.ours import STEPS_TOGETHER, OurSteps, as_trained
from ldm.benchmark.sampling import draw_ours, their_drawing
from ldm.benchmark.subject import random_examples, random_model
from ldm.device import pick_precision
from ldm.loading import read_config
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import UserError

BATCHES = (1, 2, 4, 8, 16)
LENGTHS = (1, 5, 10, 20, 40)  # m
STEP_BATCHES = {"cpu": (1,), "cuda": (1, 16)}    # of our steps beside the naive one, which is of batch 1
NAIVE_STEPS = {"cpu": 1, "cuda": 8}              # in a timed call
DRAWN_TOGETHER = {"cpu": (1, 4), "cuda": (1, 16)}
DRAWN_GROWTH = (1, 2, 4, 8)

Row = dict[str, Any]


class Benchmark:
    """The benchmark on one device; each part is a method of its name."""

    def __init__(self, args: argparse.Namespace):
        torch.set_num_threads(args.threads)
        self.args, self.config = args, read_config(args.config_path)
        self.fabric = launch(args.devices.partition(",")[0])
        self.device = self.fabric.device
        self.clock = Clock(self.device, args.threads)
        native = pick_precision("auto", self.device) == "bf16"
        self.precisions = [precision for precision in dict.fromkeys(args.precision) if precision == "fp32" or native]
        if not self.precisions:
            raise UserError("--precision bf16 was given alone but this device does not compute in it; give --precision fp32")
        self.diffusers = metadata.version("diffusers") if importlib.util.find_spec("diffusers") else None
        self.left_out = [] if native or "bf16" not in args.precision else ["bf16, in which this device does not compute"]
        self.model = random_model(self.config, seed=args.seed, device=self.device)  # the naive step's
        self.ours = {precision: as_trained(self.model, precision) for precision in self.precisions}
        self.compiled: LatentDiffusion | None = None  # our model with compiled blocks, built on demand
        self.peaks: dict[str, float] = {}
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else f"CPU, threads: {args.threads}"
        self.setting = f"{args.config_path.stem} on {where}; seconds of the {self.clock.name}"

    def rows(self) -> list[Row]:
        """Rows of the requested parts in order, then the shares of the machine's peak."""
        found = [row for part in self.args.parts for row in getattr(self, part)()]
        return found + used_shares(found, self.args.config_path, self.peaks)

    def machine(self) -> list[Row]:
        self.peaks = {precision: matmul_peak(self.device, precision, self.clock, self.args.repeats) for precision in self.precisions}
        return [{"what": "matmul peak", "variant": precision, "ratio": peak / 1e9, "unit": "GFLOP/s"}
                for precision, peak in self.peaks.items()]

    def step(self) -> list[Row]:
        """Ratios of the naive step's seconds to those of each variant: the naive step with one waste less, and ours."""
        rows = []
        for kind in self.args.kinds:
            naive, others = self._steps(kind)
            variants = {"naive fp32": naive} | others
            seconds = paired(variants, repeats=self.args.repeats, clock=self.clock, title=f"step {kind}")
            rows += [{"what": f"step {kind}", "variant": name, **ratios(seconds["naive fp32"], taken), "unit": "naive / this",
                      "seconds": statistics.median(taken)} for name, taken in seconds.items()]
            for model in (self.model, *self.ours.values()):  # unused gradients of the weights, which naive steps accumulate
                model.zero_grad(set_to_none=True)
        return rows

    def memory(self) -> list[Row]:
        """Ratios of the naive step's peak memory to ours, beside the weights; includes the unused gradients of the weights."""
        rows = []
        for kind in self.args.kinds:
            naive, others = self._steps(kind, alone=True)
            held = {"naive fp32": peak_bytes(naive.run, self.model)}
            self.model.zero_grad(set_to_none=True)
            held |= {name: peak_bytes(variant.run, self.ours[name.split()[1]]) for name, variant in others.items()}
            rows += [{"what": f"memory {kind}", "variant": name, **ratios([held["naive fp32"]], [taken]), "unit": "naive / this",
                      "peak_mb": taken / 1e6} for name, taken in held.items()]
        return rows

    def sampling(self) -> list[Row]:
        """Ratios of our seconds per image to those of diffusers."""
        if self.diffusers is None:
            self.left_out.append("diffusers beside our sampling, for it is not installed")
        rows = []
        for precision, model in self.ours.items():
            theirs = their_drawing(model, self.config) if self.diffusers else None
            for count in DRAWN_TOGETHER[self.device.type]:
                variants = {"ours": Variant(partial(draw_ours, model, count), count)}
                if theirs:
                    variants["diffusers"] = Variant(partial(theirs, count), count)
                taken = paired(variants, repeats=self.args.repeats, clock=self.clock, title=f"sampling {precision}, batch {count}")
                beside = ratios(taken["ours"], taken["diffusers"]) if theirs else {}
                rows.append({"what": "sampling", "variant": f"ours {precision}, batch {count}", **beside, "unit": "ours / diffusers",
                             "seconds": statistics.median(taken["ours"])})
        return rows

    def growth(self) -> list[Row]:
        """Seconds per sample of our identity step, and per image of our sampling, relative to the smallest size, in the first precision."""
        model = self.ours[self.precisions[0]]
        examples = random_examples(model, STEPS_TOGETHER, regularising=False, seed=self.args.seed)
        steps = {m: OurSteps(self.fabric, model, build_prefix(model, num_vectors=m), "identity") for m in {*LENGTHS, 10}}
        return [
            *self._growing("batch", {batch: Variant(partial(steps[10].run, examples, batch), len(examples)) for batch in BATCHES}),
            *self._growing("m", {m: Variant(partial(steps[m].run, examples), len(examples)) for m in LENGTHS}),
            *self._growing("sampling batch", {count: Variant(partial(draw_ours, model, count), count) for count in DRAWN_GROWTH})]

    def devices(self) -> list[Row]:
        """Wall-clock seconds per sample of our identity step relative to one device, on --devices or in two processes on a CPU."""
        numbers = self.args.devices.split(",") if self.device.type == "cuda" and self.args.devices != "auto" else ["0"]
        sets = {count: ",".join(numbers[:count]) for count in range(1, len(numbers) + 1)}
        if self.device.type == "cpu":
            sets = {1: "cpu:1", 2: "cpu:2"}
        seconds = {count: seconds_on(devices, self.args.config_path, precision=self.precisions[0], threads=self.args.threads,
                                     seed=self.args.seed, repeats=self.args.repeats) for count, devices in sets.items()}
        return growth_rows("devices", seconds, unit="of the first, wall clock")

    def _growing(self, what: str, variants: Mapping[int, Variant]) -> list[Row]:
        named = {f"{value}": variant for value, variant in variants.items()}
        return growth_rows(what, paired(named, repeats=self.args.repeats, clock=self.clock, title=f"growth with {what}"))

    def _steps(self, kind: str, *, alone: bool = False) -> tuple[Variant, dict[str, Variant]]:
        """The naive step, and by name the variants to compare: with one waste less each (not with `alone`), and ours."""
        examples = random_examples(self.model, STEPS_TOGETHER, regularising=kind == "regularising", seed=self.args.seed)

        def naive(wastes: Wastes, model: LatentDiffusion = self.model, count: int = NAIVE_STEPS[self.device.type]) -> Variant:
            steps = NaiveSteps(model, build_prefix(model), kind, wastes)
            return Variant(lambda: steps.run(examples[:count]), count)

        def ours(model: LatentDiffusion, *, batch: int = 1, recorded: bool = False) -> Variant:
            steps = OurSteps(self.fabric, model, build_prefix(model), kind, recorded=recorded)
            return Variant(lambda: steps.run(examples, batch), len(examples))

        others = {}
        if not alone:
            others = {REMEDIES[waste]: naive(replace(Wastes(), **{waste: False})) for waste in wastes_of(kind)}
            if "bf16" in self.ours:
                others["bf16 weights, channels last"] = naive(Wastes(), self.ours["bf16"])
        others |= {f"ours {precision}": ours(model) for precision, model in self.ours.items()}
        if not alone:
            others |= {f"ours {precision}, batch {batch}": ours(model, batch=batch) for precision, model in self.ours.items()
                       for batch in STEP_BATCHES[self.device.type] if batch > 1}
            others |= {name: ours(model, recorded=recorded) for name, (model, recorded) in self._accelerated().items()}
        return naive(Wastes(), count=2 if alone else 1), others  # two, for the first step has no gradients to add to

    def _accelerated(self) -> dict[str, tuple[LatentDiffusion, bool]]:
        """Our model in its last precision: compiled if requested, and on a GPU also with its step as one CUDA graph (True)."""
        precision, model = list(self.ours.items())[-1]
        models = {f"ours {precision}": model}
        if self.args.compile:
            self.compiled = self.compiled or as_trained(self.model, precision, compiled=True)
            models[f"ours {precision}, compiled"] = self.compiled
        graphs = {f"{name}, CUDA graph": (model, True) for name, model in models.items()} if self.device.type == "cuda" else {}
        return {name: (model, False) for name, model in list(models.items())[1:]} | graphs


def growth_rows(what: str, seconds: Mapping[Any, Sequence[float]], unit: str = "of the first") -> list[Row]:
    """One row per value, relative to the first value."""
    first = next(iter(seconds.values()))
    return [{"what": f"growth {what}", "variant": f"{value}", **ratios(taken, first), "unit": unit,
             "seconds": statistics.median(taken)} for value, taken in seconds.items()]
