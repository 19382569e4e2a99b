"""Resources of a worker: its device, and a cache of the model and the scorers that it used last."""

import os

import torch

from ldm.apl.launch import launch, set_precision
from ldm.device import Place, pick_precision
from ldm.experiments.quality_table import QualityOptions, QualityTable
from ldm.loading import ModelFiles
from ldm.models.diffusion.ddpm import LatentDiffusion


class Tools:
    """Resources of one worker. It caches one model and one set of scorers, since pieces with the same model follow each other.

    Args:
        place: device and environment of the worker.
    """

    def __init__(self, place: Place) -> None:
        os.environ |= place.environment
        self.place, self.device = place, launch(place.devices).device
        self._models: dict[tuple[ModelFiles, str], LatentDiffusion] = {}
        self._quality: dict[str, QualityTable] = {}

    def precision(self, asked: str) -> str:
        """Resolve --precision to "fp32" or "bf16"."""
        return pick_precision(asked, self.device)

    def model(self, files: ModelFiles, precision: str) -> LatentDiffusion:
        """The frozen model of these files in this precision (see `precision`)."""
        precision = self.precision(precision)
        key = files, precision
        if key not in self._models:
            self._models.clear()  # before loading, since both may not fit into memory
            self._models[key] = model = files.load(self.device)
            set_precision(model, precision)
        return self._models[key]

    def quality(self, options: QualityOptions) -> QualityTable:
        """The scorers of Table 2."""
        key = repr(options)
        if key not in self._quality:
            self._quality.clear()
            self._quality[key] = QualityTable(options, self.device)
        return self._quality[key]

    def let_go(self) -> None:
        """Release GPU memory for a training in another process; the caches are refilled on demand."""
        if self.device.type == "cuda":
            self._models.clear()
            self._quality.clear()
            torch.cuda.empty_cache()
