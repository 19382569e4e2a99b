"""The processes that make a command's pieces, one for each of its devices, and how far they are."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from ldm.apl.workers import STARTED_BY, end_with_starter
from ldm.paper.runner.queue import LOOK_EVERY, Piece, holder, make_all
from ldm.paper.runner.tools import Tools
from ldm.paper.runner.trainings import Place, last_words
from ldm.util import UserError

PLACE = "APL_PAPER_PLACE"  # environment variable of a process of the crew: the number of its place


def make(pieces: Sequence[Piece], places: Sequence[Place], out_dir: Path, label: str) -> None:
    """Makes what is not done, on all places at once; a process of the crew, which this command has started, makes its share.

    Args:
        pieces: see `ldm.paper.runner.queue.whole`.
        label: of the progress bar, whose total is in calls of the U-Net.

    Raises:
        UserError: a piece has failed; what is done stays, and the others go on when the same is asked for again.
    """
    os.environ.pop("SLURM_NTASKS", None)  # each process works alone, however many of them srun has started
    if PLACE in os.environ:
        end_with_starter()
        return make_all(pieces, Tools(places[int(os.environ[PLACE])]))
    left = [piece for piece in pieces if not piece.is_done()]
    done = sum(piece.size for piece in pieces) - sum(piece.size for piece in left)
    with tqdm(total=round(sum(piece.size for piece in pieces)), initial=round(done), desc=label, unit="call", unit_scale=True, smoothing=0,
              disable=not left) as bar:
        def look() -> None:
            """Moves the bar by what has been done since, whoever did it."""
            for piece in [piece for piece in left if piece.is_done()]:
                left.remove(piece)
                bar.update(round(piece.size))
            bar.set_postfix_str(f"{len(pieces) - len(left)} of {len(pieces)} pieces")

        if len(places) == 1 and left:
            make_all(pieces, Tools(places[0]), after=look)
        elif left:
            _watch(_start(places[:len(left)], out_dir), look, left)


def who_works(pieces: Sequence[Piece]) -> dict[str, int]:
    """How many of the pieces each machine is making now."""
    found: dict[str, int] = {}
    for piece in pieces:
        if machine := holder(piece.folder):
            found[machine] = found.get(machine, 0) + 1
    return found


def _start(places: Sequence[Place], out_dir: Path) -> dict[Path, subprocess.Popen]:
    """This command again, for each place; by the log that says what it said."""
    crew = {}
    for number, place in enumerate(places):
        log = out_dir / f"process-{os.getpid()}-{number}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            own = os.environ | place.environment | {PLACE: str(number), STARTED_BY: str(os.getpid())}
            crew[log] = subprocess.Popen([sys.executable, *sys.orig_argv[1:]], stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=own)
    return crew


def _watch(crew: dict[Path, subprocess.Popen], look: Callable[[], None], left: Sequence[Piece]) -> None:
    """Waits until all processes have ended; all of them end with this one, or with the first that fails."""
    try:
        while any(process.poll() is None for process in crew.values()) and not any(process.poll() for process in crew.values()):
            time.sleep(LOOK_EVERY)
            look()
        look()
    finally:
        for process in crew.values():
            process.terminate()
            process.wait()
    failed = next((log for log, process in crew.items() if process.returncode not in (0, -15)), None)
    if failed or left:
        raise UserError(f"{last_words(failed) if failed else 'the processes have ended too early'}; what is done stays, correct that, and "
                        f"the same command goes on (the whole is in {failed or next(iter(crew))})")
    for log in crew:
        log.unlink()
