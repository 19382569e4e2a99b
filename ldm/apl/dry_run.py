"""train.py --dry_run: one page with the inputs of a training, the missing ones and their origin, and an estimate of memory and time."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ldm.apl.estimate import cost_of, sampling_flops, speed_of, training_flops
from ldm.apl.look_ahead import SAMPLES
from ldm.apl.training_run import TrainingRun, describe, identity_share, prepare_run
from ldm.data.identities import GROUPS
from ldm.device import devices_of, pick_precision
from ldm.util import UserError

SOURCES = Path(__file__).resolve().parents[2] / "data" / "README.md"


def page(args: argparse.Namespace, inputs: Sequence[Any]) -> str:
    """The page, a few lines of text for each part.

    Args:
        args: flags of train.py; files may be missing.
        inputs: result of `args.train_args.train_inputs`, each with flag, path and flaw (None for a usable input).
    """
    width = max(len(f"{given.path}") for given in inputs)
    lines = ["reads"]
    for given in inputs:
        where = "" if given.flaw is None else where_from(given.path) or given.flaw.partition("; ")[2]
        where = where.replace("--preset sd-v1-5", f"--preset {args.preset}")
        state = "there  " if given.flaw is None else "MISSING"
        lines.append(f"  {state}  {str(given.path):{width}}  {where}".rstrip())
    run = None if any(given.flaw for given in inputs) else prepare_run(args)
    if run is not None:
        lines += ["", describe(args, run)] + [f"left out  {run.left_out}"] * bool(run.left_out.rows)
    if all(given.flaw is None for given in inputs if given.flag == "config_path"):
        lines += ["", *estimate(args, run)]
    return "\n".join(lines)


def missing_inputs(inputs: Sequence[Any]) -> None:
    """Raise UserError if an input is missing."""
    count = sum(given.flaw is not None for given in inputs)
    if count:
        raise UserError(f"{count} of the {len(inputs)} files and folders above are missing; data/README.md says how to get them")


def where_from(path: Path) -> str:
    """Origin and size of a file according to the tables of data/README.md; empty for a file that they do not list."""
    for line in SOURCES.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().replace("`", "") for cell in line.strip("| ").split(" | ")]
        if cells[0].strip("/") == path.as_posix():
            return ", ".join(filter(None, cells[2:4]))
    return ""


def estimate(args: argparse.Namespace, run: TrainingRun | None) -> list[str]:
    """Lines on memory and time; without a run, assume that every sample needs an image of its own."""
    accelerator, _, count = devices_of(args.devices)
    count *= args.num_nodes
    device = torch.device(accelerator)
    precision = pick_precision(args.precision, device)
    batch_size = max(1, args.batch_size // count)
    cost = cost_of(args.config_path, batch_size=max(1, batch_size // args.grad_accum), precision=precision,
                   samples_ahead=args.lookahead * batch_size if args.lookahead else max(SAMPLES, batch_size),
                   checkpointing=args.checkpointing)
    speed = speed_of(args.config_path, batch_size=batch_size, precision=precision, device=device)

    samples = args.iterations * args.batch_size
    images = samples if run is None else min(samples, len(run.identities) + len(run.captions))
    people = 2 * args.eval_names if run is None else sum(
        min(args.eval_names, sum(person.group == group for person in run.people.values())) for group in GROUPS)
    faces = people * args.eval_samples * (3 if args.c2 else 2)
    names = 0.0 if args.train_method == "apl-released" else identity_share(args)
    parts = {f"{args.iterations} steps": training_flops(cost, samples=samples, names=names) / count,
             f"encoding {images} images": images * cost.encode.flops / count,
             f"generating {faces} faces for the table": sampling_flops(cost, images=faces, ddim_steps=args.eval_ddim_steps) / count}
    computed = cost.peak - cost.weights
    return [f"memory    {cost.peak / 1e9:.1f} GB on {'each ' * (count > 1)}{accelerator}: {cost.weights / 1e9:.1f} GB of weights, U-Net in "
            f"{precision}, and at most {computed / 1e9:.1f} GB of intermediate results;",
            "          Python and torch need about 2 GB more, as measured on a CPU",
            f"time      about {duration(sum(parts.values()) / speed)}: "
            + ", ".join(f"{name} {duration(flops / speed)}" for name, flops in parts.items()),
            f"          at {speed / 1e12:.2g} TFLOP/s, measured just now on a block of this U-Net"]


def duration(seconds: float) -> str:
    """Such as "40 s", "12 min", "3.5 h", "5 days"."""
    for limit, unit, digits, name in ((90, 1, 0, "s"), (5400, 60, 0, "min"), (3 * 86400, 3600, 1, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{digits}f} {name}"
    return f"{seconds / 86400:.0f} days"
