"""Commands in processes that are forked from one that has imported everything: of a short run, the imports take most of the time.

A command that starts itself again (`start_workers`) is forked again in place of its command line. `test_two_processes_train_one_prefix` and
the launchers of tests/scripts/test_devices.py start the real command lines.
"""

import functools
import multiprocessing
import os
import select
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ldm.apl import workers

IMPORTED = ["train", "test_id", "test_fid_clip_score", "dataset_generation", "lightning_fabric", "transformers.models.clip.modeling_clip",
            "torch._dynamo", "torch.utils.tensorboard", "ldm.apl.acceleration", "ldm.apl.trainer", "ldm.experiments.training_report",
            "ldm.experiments.quality", "ldm.modules.encoders.modules", "ldm.modules.diffusionmodules.openaimodel", "ldm.models.autoencoder",
            "tests.scoring"]
PATIENCE = 900  # seconds, for machines that do much else

Main = Callable[[list[str]], object]


@functools.cache
def context() -> ForkServerContext:
    """Starts the process that imports everything and is forked, with one thread as all processes here."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(IMPORTED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    return found


class Command:
    """main(argv) in a process of its own, in the current folder; has what tests read of subprocess.Popen."""

    def __init__(self, main: Main, argv: list[str], **environment: object):
        self._said, told = context().Pipe(duplex=False)
        self._process = context().Process(target=_run, daemon=True, args=(
            main, argv, os.environ | {name: str(value) for name, value in environment.items()}, os.getcwd(), told))
        self._process.start()
        told.close()
        self.pid, self.kill = self._process.pid, self._process.kill

    def poll(self) -> int | None:
        return self._process.exitcode

    returncode = property(poll)

    def wait(self) -> int | None:
        self._process.join(PATIENCE)
        return self.returncode

    def communicate(self, timeout: float = PATIENCE) -> tuple[None, str]:
        """None and stderr, once every process that can write there has ended, and no later than so many seconds after the last word."""
        said = b""
        while select.select([self._said], [], [], timeout)[0]:
            if not (more := os.read(self._said.fileno(), 65536)):
                self.wait()
                return None, said.decode()
            said += more
        raise subprocess.TimeoutExpired("a command", timeout, stderr=said)


def _run(main: Main, argv: list[str], environment: dict[str, str], folder: str, told) -> None:
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(told.fileno(), 2)
    told.close()
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # the inherited ones may seek
    torch.set_num_threads(1)
    workers.subprocess = SimpleNamespace(Popen=functools.partial(_Worker, main, argv), TimeoutExpired=subprocess.TimeoutExpired)
    os.environ.clear()
    os.environ.update(environment)
    main(argv)


class _Worker:
    """A fork of this process that calls main(argv) with another environment; has what `start_workers` needs of subprocess.Popen."""

    def __init__(self, main: Main, argv: list[str], _command: list[str], *, env: dict[str, str], pass_fds: list[int]):
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        status: object = 1
        try:
            os.environ.clear()
            os.environ.update(env)
            main(argv)
            status = 0
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status if isinstance(status, int) else status is not None)

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, timeout: float = PATIENCE) -> int | None:
        until = time.monotonic() + timeout
        while self.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, 9)
