"""Work shared by the ranks of a run: each processes its shard of the pieces, and the results are gathered in order."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Devices(Protocol):
    """The part of lightning_fabric.Fabric that code below the scripts uses; importing Fabric itself takes seconds."""

    @property
    def device(self) -> "torch.device": ...
    @property
    def global_rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def is_global_zero(self) -> bool: ...
    def barrier(self) -> None: ...
    def broadcast(self, obj: Any) -> Any: ...
    def all_reduce(self, data: Any, *, reduce_op: str) -> Any: ...
    def backward(self, tensor: "torch.Tensor") -> None: ...


class OneDevice:
    """Devices of a single process on the CPU."""

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


def share(fabric: Devices, find: Callable[[], Sequence[Item]]) -> Sequence[Item]:
    """This rank's shard of the list broadcast by rank 0, which alone calls `find`."""
    found = fabric.broadcast(find() if fabric.is_global_zero else None)
    return found[fabric.global_rank::fabric.world_size]


def gather(fabric: Devices, results: Sequence[Result]) -> list[Result]:
    """Results of all ranks in the order of the pieces that `share` distributed; equal on every rank."""
    parts, count = [results], fabric.world_size
    if count > 1:
        import torch.distributed

        parts *= count
        torch.distributed.all_gather_object(parts, results)
    return [parts[number % count][number // count] for number in range(sum(map(len, parts)))]


def in_rounds(fabric: Devices, find: Callable[[], Sequence[Item]], work: Callable[[Item], Result]) -> Iterator[Result]:
    """Yield the result of `work` for each piece in the list broadcast by rank 0, in order, on every rank; one piece per rank and round."""
    found, count = fabric.broadcast(find() if fabric.is_global_zero else None), fabric.world_size
    for start in range(0, len(found), count):
        mine = found[start:start + count][fabric.global_rank:][:1]
        yield from gather(fabric, [work(piece) for piece in mine])
