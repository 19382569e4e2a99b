"""Attr-ACC: how well an image preserves the attributes of the person named in its prompt (paper section 4.3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ldm.evaluation.clip_score import ImageEncoder
from ldm.evaluation.faces import Face, aligned_crop
from ldm.evaluation.weights import weights_for
from ldm.finite import FETCH_AGAIN, check_finite
from ldm.util import UserError

FARL_MODEL = "ViT-B-16-quickgelu"  # open_clip's name of FaRL's architecture


@dataclass
class AttributeEncoder:
    """Attribute features of faces."""

    encoder: ImageEncoder
    on_face: bool  # encode the aligned face instead of the whole image

    def __call__(self, images: Sequence[np.ndarray], faces: Sequence[Face | None]) -> np.ndarray:
        """Unit features (N, D) float32; NaN for an image without a face."""
        shown = [aligned_crop(image, face.landmarks) if self.on_face and face else image for image, face in zip(images, faces, strict=True)]
        features = self.encoder.image_features(shown).numpy()
        features[[face is None for face in faces]] = np.nan
        return features


class FaRL(ImageEncoder):
    """FaRL's image features (arXiv 2112.03109): a CLIP trained on faces and their descriptions.

    `weights` is FaRL-Base-Patch16-LAIONFace20M-ep16.pth (the paper's) or -ep64.pth. Raises UserError if it does not exist, is damaged,
    or belongs to another network.
    """

    def __init__(self, weights: str | Path, device: str | torch.device = "cpu") -> None:
        import open_clip

        config = open_clip.get_model_config(FARL_MODEL)
        clip = open_clip.CLIP(**config)
        with weights_for(f"FaRL ({FARL_MODEL})", weights) as file:
            keys = open_clip.load_checkpoint(clip, str(file), strict=False)  # FaRL has further heads
            check_finite(clip.state_dict(), weights, FETCH_AGAIN)
        if missing := [key for key in keys.missing_keys if key.startswith("visual.")]:
            raise UserError(f"{weights} lacks {len(missing)} tensors of FaRL's image encoder (first: {missing[0]}); give "
                            "FaRL-Base-Patch16-LAIONFace20M-ep16.pth")
        super().__init__(clip, open_clip.image_transform(config["vision_cfg"]["image_size"], is_train=False), device)


def attributes_of_people(features: np.ndarray, base: np.ndarray) -> list[float | None]:
    """The first value of `attributes_kept` for each person."""
    return [attributes_kept(own[None], other[None])[0] for own, other in zip(features, base, strict=True)]


def attributes_kept(features: np.ndarray, base: np.ndarray) -> tuple[float | None, float | None]:
    """Mean cosine of attribute features with the base model's images of the same person, and of other people.

    The second value is the level of a random person. Images from the same noise are not compared with each other, because they
    share background and pose for every person. None if there is nothing to compare (one sample, one person, or no face).

    `features` are unit vectors (people, samples, D), with NaN for an image without a face, which is excluded from the means; `base` are
    those of the base model's images of the same people and samples.
    """
    people, samples, _ = features.shape
    cosines = np.einsum("nid,mjd->nmij", features, base, optimize=True)                    # (people, people, samples, samples)
    other_noise = ~np.eye(samples, dtype=bool)
    same_person = np.eye(people, dtype=bool)
    return _mean(cosines[same_person][:, other_noise]), _mean(cosines[~same_person][:, other_noise])


def _mean(cosines: np.ndarray) -> float | None:
    cosines = cosines[~np.isnan(cosines)]
    return float(cosines.mean()) if cosines.size else None
