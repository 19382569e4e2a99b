"""Our step on several devices: python -m ldm.benchmark.devices CONFIG DEVICES PRECISION THREADS SEED REPEATS

One process per device, as in train.py, each with batches of 1, so that a step has as many samples as there are devices.
Prints the wall-clock seconds per sample of each repeat. `seconds_on` runs this in a separate process.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from ldm.apl.launch import launch
from ldm.apl.prefix import build_prefix
from ldm.benchmark.ours import STEPS_TOGETHER, OurSteps, as_trained
from ldm.benchmark.subject import random_examples, random_model
from ldm.loading import read_config
from ldm.util import UserError

ROOT = Path(__file__).resolve().parents[2]


def seconds_on(devices: str, config_path: Path, *, precision: str, threads: int, seed: int, repeats: int) -> list[float]:
    """Wall-clock seconds per sample of each repeat, on devices such as "cpu:2" or "0,1"."""
    given = [config_path.resolve(), devices, precision, threads, seed, repeats]
    done = subprocess.run([sys.executable, "-m", "ldm.benchmark.devices", *map(str, given)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no word of it"])[-1]
        raise UserError(f"the processes on --devices {devices} ended with status {done.returncode} ({reason}); leave out 'devices'")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(config_path: str, devices: str, precision: str, *numbers: str) -> None:
    threads, seed, repeats = map(int, numbers)
    torch.set_num_threads(threads)
    fabric = launch(devices)
    config = read_config(config_path)
    model = as_trained(random_model(config, seed=seed, device=fabric.device), precision)
    steps = OurSteps(fabric, model, build_prefix(model), "identity")
    count = max(1, STEPS_TOGETHER // fabric.world_size)
    examples = random_examples(model, count, regularising=False, seed=seed + fabric.global_rank)
    seconds = []
    for _ in range(repeats + 1):  # the first is not counted
        fabric.barrier()
        start = time.perf_counter()
        steps.run(examples)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        fabric.barrier()
        seconds.append((time.perf_counter() - start) / (count * fabric.world_size))
    if fabric.is_global_zero:
        print(json.dumps(seconds[1:]))


if __name__ == "__main__":
    main(*sys.argv[1:])
