"""The processes of a run, one a device: when one of them ends before its time, all of them end, with one sentence.

A collective of gloo raises where a process is missing, one of NCCL waits for ever: so threads watch, whatever the main thread does.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from types import TracebackType

from ldm.fabric import ClusterEnvironment
from ldm.util import PATIENCE, WORD, take_word

STARTED_BY = "APL_STARTED_BY"  # environment variable of a process that a command has started: the number of the command's
LOOK_EVERY = 0.5               # seconds
HAVE_SPOKEN = (2, 130)         # statuses of a process that had the word and has said why it ends, see `exit_with_sentence`
LOST = ("closed by peer", "reset by peer", "Broken pipe", "failed to recv", "failed to connect")  # gloo's and the store's words


def start_workers(environment: ClusterEnvironment, devices: int) -> None:
    """Starts this command again for each further device of this machine, unless torchrun or SLURM have, and watches over the run."""
    sys.excepthook = _without_traceback
    if not environment.creates_processes_externally:
        word, written = os.pipe()  # the workers inherit the end to read alone, and meet its end when this process has ended
        os.write(written, b"!")
        os.environ |= {"MASTER_ADDR": environment.main_address, "MASTER_PORT": str(environment.main_port), "LOCAL_RANK": "0",
                       WORD: str(word)}
        own = os.environ | {STARTED_BY: str(os.getpid())}
        workers = [subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=own | {"LOCAL_RANK": str(rank)}, pass_fds=[word])
                   for rank in range(1, devices)]
        for number in range(len(workers)):
            threading.Thread(target=_end_with_worker, args=(workers, number), daemon=True).start()


def end_with_starter() -> None:
    """From now on this process ends with the one that started it, if that is a command of ours: nobody would look after it."""
    if STARTED_BY in os.environ:
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_worker(workers: list[subprocess.Popen], number: int) -> None:
    """Ends this process and the other workers when a worker ends with another status than 0."""
    status = workers[number].wait()
    if status == 0:
        return
    if status not in HAVE_SPOKEN:
        take_word()
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        _say(f"process {number + 2} of the {len(workers) + 1} on this machine {how}")
    for worker in workers:
        worker.kill()
        worker.wait()
    sys.stdout.flush()
    os._exit(status if status in HAVE_SPOKEN else 2)


def _end_with_parent() -> None:
    """Ends this process, which has nothing to add, when the one that started it has ended."""
    while str(os.getppid()) == os.environ[STARTED_BY]:
        time.sleep(LOOK_EVERY)
    os._exit(2)


def _without_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """sys.excepthook: a lost process is no fault of this one; it leaves the word to the thread that knows more, if there is one."""
    if not (isinstance(error, RuntimeError) and any(words in str(error) for words in LOST)):
        sys.__excepthook__(kind, error, trace)
        return
    time.sleep(PATIENCE)
    take_word()
    _say("the connection to another process was lost")
    sys.stdout.flush()
    os._exit(2)


def _say(what: str) -> None:
    # Not sys.stderr, which torch.distributed replaces by a buffer while sys.excepthook runs.
    print(f"\nerror: a process of this run has ended ({what}); the same command goes on from the last saved state",
          file=sys.__stderr__, flush=True)
