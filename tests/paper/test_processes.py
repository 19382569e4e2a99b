"""The processes of a command: one place works here, several are this command again, and a failure ends all of them with a sentence."""

import os
import sys
import time
from dataclasses import dataclass

import pytest

from ldm.device import Place
from ldm.paper.runner import processes
from ldm.paper.runner.processes import PLACE, make, who_works
from ldm.paper.runner.queue import claimed
from ldm.util import UserError
from tests.paper.test_queue import Writing

STAND_IN = """
import os, pathlib, sys, time
out_dir, number = pathlib.Path(sys.argv[1]), os.environ["APL_PAPER_PLACE"]
print("50%|#####", end="\\r")
if (out_dir / f"fail-{number}").exists():
    print("error: the data is not there; give other data", file=sys.stderr)
    sys.exit(2)
if (out_dir / f"wait-{number}").exists():
    time.sleep(600)
if not (out_dir / "nothing").exists():
    folder = out_dir / f"piece-{number}"
    folder.mkdir()
    (folder / "done").write_text(f"{os.environ['OMP_NUM_THREADS']} {os.environ['APL_STARTED_BY']}")
"""
PLACES = [Place("cpu", {"OMP_NUM_THREADS": "1"}), Place("cpu", {"OMP_NUM_THREADS": "2"})]


@dataclass(frozen=True)
class Piece(Writing):
    """A piece that writes its tools into `done`."""

    size: float = 2.0

    def make(self, tools) -> None:
        (self.folder / "done").write_text(str(tools))


@pytest.fixture
def pieces(tmp_path, monkeypatch) -> list[Piece]:
    """Two pieces; each process of the crew makes that of its number. The tools of this process are its place."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, str(tmp_path / "stand_in.py"), str(tmp_path)])
    monkeypatch.setattr(processes, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(processes, "Tools", lambda place: place.devices)
    return [Piece(tmp_path / f"piece-{number}") for number in range(2)]


def said(piece: Piece) -> str:
    return (piece.folder / "done").read_text()


def test_one_place_works_in_this_process(pieces, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_start", lambda *_: pytest.fail("a process was started"))
    make(pieces, [Place("3")], tmp_path, "table1")
    assert [said(piece) for piece in pieces] == ["3", "3"]


def test_several_places_are_processes_of_the_same_command(pieces, tmp_path):
    make(pieces, PLACES, tmp_path, "table1")
    assert [said(piece) for piece in pieces] == [f"1 {os.getpid()}", f"2 {os.getpid()}"] and not list(tmp_path.glob("*.log"))


def test_a_process_of_the_crew_makes_its_share_and_ends_with_the_command(pieces, tmp_path, monkeypatch):
    looked_after = []
    monkeypatch.setenv(PLACE, "1")
    monkeypatch.setattr(processes, "end_with_starter", lambda: looked_after.append(True))
    make(pieces, [Place("0"), Place("3")], tmp_path, "table1")
    assert [said(piece) for piece in pieces] == ["3", "3"] and looked_after == [True]


def test_what_is_done_starts_nothing(pieces, tmp_path, monkeypatch):
    for piece in pieces:
        piece.folder.mkdir()
        piece.make("before")
    for name in ("_start", "Tools"):
        monkeypatch.setattr(processes, name, lambda *_: pytest.fail("something was started"))
    for places in (PLACES, PLACES[:1]):
        make(pieces, places, tmp_path, "table1")


def test_a_failure_ends_all_with_its_last_words_and_the_log_stays(pieces, tmp_path):
    for name in ("fail-0", "wait-1"):
        (tmp_path / name).touch()
    began = time.monotonic()
    with pytest.raises(UserError, match=r"^the data is not there; give other data; what is done stays, .* \(the whole is in .*-0.log\)"):
        make(pieces, PLACES, tmp_path, "table1")
    assert time.monotonic() - began < 300 and not any(piece.is_done() for piece in pieces)
    assert "error: the data is not there" in next(tmp_path.glob("process-*-0.log")).read_text()


def test_processes_that_end_without_having_made_all_have_failed(pieces, tmp_path):
    (tmp_path / "nothing").touch()
    with pytest.raises(UserError, match="the processes have ended too early; what is done stays"):
        make(pieces, PLACES, tmp_path, "table1")


def test_a_stop_by_the_user_ends_the_processes(pieces, tmp_path, monkeypatch):
    started, start = [], processes._start

    def interrupted(_) -> None:
        raise KeyboardInterrupt

    for number in range(2):
        (tmp_path / f"wait-{number}").touch()
    monkeypatch.setattr(processes, "_start", lambda *given: started.append(start(*given)) or started[0])
    monkeypatch.setattr(processes.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(pieces, PLACES, tmp_path, "table1")
    assert [process.returncode for process in started[0].values()] == [-15, -15]


def test_the_bar_moves_by_the_size_of_what_is_done_whoever_did_it(pieces, tmp_path, capsys):
    pieces[0].folder.mkdir()
    pieces[0].make("another")
    make(pieces, PLACES[:1], tmp_path, "table1")
    bar = capsys.readouterr().err
    assert "table1:  50%" in bar and "2.00/4.00" in bar and "2 of 2 pieces" in bar


def test_who_works_is_counted_by_machine(pieces):
    with claimed(pieces[0].folder), claimed(pieces[1].folder):
        assert list(who_works(pieces).values()) == [2]
    assert who_works(pieces) == {}
