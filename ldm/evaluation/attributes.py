"""Attr-ACC: whether a picture keeps the attributes of the person whom its prompt names (paper section 4.3)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ldm.evaluation.clip_score import ImageEncoder
from ldm.evaluation.faces import Face, aligned_crop
from ldm.evaluation.weights import weights_for
from ldm.finite import FETCH_AGAIN, check_finite
from ldm.util import UserError

FARL_MODEL = "ViT-B-16-quickgelu"  # open_clip's name of the network that FaRL is trained in


class AttributeEncoder:
    """Attribute features of faces.

    Args:
        encoder: pictures -> unit features.
        on_face: show it the upright face instead of the whole picture.
    """

    def __init__(self, encoder: ImageEncoder, *, on_face: bool) -> None:
        self.encoder, self.on_face = encoder, on_face

    def __call__(self, images: Sequence[np.ndarray], faces: Sequence[Face | None]) -> np.ndarray:
        """Unit features (N, D) float32; not-a-number for a picture without a face."""
        shown = [aligned_crop(image, face.landmarks) if self.on_face and face else image
                 for image, face in zip(images, faces, strict=True)]
        features = self.encoder.image_features(shown).numpy()
        features[[face is None for face in faces]] = np.nan
        return features


class FaRL(ImageEncoder):
    """FaRL's image features (arXiv 2112.03109): those of a CLIP that was trained on faces and their descriptions.

    Args:
        weights: FaRL-Base-Patch16-LAIONFace20M-ep16.pth (the paper's) or -ep64.pth.
        device: where it runs.

    Raises:
        UserError: the file is not there, damaged, or not of this network.
    """

    def __init__(self, weights: str | Path, device: str | torch.device = "cpu") -> None:
        import open_clip

        config = open_clip.get_model_config(FARL_MODEL)
        clip = open_clip.CLIP(**config)
        with weights_for(f"FaRL ({FARL_MODEL})", weights) as file:
            keys = open_clip.load_checkpoint(clip, str(file), strict=False)  # FaRL trains further heads beside CLIP's
            check_finite(clip.state_dict(), weights, FETCH_AGAIN)
        missing = [key for key in keys.missing_keys if key.startswith("visual.")]
        if missing:
            raise UserError(f"{weights} lacks {len(missing)} tensors of FaRL's image encoder (first: {missing[0]}); give "
                            "FaRL-Base-Patch16-LAIONFace20M-ep16.pth")
        super().__init__(clip, open_clip.image_transform(config["vision_cfg"]["image_size"], is_train=False), device)


def attributes_kept(features: np.ndarray, base: np.ndarray) -> tuple[float | None, float | None]:
    """Mean cosine of attribute features with the base model's pictures of the same person, and of somebody else.

    The second number is what drawing a random person would give. Pictures from the same noise are not compared with each
    other: they share background and pose whoever is in them.

    Args:
        features: (people, samples, D) of unit length; not-a-number for a picture without a face, which enters no mean.
        base: the same people and samples, drawn by the base model.

    Returns:
        None where there is nothing to compare: one sample, one person, or no face.
    """
    people, samples, _ = features.shape
    cosines = np.einsum("nid,mjd->nmij", features, base, optimize=True)                    # (people, people, samples, samples)
    other_noise = ~np.eye(samples, dtype=bool)
    same_person = np.eye(people, dtype=bool)
    return _mean(cosines[same_person][:, other_noise]), _mean(cosines[~same_person][:, other_noise])


def _mean(cosines: np.ndarray) -> float | None:
    """Of the cosines between pictures that have a face."""
    cosines = cosines[~np.isnan(cosines)]
    return float(cosines.mean()) if cosines.size else None
