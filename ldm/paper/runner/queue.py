"""The work behind tables and figures in pieces, which any number of processes and machines take from one folder.

A piece has a folder of its own and says whether it is done. The process that makes it holds a lease, `<folder>/claim`, which filelock
renews every few seconds. A lease is void when its process has ended on this machine, or when nobody has renewed it for a minute. So two
machines that share the folder take different pieces, and what a killed run has left is taken up at once.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from filelock import SoftFileLease, Timeout

from ldm.util import UserError

CLAIM = "claim"
TOUCH_EVERY, VOID_AFTER = 5.0, 60.0  # seconds
LOOK_EVERY = 0.5                     # seconds between looks at what others do
_refused: dict[Path, SoftFileLease] = {}  # a lease must be seen unchanged by the same object for VOID_AFTER to be void


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
    """Hold the folder until the context ends; False where another holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CLAIM
    lease = _refused.pop(path, None) or SoftFileLease(path, lease_duration=VOID_AFTER, heartbeat_interval=TOUCH_EVERY)
    with suppress(FileNotFoundError):
        if not path.stat().st_size and time.time() - path.stat().st_mtime > VOID_AFTER:
            path.unlink()  # of a process that was killed before it wrote; filelock keeps such a file
    try:
        lease.acquire(timeout=0)
    except Timeout:
        _refused[path] = lease
        yield False
        return
    try:
        yield True
    finally:
        lease.release()


def holder(folder: Path) -> str | None:
    """The machine that works in a folder, None if none does."""
    path = folder / CLAIM
    if not path.exists():
        return None
    with claimed(folder) as mine:
        owner = None if mine else SoftFileLease(path).owner
    return owner and owner.hostname.partition("?")[0]  # a container's name has a suffix
