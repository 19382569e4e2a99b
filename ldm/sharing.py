"""Work that the devices of a run share: each takes every n-th piece, and the results come back in order."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import torch

Piece, Result = TypeVar("Piece"), TypeVar("Result")


class Devices(Protocol):
    """What is needed of lightning_fabric.Fabric, whose import alone takes seconds."""

    device: "torch.device"
    global_rank: int
    world_size: int
    is_global_zero: bool

    def barrier(self) -> None: ...

    def broadcast(self, obj: Any) -> Any: ...

    def all_reduce(self, data: Any, *, reduce_op: str) -> Any: ...

    def backward(self, tensor: "torch.Tensor") -> None: ...


class OneDevice:
    """Stands for Fabric where one process does everything on the CPU."""

    global_rank, world_size, is_global_zero = 0, 1, True

    @property
    def device(self) -> "torch.device":
        import torch

        return torch.device("cpu")

    def barrier(self) -> None:
        pass

    def broadcast(self, obj: Any) -> Any:
        return obj

    def all_reduce(self, data: Any, *, reduce_op: str) -> Any:
        return data

    def backward(self, tensor: "torch.Tensor") -> None:
        tensor.backward()


def share(fabric: Devices, find: Callable[[], Sequence[Piece]]) -> Sequence[Piece]:
    """This device's part of the work: every n-th of the pieces that the first device, and it alone, finds to be done."""
    found = fabric.broadcast(find() if fabric.is_global_zero else None)
    return found[fabric.global_rank::fabric.world_size]


def gather(fabric: Devices, results: Sequence[Result]) -> list[Result]:
    """What all devices have made of their parts, in the order of the pieces that were shared; the same on every device."""
    parts, count = [results], fabric.world_size
    if count > 1:
        import torch.distributed

        parts *= count
        torch.distributed.all_gather_object(parts, results)
    return [parts[number % count][number // count] for number in range(sum(map(len, parts)))]


def in_rounds(fabric: Devices, find: Callable[[], Sequence[Piece]], work: Callable[[Piece], Result]) -> Iterator[Result]:
    """The result of `work` for each piece that the first device finds to be done, in order, on every device.

    They come a round at a time, in which each device takes one piece: what they say can be noted before the next round.
    """
    found, count = fabric.broadcast(find() if fabric.is_global_zero else None), fabric.world_size
    for start in range(0, len(found), count):
        mine = found[start:start + count][fabric.global_rank:][:1]
        yield from gather(fabric, [work(piece) for piece in mine])
