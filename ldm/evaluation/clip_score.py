"""CLIP score and zero-shot recognition with an open_clip model (paper section 4.1, metrics)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ldm.evaluation.weights import weights_for
from ldm.finite import FETCH_AGAIN, check_finite
from ldm.util import UserError

PAPERS_MODEL = "ViT-g-14"
BATCH = 64  # images per forward pass


class ImageEncoder:
    """Image encoder of an open_clip model with loaded weights; `preprocess` maps a PIL image to its input (3, h, w) float."""

    def __init__(self, model: Any, preprocess: Callable[[Image.Image], Tensor], device: str | torch.device) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self.preprocess, self.device = preprocess, torch.device(device)

    @torch.no_grad()
    def encode(self, images: Sequence[np.ndarray], *, apl_compat: bool = False) -> Tensor:
        """Embeddings (N, D) fp32 on the CPU, not normalized, of N images (H, W, 3) uint8 RGB of any size.

        `apl_compat` preprocesses as the authors' released code does: nearest-neighbour resize, values in [0, 1], without the mean and
        standard deviation that the model was trained with.
        """
        prepare = self._as_released if apl_compat else lambda image: self.preprocess(Image.fromarray(image))
        features = []
        for start in range(0, len(images), BATCH):
            batch = torch.stack([prepare(image) for image in images[start:start + BATCH]])
            features.append(self.model.encode_image(batch.to(self.device)).float().cpu())
        return torch.cat(features)

    def image_features(self, images: Sequence[np.ndarray], *, apl_compat: bool = False) -> Tensor:
        """Unit image embeddings (N, D) fp32 on the CPU; arguments as in `encode`."""
        return F.normalize(self.encode(images, apl_compat=apl_compat), dim=1)

    def _as_released(self, image: np.ndarray) -> Tensor:
        pixels = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
        return F.interpolate(pixels, size=self.model.visual.image_size, mode="nearest")[0]


class ClipScorer(ImageEncoder):
    """Image-text model of `open_clip` with its own preprocessing.

    `model` is an open_clip model name such as "ViT-L-14", or the path of an open_clip model config (.json). `weights` is the path of
    a .safetensors or .pt file. Raises UserError if the config or the weights do not exist or do not match.
    """

    def __init__(self, model: str, weights: str | Path, device: str | torch.device = "cpu") -> None:
        import open_clip

        self.name = model
        if model.endswith(".json"):
            if not Path(model).is_file():
                raise UserError(f"the CLIP config {model} does not exist; give the path of an open_clip model config")
            open_clip.add_model_config(Path(model))
            self.name = Path(model).stem
        beside = Path(weights).with_suffix(".json")
        assumed = f" (assumed, as there is no config {beside.name} next to it)" if model == PAPERS_MODEL and not beside.is_file() else ""
        with weights_for(f"the open_clip model {self.name}{assumed}", weights) as file:
            # The full path, because open_clip would take a bare "openai" as a name to download.
            clip, _, preprocess = open_clip.create_model_and_transforms(self.name, pretrained=str(file))
            check_finite(clip.state_dict(), weights, FETCH_AGAIN)
        super().__init__(clip, preprocess, device)
        self.tokenizer = open_clip.get_tokenizer(self.name)

    @torch.no_grad()
    def text_features(self, captions: Sequence[str]) -> Tensor:
        """Unit text embeddings (N, D) fp32 on the CPU."""
        return F.normalize(self.model.encode_text(self.tokenizer(list(captions)).to(self.device)).float().cpu(), dim=1)

    def similarity(self, images: Sequence[np.ndarray], captions: Sequence[str], *, apl_compat: bool = False) -> Tensor:
        """Cosine of each image with its own caption, (N,) in [-1, 1]; `apl_compat` as in `encode`."""
        return (self.image_features(images, apl_compat=apl_compat) * self.text_features(captions)).sum(1)

    def recognise(self, images: Sequence[np.ndarray], captions: Sequence[str]) -> Tensor:
        """Index of the caption nearest to each image, (N,) int64, chosen among all `captions`."""
        return (self.image_features(images) @ self.text_features(captions).T).argmax(1)


def clip_model_of(weights: Path, name: str | None) -> str:
    """The open_clip model of a weights file: `name` if given, or else the config (.json) next to it, or else the paper's ViT-g-14."""
    beside = weights.with_suffix(".json")
    return name or (str(beside) if beside.is_file() else PAPERS_MODEL)
