"""Start, watch and end the workers of a run on several devices.

As torchrun does, a command starts itself once per device. When a worker fails, the command kills the others, which may wait in a collective
forever, and prints the reason in one sentence.
"""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from ldm.util import ENDED, PATIENCE, REASON, UserError

if TYPE_CHECKING:
    from lightning_fabric.plugins.environments import ClusterEnvironment

STARTED_BY = "APL_STARTED_BY"  # environment variable of a process that a command has started: the command's process number
LOOK_EVERY = 0.5               # seconds


def start_workers(environment: "ClusterEnvironment", devices: int) -> None:
    """Run this command once per device of this machine and end it (SystemExit); returns at once in a worker, also of torchrun or SLURM.

    Raises:
        UserError: a worker has failed without giving a reason.
    """
    if environment.creates_processes_externally:
        return
    reasons, given = os.pipe()
    own = os.environ | {"MASTER_ADDR": environment.main_address, "MASTER_PORT": str(environment.main_port), REASON: str(given),
                        STARTED_BY: str(os.getpid())}
    workers = [subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=own | {"LOCAL_RANK": str(rank)}, pass_fds=[given])
               for rank in range(devices)]
    os.close(given)
    try:
        status = _watch(workers, reasons)
    except KeyboardInterrupt:  # the terminal interrupts the workers as well
        for worker in workers:
            with suppress(subprocess.TimeoutExpired):
                worker.wait(PATIENCE)
        raise
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    raise SystemExit(status)


def end_with_starter() -> None:
    """End this process when the command that started it ends, if it was started by one of our commands."""
    if STARTED_BY in os.environ:
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _watch(workers: list[subprocess.Popen], reasons: int) -> int:
    """Wait until all workers have ended or one has failed, and print its reason; returns the exit status."""
    while True:
        statuses = [worker.poll() for worker in workers]  # before the reasons: a worker writes its reason before it ends
        failed = next((rank for rank, status in enumerate(statuses) if status), None)
        patience = LOOK_EVERY if failed is None and None in statuses else 0
        if select.select([reasons], [], [], patience)[0] and (reason := os.read(reasons, select.PIPE_BUF)):
            given, _, sentence = reason.decode(errors="replace").partition("\n")[0].partition(" ")
            print(f"\n{sentence}", file=sys.stderr, flush=True)
            return int(given)
        if failed is not None:
            status = statuses[failed] or 0
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            raise UserError(ENDED.format(f"process {failed + 1} of the {len(workers)} on this machine {how}"))
        if None not in statuses:
            return 0


def _end_with_parent() -> None:
    while str(os.getppid()) == os.environ[STARTED_BY]:
        time.sleep(LOOK_EVERY)
    os.kill(os.getpid(), signal.SIGTERM)  # also if the main thread waits in a collective
