"""CLIP score and zero-shot recognition with an open_clip model (paper section 4.1, metrics)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ldm.util import UserError


class ClipScorer:
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

        name = model
        if model.endswith(".json"):
            if not Path(model).is_file():
                raise UserError(f"the CLIP config {model} is not there; give the path of an open_clip model config")
            open_clip.add_model_config(Path(model))
            name = Path(model).stem
        if not Path(weights).is_file():
            raise UserError(f"the CLIP weights {weights} are not there; give the path of a local file")
        try:
            self.model, _, self.preprocess = open_clip.create_model_and_transforms(name, pretrained=str(weights), device=device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"{weights} does not fit the open_clip model {name}: {str(error).splitlines()[0]}") from error
        self.model.eval().requires_grad_(False)
        self.tokenizer = open_clip.get_tokenizer(name)
        self.device = torch.device(device)

    @torch.no_grad()
    def image_features(self, images: Sequence[np.ndarray], batch_size: int = 64) -> Tensor:
        """Unit image embeddings (N, D) fp32 on the CPU of N pictures, (H, W, 3) uint8 RGB each."""
        features = []
        for start in range(0, len(images), batch_size):
            batch = torch.stack([self.preprocess(Image.fromarray(image)) for image in images[start:start + batch_size]])
            features.append(self.model.encode_image(batch.to(self.device)).float().cpu())
        return F.normalize(torch.cat(features), dim=1)

    @torch.no_grad()
    def text_features(self, captions: Sequence[str]) -> Tensor:
        """Unit text embeddings (N, D) fp32 on the CPU."""
        return F.normalize(self.model.encode_text(self.tokenizer(list(captions)).to(self.device)).float().cpu(), dim=1)

    def similarity(self, images: Sequence[np.ndarray], captions: Sequence[str]) -> Tensor:
        """Cosine of each image with its own caption, (N,) in [-1, 1]."""
        return (self.image_features(images) * self.text_features(captions)).sum(1)

    def recognise(self, images: Sequence[np.ndarray], captions: Sequence[str]) -> Tensor:
        """Index of the caption nearest to each image, (N,) int64, chosen among all `captions`."""
        return (self.image_features(images) @ self.text_features(captions).T).argmax(1)
