"""The work behind tables and figures in pieces, which any number of processes and machines take from one folder.

A piece has a folder of its own and says whether it is done. Whoever takes it holds `<folder>/claim` while he works, and touches it every
few seconds; a claim that nobody has touched for a minute, or whose process is gone from this machine, is void. So two machines that share
the folder take different pieces, and what a killed run has left is taken up at once.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ldm.util import UserError

CLAIM = "claim"
TOUCH_EVERY, VOID_AFTER = 5.0, 60.0  # seconds
LOOK_EVERY = 0.5                     # seconds between looks at what others do


class Piece(Protocol):
    """Something to be made, once.

    `folder` is its own; `needs` must be done before; `size` says about how many calls of the U-Net it takes.
    """

    folder: Path
    needs: Sequence["Piece"]
    size: float

    def is_done(self) -> bool: ...

    def make(self, tools: Any) -> None: ...


def whole(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces and all that they need, each once, by its folder, and after what it needs."""
    found: dict[Path, Piece] = {}

    def add(piece: Piece) -> None:
        for need in piece.needs:
            add(need)
        found.setdefault(piece.folder, piece)

    for piece in pieces:
        add(piece)
    return list(found.values())


def make_all(pieces: Sequence[Piece], tools: Any, after: Callable[[], None] = lambda: None) -> None:
    """Makes what is not done, and waits for what others are making; every piece is done at the end.

    Args:
        pieces: in the order in which they are to be taken; see `whole`.
        tools: what `Piece.make` is given.
        after: called after each piece, and while this process waits.

    Raises:
        UserError: a piece has ended without being done.
    """
    left = list(pieces)
    while left := [piece for piece in left if not piece.is_done()]:
        after()
        ready = (piece for piece in left if all(need.is_done() for need in piece.needs))
        if not any(_made(piece, tools) for piece in ready):
            time.sleep(LOOK_EVERY)
    after()


def _made(piece: Piece, tools: Any) -> bool:
    """Whether the piece was free, and has been made now."""
    with claimed(piece.folder) as mine:
        if mine and not piece.is_done():  # another may just have finished it
            piece.make(tools)
            if not piece.is_done():
                raise UserError(f"{piece.folder} is not finished, though what makes it has ended; see its log, or delete the folder")
        return mine


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether the folder is this process's while the context lasts; False where another holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    path, token = folder / CLAIM, uuid.uuid4().hex
    if not _take(path, token):
        yield False
        return
    ended = threading.Event()
    keeper = threading.Thread(target=_keep, args=(path, ended), daemon=True)
    keeper.start()
    try:
        yield True
    finally:
        ended.set()
        keeper.join()
        if _read(path).get("token") == token:
            path.unlink(missing_ok=True)


def holder(folder: Path) -> str | None:
    """The machine that works in a folder, None if none does."""
    path = folder / CLAIM
    return None if not path.exists() or _is_void(path, _read(path)) else _read(path).get("machine")


def _take(path: Path, token: str) -> bool:
    """Makes the claim; one that is void is moved out of the way first, which only one process can do."""
    there = _read(path)
    if path.exists() and _is_void(path, there):
        aside = path.with_name(f"{CLAIM}-{token}")
        try:
            path.rename(aside)
        except OSError:  # another was faster
            return False
        taken = _read(aside)
        if taken != there:  # it was a new claim, of one who was faster: he gets it back
            try:
                os.link(aside, path)
            except OSError:
                pass
        aside.unlink(missing_ok=True)
        if taken != there:
            return False
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump({"machine": socket.gethostname(), "system": _system(), "process": os.getpid(), "token": token}, file)
    except FileExistsError:
        return False
    return True


def _read(path: Path) -> Mapping[str, Any]:
    """What a claim says; nothing where there is none, or one that is just being written."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _is_void(path: Path, claim: Mapping[str, Any]) -> bool:
    """Whether nobody works behind a claim any more. Ages are told by the file system's clock, which machines share."""
    if (claim.get("machine"), claim.get("system")) == (socket.gethostname(), _system()) and not _is_running(claim.get("process")):
        return True
    clock = path.with_name(f"{CLAIM}-clock-{uuid.uuid4().hex}")
    try:
        clock.touch()
        return clock.stat().st_mtime - path.stat().st_mtime > VOID_AFTER
    except OSError:  # the claim was given back meanwhile
        return False
    finally:
        clock.unlink(missing_ok=True)


def _system() -> str | None:
    """Within which process numbers mean something: containers on one host may share its name."""
    try:
        return f"{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None


def _is_running(process: Any) -> bool:
    if not isinstance(process, int) or os.name != "posix":
        return True  # then its age alone tells
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _keep(path: Path, ended: threading.Event) -> None:
    while not ended.wait(TOUCH_EVERY):
        try:
            os.utime(path)
        except FileNotFoundError:
            return
        except OSError:  # a file system that does not answer for a moment
            continue
