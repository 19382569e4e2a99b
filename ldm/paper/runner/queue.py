"""Queue of the work behind tables and figures, shared by any number of processes and machines through one folder.

Each piece of work has its own folder. The worker that makes it holds a lease there, `<folder>/claim`, which filelock renews every few
seconds. A lease expires when its process has ended on this machine, or has not renewed it for a minute. So machines that share the folder
make different pieces, and another worker takes over what a killed run had begun.
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
LOOK_EVERY = 0.5                     # seconds between two looks at pieces of other workers
_refused: dict[Path, SoftFileLease] = {}  # leases of others: an object must see the file unchanged for VOID_AFTER before it takes over


class Piece(Protocol):
    """A piece of work, made once; `needs` must be done first, and `size` is its approximate number of U-Net calls."""

    @property
    def folder(self) -> Path: ...

    @property
    def needs(self) -> Sequence["Piece"]: ...

    @property
    def size(self) -> float: ...

    def is_done(self) -> bool: ...

    def make(self, tools: Any) -> None: ...


def whole(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces and everything that they need, each folder once, dependencies first."""
    found: dict[Path, Piece] = {}

    def add(piece: Piece) -> None:
        for need in piece.needs:
            add(need)
        found.setdefault(piece.folder, piece)

    for piece in pieces:
        add(piece)
    return list(found.values())


def make_all(pieces: Sequence[Piece], tools: Any, after: Callable[[], None] = lambda: None) -> None:
    """Make all unfinished pieces in this order, and wait for those of other workers; every piece is done at the end.

    `tools` is the argument of `Piece.make`; `after` is called after each piece, and while this process waits. UserError if a piece is not
    done after its `make`.
    """
    left = list(pieces)
    while left := [piece for piece in left if not piece.is_done()]:
        after()
        ready = (piece for piece in left if all(need.is_done() for need in piece.needs))
        if not any(_made(piece, tools) for piece in ready):
            time.sleep(LOOK_EVERY)
    after()


def _made(piece: Piece, tools: Any) -> bool:
    """Make the piece unless another worker holds it; returns whether it was free."""
    with claimed(piece.folder) as mine:
        if mine and not piece.is_done():  # another may just have finished it
            piece.make(tools)
            if not piece.is_done():
                raise UserError(f"{piece.folder} is not finished, though what makes it has ended; see its log, or delete the folder")
        return mine


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Hold the folder's lease until the context exits; False if another worker holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CLAIM
    lease = _refused.pop(path, None) or SoftFileLease(path, lease_duration=VOID_AFTER, heartbeat_interval=TOUCH_EVERY)
    with suppress(FileNotFoundError):
        if not path.stat().st_size and time.time() - path.stat().st_mtime > VOID_AFTER:
            path.unlink()  # its process was killed before it wrote; filelock never removes such a file
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
    """The machine whose worker holds the folder, None if none does."""
    path = folder / CLAIM
    if not path.exists():
        return None
    with claimed(folder) as mine:
        owner = None if mine else SoftFileLease(path).owner
    return owner and owner.hostname.partition("?")[0]  # filelock adds a suffix in a container
