"""Tensors in PyTorch's container from before version 1.6, which every client of prefix files reads.

Reading never looks a name up: the few globals that an embedding needs are answered with inert stand-ins, all others are
refused. So, unlike torch.load(weights_only=True), it also reads the nn.ParameterDict that textual inversion wrote.
Writing numbers the storages, where torch.save uses their addresses: the same tensors give the same bytes.
"""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
SYSTEM = {"protocol_version": PROTOCOL_VERSION, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
DTYPES = {"FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
          "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32}


def read_legacy(path: Path) -> object:
    """The object in `path`, with torch.nn.ParameterDict as a dict and tensors on the CPU.

    Raises:
        pickle.UnpicklingError: the file names a global that is not needed; the message holds "GLOBAL module.name".
        ValueError, EOFError: not this container, or cut short.
    """
    with open(path, "rb") as file:
        if _Unpickler(file).load() != MAGIC_NUMBER or _Unpickler(file).load() != PROTOCOL_VERSION:
            raise ValueError("not a PyTorch file")
        _Unpickler(file).load()  # byte order and type sizes of the writer; every writer in use is little-endian
        unpickler = _Unpickler(file)
        content = unpickler.load()
        room = path.stat().st_size
        storages = {}
        for key in _Unpickler(file).load():
            numel, dtype = int.from_bytes(file.read(8), "little"), unpickler.dtypes[key]
            if numel * dtype.itemsize > room:
                raise EOFError("a tensor is cut short")
            data = file.read(numel * dtype.itemsize)
            storages[key] = torch.frombuffer(bytearray(data), dtype=dtype, count=numel)
    return _build(content, storages)


def write_legacy(content: object, file: BinaryIO) -> None:
    """Writes `content` as torch.save(..., _use_new_zipfile_serialization=False) does, its tensors as on the CPU."""
    for header in (MAGIC_NUMBER, PROTOCOL_VERSION, SYSTEM):
        pickle.dump(header, file, protocol=2)
    pickler = _Pickler(file)
    pickler.dump(content)
    pickle.dump([str(number) for number in range(len(pickler.tensors))], file, protocol=2)
    for tensor in pickler.tensors:
        file.write(tensor.numel().to_bytes(8, "little"))
        file.write(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())


class _StoredTensor(NamedTuple):
    """What the pickle says of a tensor, whose numbers come after it in the file."""

    key: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _RebuildTensor:
    """Answers to torch._utils._rebuild_tensor_v2. Without attributes, so that a pickle cannot change it."""

    __slots__ = ()

    def __call__(self, key: str, offset: int, size: tuple, stride: tuple, *_unused: object) -> _StoredTensor:
        return _StoredTensor(key, offset, size, stride)


class _RebuildParameter:
    """Answers to torch._utils._rebuild_parameter: a parameter is read as its tensor."""

    __slots__ = ()

    def __call__(self, data: _StoredTensor, *_unused: object) -> _StoredTensor:
        return data


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.dtypes: dict[str, torch.dtype] = {}
        self.parameter_dict = type("ParameterDict", (), {})  # of this file alone: a pickle can set its attributes
        self.known = {
            "collections.OrderedDict": OrderedDict, "__builtin__.set": set, "builtins.set": set,
            "torch._utils._rebuild_tensor_v2": _RebuildTensor(), "torch._utils._rebuild_parameter": _RebuildParameter(),
            "torch.nn.modules.container.ParameterDict": self.parameter_dict,
            **{f"torch.{name}": dtype for name, dtype in DTYPES.items()}}

    def find_class(self, module: str, name: str) -> object:
        try:
            return self.known[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is refused") from None

    def persistent_load(self, pid: tuple) -> object:
        if pid[0] == "module" and pid[1] is self.parameter_dict:  # followed by the source text of the class
            return self.parameter_dict
        if pid[0] == "storage" and isinstance(pid[1], torch.dtype):
            self.dtypes[pid[2]] = pid[1]
            return pid[2]
        raise pickle.UnpicklingError("an unknown kind of persistent object")


class _Numbers(NamedTuple):
    """The numbers of one tensor, which the pickle mentions and the file holds after it."""

    tensor: Tensor


class _Pickler(pickle.Pickler):
    def __init__(self, file: BinaryIO):
        super().__init__(file, protocol=2)
        self.tensors: list[Tensor] = []

    def reducer_override(self, obj: object) -> Any:
        if not isinstance(obj, Tensor):
            return NotImplemented
        tensor = obj.detach().cpu().contiguous()
        return (torch._utils._rebuild_tensor_v2,
                (_Numbers(tensor), 0, tuple(tensor.shape), tensor.stride(), False, OrderedDict()))

    def persistent_id(self, obj: object) -> tuple | None:
        if not isinstance(obj, _Numbers):
            return None
        self.tensors.append(obj.tensor)
        storage_type = next(getattr(torch, name) for name, dtype in DTYPES.items() if dtype == obj.tensor.dtype)
        return "storage", storage_type, str(len(self.tensors) - 1), "cpu", obj.tensor.numel(), None


def _build(node: Any, storages: dict[str, Tensor]) -> object:
    if isinstance(node, _StoredTensor):
        return torch.as_strided(storages[node.key], node.size, node.stride, node.offset)
    if type(node).__name__ == "ParameterDict":
        node = node._parameters
    if isinstance(node, dict):
        return {key: _build(value, storages) for key, value in node.items()}
    return node
