"""The processes of a run on several devices: started, watched and ended by the command itself, as torchrun does.

The command starts itself again once per device and waits for these processes. When one of them fails it kills the others, which may wait in
a collective of NCCL for ever, and says why in one sentence.
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

from ldm.util import PATIENCE, REASON, ended_early

if TYPE_CHECKING:
    from lightning_fabric.plugins.environments import ClusterEnvironment

STARTED_BY = "APL_STARTED_BY"  # environment variable of a process that a command has started: the number of the command's
LOOK_EVERY = 0.5               # seconds


def start_workers(environment: "ClusterEnvironment", devices: int) -> None:
    """Run this command once per device of this machine; return in the processes that this function, torchrun or SLURM has started.

    Raises:
        SystemExit: in the command itself, when its processes have ended.
        UserError: one of them has ended before its time, without a reason of its own.
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
    except KeyboardInterrupt:  # a terminal sends it to all processes
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
    """From now on this process ends with the one that started it, if that is a command of ours: nobody would look after it."""
    if STARTED_BY in os.environ:
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _watch(workers: list[subprocess.Popen], reasons: int) -> int:
    """Wait until all workers have ended, or one has failed, and print its reason; returns the status."""
    while True:
        statuses = [worker.poll() for worker in workers]  # before the reasons, for a worker gives its own before it ends
        failed = next((rank for rank, status in enumerate(statuses) if status), None)
        patience = LOOK_EVERY if failed is None and None in statuses else 0
        if select.select([reasons], [], [], patience)[0] and (reason := os.read(reasons, select.PIPE_BUF)):
            status, _, sentence = reason.decode(errors="replace").partition("\n")[0].partition(" ")
            print(f"\n{sentence}", file=sys.stderr, flush=True)
            return int(status)
        if failed is not None:
            status = statuses[failed]
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            raise ended_early(f"process {failed + 1} of the {len(workers)} on this machine {how}")
        if None not in statuses:
            return 0


def _end_with_parent() -> None:
    while str(os.getppid()) == os.environ[STARTED_BY]:
        time.sleep(LOOK_EVERY)
    os.kill(os.getpid(), signal.SIGTERM)  # ends the process also where the main thread waits for others
