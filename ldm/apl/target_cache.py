"""Cache of frozen predictions on disk (train.py --target_cache), shared by sweeps over alpha, m, lr, init and seed.

    <folder>/<hash of the key>/key.json                          the key: everything that determines the predictions
    <folder>/<hash of the key>/<first step>-<last>.safetensors   z_t, eps_attributes and eps_name of a group of steps
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.run_folder import write_json
from ldm.util import warn, write_atomically


class TargetCache:
    """The targets of one training set, seed and frozen model on one rank.

    Args:
        folder: cache folder; may contain the targets of other keys, and may be used by several runs at the same time.
        key: everything that determines the targets, as JSON values; runs with equal keys share them.
        limit: size limit of all files in `folder` together, in bytes; what does not fit is computed each time.
        shape: of a noisy latent without the batch, (4, h, w).
        dtype: of the U-Net. Its inputs and outputs have no more digits, so storing them in this dtype loses nothing.
        device: of the loaded tensors.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], *, limit: float, shape: tuple[int, ...], dtype: torch.dtype,
                 device: torch.device):
        self.root, self.limit, self.shape, self.dtype, self.device = folder, limit, tuple(shape), dtype, device
        text = json.dumps(key, sort_keys=True, default=str)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        self._is_full = False
        files = (path for path in folder.rglob("*.safetensors") if path.name[0] != ".")  # a leading dot marks unfinished files
        self._used = sum(path.stat().st_size for path in files)  # other runs may add files, so the limit is approximate
        write_json(self.folder / "key.json", key)

    def has(self, steps: range) -> bool:
        """Whether the cache holds the targets of these steps."""
        return self._path(steps).exists()

    def load(self, steps: range, rows: Mapping[str, int]) -> dict[str, Tensor] | None:
        """Load the targets of these steps, float32 (rows[name], 4, h, w) by name; None if there are no usable ones."""
        if not self.has(steps):
            return None
        path = self._path(steps)
        try:
            targets = load_file(path)
        except (OSError, SafetensorError) as error:
            warn(f"the stored targets {path} cannot be read ({error}) and are computed again")
            return None
        expected = {name: (count, *self.shape) for name, count in rows.items()}
        if {name: tuple(tensor.shape) for name, tensor in targets.items()} != expected:
            warn(f"{path} holds no targets of this training, and they are computed again")
            return None
        return {name: tensor.to(self.device, torch.float32) for name, tensor in targets.items()}

    def save(self, steps: range, targets: Mapping[str, Tensor]) -> None:
        """Write the targets of these steps to one file, unless the cache is full."""
        kept = {name: tensor.to("cpu", self.dtype).contiguous() for name, tensor in targets.items()}
        size = sum(tensor.nbytes for tensor in kept.values())
        if self._is_full or self._used + size > self.limit:
            return self._stop(f"its {self.limit / 1e9:g} GB are used up (--target_cache_gb)")
        try:
            write_atomically(self._path(steps), lambda path: save_file(kept, path))
            self._used += size
        except (OSError, SafetensorError) as error:  # a full disk
            self._stop(str(error))

    def _stop(self, reason: str) -> None:
        if not self._is_full:
            warn(f"the target cache {self.root} takes no more ({reason}); further targets are computed each time")
        self._is_full = True

    def _path(self, steps: range) -> Path:
        return self.folder / f"{steps.start:07d}-{steps[-1]:07d}.safetensors"
