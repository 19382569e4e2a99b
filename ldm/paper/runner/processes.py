"""Workers of a command, one per device, their progress and their resources."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from ldm.apl.launch import launch, set_precision
from ldm.apl.workers import STARTED_BY, end_with_starter
from ldm.device import Place, pick_precision
from ldm.experiments.quality_table import QualityOptions, QualityTable
from ldm.loading import ModelFiles
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.paper.runner.queue import LOOK_EVERY, Piece, holder, make_all
from ldm.paper.runner.trainings import last_words
from ldm.util import UserError

PLACE = "APL_PAPER_PLACE"  # environment variable of a worker: the index of its place


def make(pieces: Sequence[Piece], places: Sequence[Place], out_dir: Path, label: str) -> None:
    """Make all unfinished pieces with one worker per place; in a worker that this command has started, take part.

    `label` is that of the progress bar, whose unit is a U-Net call. UserError if a piece fails: finished ones stay, and the same command
    resumes.
    """
    os.environ.pop("SLURM_NTASKS", None)  # each worker is independent, even if srun has started several
    if PLACE in os.environ:
        end_with_starter()
        return make_all(pieces, Tools(places[int(os.environ[PLACE])]))
    left = [piece for piece in pieces if not piece.is_done()]
    total, undone = (sum(piece.size for piece in some) for some in (pieces, left))
    with tqdm(total=round(total), initial=round(total - undone), desc=label, unit="call", unit_scale=True, smoothing=0,
              disable=not left) as bar:
        def look() -> None:
            """Advance the bar by the pieces that any worker has finished."""
            for piece in [piece for piece in left if piece.is_done()]:
                left.remove(piece)
                bar.update(round(piece.size))
            bar.set_postfix_str(f"{len(pieces) - len(left)} of {len(pieces)} pieces")

        if len(places) == 1 and left:
            make_all(pieces, Tools(places[0]), after=look)
        elif left:
            _watch(_start(places[:len(left)], out_dir), look, left)


def who_works(pieces: Sequence[Piece]) -> dict[str, int]:
    """Number of pieces that each machine is making now."""
    return Counter(machine for piece in pieces if (machine := holder(piece.folder)))


def _start(places: Sequence[Place], out_dir: Path) -> dict[Path, subprocess.Popen]:
    """Start this command again for each place; returns the processes by their logs."""
    workers = {}
    for number, place in enumerate(places):
        log = out_dir / f"process-{os.getpid()}-{number}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            own = os.environ | place.environment | {PLACE: str(number), STARTED_BY: str(os.getpid())}
            command = [sys.executable, *sys.orig_argv[1:]]
            workers[log] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=own)
    return workers


def _watch(workers: dict[Path, subprocess.Popen], look: Callable[[], None], left: Sequence[Piece]) -> None:
    """Wait until all workers have ended; terminate all of them when one fails, or this process is interrupted."""
    try:
        while any(process.poll() is None for process in workers.values()) and not any(process.poll() for process in workers.values()):
            time.sleep(LOOK_EVERY)
            look()
        look()
    finally:
        for process in workers.values():
            process.terminate()
            process.wait()
    failed = next((log for log, process in workers.items() if process.returncode not in (0, -15)), None)
    if failed or left:
        raise UserError(f"{last_words(failed) if failed else 'the processes have ended too early'}; what is done stays, correct that, and "
                        f"the same command resumes (the whole is in {failed or next(iter(workers))})")
    for log in workers:
        log.unlink()


class Tools:
    """Resources of a worker: its device, and the model and the scorers that it used last, which successive pieces usually share."""

    def __init__(self, place: Place) -> None:
        os.environ |= place.environment
        self.place, self.device = place, launch(place.devices).device
        self._models: dict[tuple[ModelFiles, str], LatentDiffusion] = {}
        self._quality: dict[str, QualityTable] = {}

    def precision(self, asked: str) -> str:
        """Resolve --precision to "fp32" or "bf16"."""
        return pick_precision(asked, self.device)

    def model(self, files: ModelFiles, precision: str) -> LatentDiffusion:
        """The frozen model of these files in this precision (see `precision`)."""
        precision = self.precision(precision)
        key = files, precision
        if key not in self._models:
            self._models.clear()  # before loading, since both may not fit into memory
            self._models[key] = model = files.load(self.device)
            set_precision(model, precision)
        return self._models[key]

    def quality(self, options: QualityOptions) -> QualityTable:
        """The scorers of Table 2."""
        key = repr(options)
        if key not in self._quality:
            self._quality.clear()
            self._quality[key] = QualityTable(options, self.device)
        return self._quality[key]

    def release(self) -> None:
        """Release GPU memory for a training in another process; the caches are refilled on demand."""
        if self.device.type == "cuda":
            self._models.clear()
            self._quality.clear()
            torch.cuda.empty_cache()
