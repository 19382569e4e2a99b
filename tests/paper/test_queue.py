"""Pieces of work that several take from one folder: who gets one, when a claim is void, and that each piece is made once, in its order."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from filelock import SoftFileLease

from ldm.paper.runner import queue
from ldm.paper.runner.queue import CLAIM, VOID_AFTER, claimed, holder, make_all, whole
from ldm.util import UserError

ROOT = Path(__file__).resolve().parents[2]
HERE = socket.gethostname()
TEN_PIECES = """
import pathlib, sys, time
from ldm.paper.runner.queue import make_all

class Writing:
    needs, size = (), 1.0

    def __init__(self, number):
        self.folder = pathlib.Path(sys.argv[1]) / str(number)

    def is_done(self):
        return (self.folder / "done").exists()

    def make(self, tools):
        with (self.folder / "made").open("a") as file:
            print(tools, file=file)
        time.sleep(0.01)
        (self.folder / "done").touch()

make_all([Writing(number) for number in range(10)], sys.argv[2])
"""

HOLDING = """
import pathlib, socket, sys, time
from ldm.paper.runner import queue

queue.VOID_AFTER, queue.TOUCH_EVERY = map(float, sys.argv[3:])
socket.gethostname = lambda: sys.argv[2]
with queue.claimed(pathlib.Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    time.sleep(600)
"""


@dataclass(frozen=True)
class Writing:
    """A piece that writes a line into `made`; `fails` keeps it from being done."""

    folder: Path
    needs: tuple = ()
    size: float = 1.0
    seconds: float = 0.0
    fails: list = field(default_factory=list)

    def is_done(self) -> bool:
        return (self.folder / "done").exists()

    def make(self, tools) -> None:
        with (self.folder / "made").open("a") as file:
            file.write(f"{tools}\n")
        time.sleep(self.seconds)
        if self.fails:
            raise self.fails[0]
        assert all(need.is_done() for need in self.needs)
        (self.folder / "done").touch()

    @property
    def makers(self) -> list[str]:
        return (self.folder / "made").read_text().splitlines() if (self.folder / "made").exists() else []


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(queue, "LOOK_EVERY", 0.01)


@pytest.fixture
def another():
    """Starts a process that holds a folder, as if on a machine of this name."""
    started = []

    def start(folder: Path, machine: str = HERE) -> subprocess.Popen:
        given = [str(folder), machine, str(queue.VOID_AFTER), str(queue.TOUCH_EVERY)]
        started.append(subprocess.Popen([sys.executable, "-c", HOLDING, *given], cwd=ROOT, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "True\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_one_of_two_gets_a_piece_and_the_other_after_it_is_given_back(tmp_path):
    with claimed(tmp_path) as first, claimed(tmp_path) as second:
        assert first and not second and holder(tmp_path) == HERE
    assert holder(tmp_path) is None and not list(tmp_path.iterdir())
    with claimed(tmp_path) as third:
        assert third


def test_a_claim_is_given_back_when_the_work_fails(tmp_path):
    with pytest.raises(UserError), claimed(tmp_path):
        raise UserError("the data is not there")
    assert not list(tmp_path.iterdir())


def test_a_claim_is_void_when_its_process_is_gone_from_this_machine(tmp_path, another):
    process = another(tmp_path)
    process.kill()
    process.wait()
    assert holder(tmp_path) is None
    with claimed(tmp_path) as mine:
        assert mine and SoftFileLease(tmp_path / CLAIM).pid == os.getpid()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("machine", "sign"), [(HERE, signal.SIGSTOP), ("elsewhere", signal.SIGKILL)])
def test_a_claim_whose_process_runs_or_is_elsewhere_is_void_by_its_age_alone(tmp_path, monkeypatch, another, machine, sign):
    monkeypatch.setattr(queue, "VOID_AFTER", 2.0)
    monkeypatch.setattr(queue, "TOUCH_EVERY", 0.5)
    process = another(tmp_path, machine)
    process.send_signal(sign)
    assert holder(tmp_path) == machine
    began, mine = time.monotonic(), False
    while not mine and time.monotonic() < began + 120:
        with claimed(tmp_path) as mine:
            time.sleep(0.01)
    assert mine and time.monotonic() - began > 1.5


@pytest.mark.parametrize(("age", "free"), [(0, False), (VOID_AFTER + 5, True)])
def test_a_claim_that_says_nothing_is_being_written_until_it_is_old(tmp_path, age, free):
    path = tmp_path / CLAIM
    path.touch()
    os.utime(path, times=(time.time() - age,) * 2)
    with claimed(tmp_path) as mine:
        assert mine == free


def test_a_claim_is_touched_while_the_work_lasts(tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "TOUCH_EVERY", 0.01)
    with claimed(tmp_path):
        os.utime(tmp_path / CLAIM, times=(0, 0))
        began = time.monotonic()
        while (tmp_path / CLAIM).stat().st_mtime == 0 and time.monotonic() < began + 120:
            time.sleep(0.01)
        assert holder(tmp_path) == HERE


def test_the_claim_of_another_who_took_over_stays(tmp_path, another):
    with claimed(tmp_path):
        (tmp_path / CLAIM).unlink()
        another(tmp_path, "elsewhere")
    assert holder(tmp_path) == "elsewhere"


def test_the_whole_is_each_piece_once_after_what_it_needs(tmp_path):
    a = Writing(tmp_path / "a")
    b, c = Writing(tmp_path / "b", needs=(a,)), Writing(tmp_path / "c", needs=(Writing(tmp_path / "a"),))
    assert whole([c, b, a]) == [a, c, b]


def test_what_is_needed_is_made_first_and_what_is_done_is_passed_over(tmp_path):
    done, need = Writing(tmp_path / "done"), Writing(tmp_path / "need")
    last = Writing(tmp_path / "last", needs=(need, done))
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "done").touch()
    seen = []
    make_all([last, need, done], "mine", after=lambda: seen.append((need.is_done(), last.is_done())))
    assert (done.makers, need.makers, last.makers) == ([], ["mine"], ["mine"])
    assert seen == [(False, False), (True, False), (True, True)]


def test_a_piece_that_fails_is_free_again(tmp_path):
    fails = Writing(tmp_path / "a", fails=[UserError("the data is not there")])
    with pytest.raises(UserError, match="the data is not there"):
        make_all([fails], "first")
    assert holder(tmp_path / "a") is None
    make_all([Writing(tmp_path / "a")], "second")
    assert fails.makers == ["first", "second"]


def test_a_piece_that_ends_without_being_done_is_no_endless_work(tmp_path, monkeypatch):
    monkeypatch.setattr(Writing, "make", lambda *_: None)
    with pytest.raises(UserError, match="a is not finished, though what makes it has ended"):
        make_all([Writing(tmp_path / "a")], "mine")


def test_another_ones_piece_is_waited_for_and_the_next_is_made_meanwhile(tmp_path):
    others, mine = Writing(tmp_path / "others"), Writing(tmp_path / "mine")
    (tmp_path / "others").mkdir()
    looks = []

    def after() -> None:
        looks.append(mine.is_done())
        if looks.count(True) == 3:
            (tmp_path / "others" / "done").touch()

    with claimed(tmp_path / "others"):
        make_all([others, mine], "me", after)
    assert others.makers == [] and mine.makers == ["me"] and looks.count(False) == 1


def test_threads_make_each_piece_once(tmp_path):
    first = [Writing(tmp_path / f"{number}") for number in range(6)]
    pieces = [*first, *(Writing(tmp_path / f"{number}-next", needs=(first[number],)) for number in range(6))]
    threads = [threading.Thread(target=make_all, args=(pieces, name)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(piece.is_done() and len(piece.makers) == 1 for piece in pieces) and not list(tmp_path.glob(f"*/{CLAIM}*"))


def test_processes_make_each_piece_once(tmp_path):
    processes = [subprocess.Popen([sys.executable, "-c", TEN_PIECES, str(tmp_path), name], cwd=ROOT) for name in "ab"]
    assert [process.wait() for process in processes] == [0, 0]
    assert all(len(Writing(tmp_path / str(number)).makers) == 1 for number in range(10))


def test_what_a_killed_process_has_begun_is_taken_up_at_once(tmp_path, another):
    process = another(tmp_path)
    assert holder(tmp_path) == HERE
    process.kill()
    process.wait()
    make_all([Writing(tmp_path)], "me")
    assert Writing(tmp_path).makers == ["me"] and not list(tmp_path.glob(f"{CLAIM}*"))
