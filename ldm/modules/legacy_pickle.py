"""Tensors in PyTorch's container from before version 1.6, which every client of prefix files reads.

The reader looks no name up: it replaces the few globals that an embedding needs by inert stand-ins and refuses all others. So, unlike
torch.load(weights_only=True), it also reads the nn.ParameterDict that textual inversion wrote. The writer numbers the storages, where
torch.save uses their addresses: the same tensors give the same bytes.
"""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
SYSTEM = {"protocol_version": PROTOCOL_VERSION, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
DTYPES = {"FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
          "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32}


def read_legacy(path: Path) -> object:
    """The object in `path`, with tensors on the CPU; a torch.nn.ParameterDict is an object with the attribute `_parameters`.

    Raises:
        pickle.UnpicklingError: the file names a global that is not needed; the message holds "GLOBAL module.name".
        ValueError, EOFError: not this container, or cut short.
    """
    with open(path, "rb") as file:
        if _Unpickler(file).load() != MAGIC_NUMBER or _Unpickler(file).load() != PROTOCOL_VERSION:
            raise ValueError("not a PyTorch file")
        _Unpickler(file).load()  # byte order and type sizes of the writer; every writer in use is little-endian
        unpickler = _Unpickler(file, room=path.stat().st_size)
        content = unpickler.load()
        for key in _Unpickler(file).load():
            storage = unpickler.storages.pop(key)
            numel, nbytes = int.from_bytes(file.read(8), "little"), file.readinto(storage.view(torch.uint8).numpy().data)
            if (numel, nbytes) != (storage.numel(), storage.nbytes):
                raise EOFError("a tensor is cut short")
    if unpickler.storages:
        raise EOFError("a tensor is missing")
    return content


def write_legacy(content: object, path: Path) -> None:
    """Write `content` as torch.save(..., _use_new_zipfile_serialization=False) does, with its float32 tensors as on the CPU."""
    with open(path, "wb") as file:
        for header in (MAGIC_NUMBER, PROTOCOL_VERSION, SYSTEM):
            pickle.dump(header, file, protocol=2)
        pickler = _Pickler(file)
        pickler.dump(content)
        pickle.dump([str(number) for number in range(len(pickler.arrays))], file, protocol=2)
        for array in pickler.arrays:
            file.write(array.size.to_bytes(8, "little") + array.tobytes())


class _Unpickler(pickle.Unpickler):
    """Storages of at most `room` bytes in all are 1-D tensors, to be filled with the numbers behind the pickle."""

    def __init__(self, file: BinaryIO, room: int = 0):
        super().__init__(file)
        self.room, self.storages = room, dict[str, Tensor]()
        self.parameter_dict = type("ParameterDict", (), {})
        self.known = {  # objects of this file alone, because a pickle can set their attributes
            "collections.OrderedDict": OrderedDict, "__builtin__.set": set, "builtins.set": set,
            "torch._utils._rebuild_tensor_v2": lambda storage, offset, size, stride, *_: storage.as_strided(size, stride, offset),
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch.nn.modules.container.ParameterDict": self.parameter_dict,
            **{f"torch.{name}": dtype for name, dtype in DTYPES.items()}}

    def find_class(self, module: str, name: str) -> object:
        if (full_name := f"{module}.{name}") not in self.known:
            raise pickle.UnpicklingError(f"GLOBAL {full_name} is refused")
        return self.known[full_name]

    def persistent_load(self, pid: tuple) -> object:
        if pid[0] == "module" and pid[1] is self.parameter_dict:  # followed by the source text of the class
            return self.parameter_dict
        if pid[0] != "storage" or not isinstance(pid[1], torch.dtype):
            raise pickle.UnpicklingError("an unknown kind of persistent object")
        _, dtype, key, _, numel, _ = pid
        if key not in self.storages:
            self.room -= numel * dtype.itemsize
            if self.room < 0:
                raise EOFError("a tensor is cut short")
            self.storages[key] = torch.empty(numel, dtype=dtype)
        return self.storages[key]


class _Pickler(pickle.Pickler):
    """Tensors refer to `arrays`, whose numbers the file holds behind the pickle."""

    def __init__(self, file: BinaryIO):
        super().__init__(file, protocol=2)
        self.arrays: list[np.ndarray] = []

    def reducer_override(self, obj: object) -> Any:
        if not isinstance(obj, Tensor):
            return NotImplemented
        tensor = obj.detach().cpu().contiguous()
        return torch._utils._rebuild_tensor_v2, (tensor.numpy(), 0, tuple(tensor.shape), tensor.stride(), False, OrderedDict())

    def persistent_id(self, obj: object) -> tuple | None:
        if not isinstance(obj, np.ndarray):
            return None
        self.arrays.append(obj)
        return "storage", torch.FloatStorage, str(len(self.arrays) - 1), "cpu", obj.size, None
