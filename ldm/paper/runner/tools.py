"""What a process needs to make pieces: its device, and the model and the scorers that it used last."""

import os

import torch

from ldm.apl.launch import launch, set_precision
from ldm.device import pick_precision
from ldm.experiments.quality_table import QualityOptions, QualityTable
from ldm.loading import ModelFiles
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.paper.runner.trainings import Place


class Tools:
    """One process's; what it loads it keeps until another is asked for, since pieces of one model follow each other.

    Args:
        place: where it computes.
    """

    def __init__(self, place: Place) -> None:
        os.environ |= place.environment
        self.place, self.device = place, launch(place.devices).device
        self._models: dict[tuple[ModelFiles, str], LatentDiffusion] = {}
        self._quality: dict[str, QualityTable] = {}

    def precision(self, asked: str) -> str:
        """"fp32" or "bf16", of the U-Net."""
        return pick_precision(asked, self.device)

    def model(self, files: ModelFiles, precision: str) -> LatentDiffusion:
        """The frozen model of some files; `precision` as asked for."""
        precision = self.precision(precision)
        key = files, precision
        if key not in self._models:
            self._models.clear()  # before the other is loaded: there may be no room for both
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
        """Frees the GPU, where there is one, for a training beside this process; what is asked for again is loaded again."""
        if self.device.type == "cuda":
            self._models.clear()
            self._quality.clear()
            torch.cuda.empty_cache()
