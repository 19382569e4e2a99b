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


class ImageEncoder:
    """The image half of an open_clip model.

    Args:
        model: of open_clip, with its weights.
        preprocess: PIL picture -> (3, h, w) float, as the model expects it.
        device: where it runs.
    """

    def __init__(self, model: Any, preprocess: Callable[[Image.Image], Tensor], device: str | torch.device) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self.preprocess, self.device = preprocess, torch.device(device)

    @torch.no_grad()
    def encode(self, images: Sequence[np.ndarray], *, batch_size: int = 64, apl_compat: bool = False) -> Tensor:
        """Image embeddings (N, D) fp32 on the CPU, of the length that the model gives them.

        Args:
            images: N pictures, (H, W, 3) uint8 RGB each, of any size.
            apl_compat: bring pictures to the model's size as the authors' released code does: by nearest neighbour, in [0, 1],
                without the mean and deviation that the model was trained with.
        """
        prepare = self._as_released if apl_compat else lambda image: self.preprocess(Image.fromarray(image))
        features = []
        for start in range(0, len(images), batch_size):
            batch = torch.stack([prepare(image) for image in images[start:start + batch_size]])
            features.append(self.model.encode_image(batch.to(self.device)).float().cpu())
        return torch.cat(features)

    def image_features(self, images: Sequence[np.ndarray], *, apl_compat: bool = False) -> Tensor:
        """Unit image embeddings (N, D) fp32 on the CPU of N pictures; arguments as `encode`."""
        return F.normalize(self.encode(images, apl_compat=apl_compat), dim=1)

    def _as_released(self, image: np.ndarray) -> Tensor:
        pixels = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
        return F.interpolate(pixels, size=self.model.visual.image_size, mode="nearest")[0]


class ClipScorer(ImageEncoder):
    """An image-text model of `open_clip` with its own preprocessing.

    Args:
        model: an open_clip model name such as "ViT-L-14", or the path of an open_clip model config (.json).
        weights: path of the weights (.safetensors or .pt).
        device: where it runs.

    Raises:
        UserError: the config or the weights are not there or do not fit each other.
    """

    def __init__(self, model: str, weights: str | Path, device: str | torch.device = "cpu") -> None:
        import open_clip

        self.name = model
        if model.endswith(".json"):
            if not Path(model).is_file():
                raise UserError(f"the CLIP config {model} is not there; give the path of an open_clip model config")
            open_clip.add_model_config(Path(model))
            self.name = Path(model).stem
        with weights_for(f"the open_clip model {self.name}", weights) as file:
            # The whole path, because open_clip would take a bare "openai" for the name of something to download.
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
    """The open_clip model of a file of weights: as named, or the config beside it (.json), or the paper's ViT-g-14."""
    beside = weights.with_suffix(".json")
    return name or (str(beside) if beside.is_file() else PAPERS_MODEL)
