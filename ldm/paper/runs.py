"""The trainings behind a table or a figure: those that are missing are run, each in a process of its own, and can be stopped at any time.

    <out_dir>/train.log     what the process said
    <out_dir>/cost.json     written by train.py at the end of a training: where it is, nothing is left to do
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from ldm.apl.workers import STARTED_BY
from ldm.util import UserError

TRAIN = Path(__file__).resolve().parents[2] / "train.py"
LOOK_EVERY = 0.2  # seconds


@dataclass(frozen=True)
class Place:
    """Where one process can train: its flags and its environment."""

    flags: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


def train_missing(runs: Mapping[Path, Sequence[str]], *, devices: str, label: str) -> None:
    """Runs train.py for each --out_dir that has no cost.json yet; as many at once as there are places.

    Processes end with this one, however it ends, and go on when the same is asked for again.

    Args:
        runs: further flags of train.py by --out_dir.
        devices: see `places`.
        label: of the progress bar.

    Raises:
        UserError: a training has failed; those that ran beside it have come to their end, others have not been started.
    """
    waiting = [out_dir for out_dir in runs if not is_trained(out_dir)]
    free, running, failed = places(devices), {}, []
    with tqdm(total=len(runs), initial=len(runs) - len(waiting), desc=label, unit="run") as bar:
        try:
            while running or (waiting and not failed):
                while waiting and free and not failed:
                    out_dir, place = waiting.pop(0), free.pop()
                    running[out_dir] = place, _start(out_dir, runs[out_dir], place)
                bar.set_postfix_str(", ".join(out_dir.name for out_dir in running))
                time.sleep(LOOK_EVERY)
                for out_dir, (place, process) in list(running.items()):
                    if process.poll() is not None:
                        del running[out_dir]
                        free.append(place)
                        if process.returncode == 0 and is_trained(out_dir):
                            bar.update()
                        else:
                            failed.append((out_dir, process.returncode))
        finally:
            for _, process in running.values():
                process.terminate()
                process.wait()
    if failed:
        out_dir, status = failed[0]
        said = _last_words(out_dir / "train.log")
        raise UserError(f"the training in {out_dir} ended with status {status} ({said}); correct that, and the "
                        "same command goes on")


def is_trained(out_dir: Path) -> bool:
    """Whether a training has come to its end."""
    return (out_dir / "cost.json").exists()


def places(devices: str) -> list[Place]:
    """Where processes can train at once: "cpu:2" are two with half of the CPU's cores each, "0,1" are two with a GPU each.

    Where OMP_NUM_THREADS is set, every process has as many threads as it says.
    """
    if devices.startswith("cpu:"):
        count = int(devices.partition(":")[2])
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // count))
        return [Place(["--devices", "cpu"], {"OMP_NUM_THREADS": threads}) for _ in range(count)]
    return [Place(["--devices", device]) for device in reversed(devices.split(","))]  # the first of them is taken first


def _start(out_dir: Path, flags: Sequence[str], place: Place) -> subprocess.Popen:
    out_dir.mkdir(parents=True, exist_ok=True)
    with open(out_dir / "train.log", "wb") as log:
        return subprocess.Popen([sys.executable, str(TRAIN), "--out_dir", str(out_dir), *place.flags, *flags], stdin=subprocess.DEVNULL,
                                stdout=log, stderr=log, env=os.environ | place.environment | {STARTED_BY: str(os.getpid())})


def _last_words(log: Path) -> str:
    """The sentence with which a process has ended, or else its last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines() if line.strip()]
    sentences = [line.removeprefix("error: ") for line in lines if line.startswith("error:")]
    return (sentences or lines or ["it said nothing"])[-1].rstrip(".")
