"""Metrics of Table 2 (paper section 4.3): scores of each image, and a row of metrics from the scores of a set.

The half "non_id" has prompts without names and is measured by the distance to the base model's images (FID, KID) and the CLIP score.
The half "id" has prompts with names and is measured by the same distance, ID-ACC and Attr-ACC. A scorer maps images to arrays with one
entry per image, so that images can be released once they are scored; a row is computed from the arrays of two whole sets.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ldm.evaluation.attributes import attributes_kept, attributes_of_people
from ldm.evaluation.clip_score import ClipScorer
from ldm.evaluation.faces import Face, FaceAnalyzer
from ldm.evaluation.fid import frechet_distance, kernel_distance
from ldm.evaluation.id_acc import bootstrap_interval, id_acc, identity_scores, image_scores, units_of_people
from ldm.evaluation.tables import Row
from ldm.images import read_image
from ldm.util import UserError

READ_TOGETHER = 64  # image files per batch

FeaturesOf = Callable[[Sequence[np.ndarray]], np.ndarray]  # images (H, W, 3) uint8 RGB -> (N, D)
AttributesOf = Callable[[Sequence[np.ndarray], Sequence[Face | None]], np.ndarray]  # images and their faces -> (N, D')
Scores = dict[str, np.ndarray]  # arrays whose first axis is the image
Scorer = Callable[[Sequence[np.ndarray], Sequence[str | None]], Scores]  # images, and the prompt or name of each


@dataclass
class PromptScorer:
    """Scorer of the half "non_id". "fid": features (N, D). "clip": cosine with the prompt (N,), NaN without a prompt or CLIP model."""

    features_of: FeaturesOf               # feature network of FID
    clip: ClipScorer | None = None
    analyzer: FaceAnalyzer | None = None  # adds "face_found" (N,), 1 or 0
    apl_compat: bool = False              # see `ImageEncoder.encode`; affects only the CLIP score

    def __call__(self, images: Sequence[np.ndarray], texts: Sequence[str | None]) -> Scores:
        cosines = np.full(len(images), np.nan, np.float32)
        prompted = {place: text for place, text in enumerate(texts) if text is not None}
        if self.clip and prompted:
            similarity = self.clip.similarity([images[place] for place in prompted], list(prompted.values()), apl_compat=self.apl_compat)
            cosines[list(prompted)] = similarity.numpy()
        scores = {"fid": self.features_of(images), "clip": cosines}
        if self.analyzer:
            scores["face_found"] = np.array([self.analyzer.analyze(image) is not None for image in images], np.float32)
        return scores


@dataclass
class IdentityScorer:
    """Scorer of the half "id". "fid": features (N, D). "face" (N, 512) and "attributes" (N, D'): NaN for an image without a face.

    A call raises UserError if the face pack's embeddings have another width than the gallery's.
    """

    features_of: FeaturesOf | None          # feature network of FID; None omits "fid"
    analyzer: FaceAnalyzer
    attributes: AttributesOf | None = None  # attribute encoder; None omits Attr-ACC
    width: int = 512                        # of the gallery's embeddings

    def __call__(self, images: Sequence[np.ndarray], texts: Sequence[str | None]) -> Scores:
        faces = [self.analyzer.analyze(image) for image in images]
        embeddings = np.full((len(images), self.width), np.nan, np.float32)
        for row, face in zip(embeddings, faces, strict=True):
            if face is not None and face.embedding.shape != row.shape:
                raise UserError(f"the face pack gives embeddings of shape {face.embedding.shape}, the gallery {row.shape}; use the gallery "
                                "that was made with this pack")
            if face is not None:
                row[:] = face.embedding
        attributes = self.attributes(images, faces) if self.attributes else np.full((len(images), 1), np.nan, np.float32)
        return ({"fid": self.features_of(images)} if self.features_of else {}) | {"face": embeddings, "attributes": attributes}


def score_files(files: Sequence[Path], texts: Sequence[str | None], scorer: Scorer, label: str | None = None) -> Scores:
    """Scores of image files, read in batches of READ_TOGETHER; `label` is the progress bar's, None shows no bar."""
    chunks = []
    with tqdm(total=len(files), desc=label, unit="image", disable=label is None) as bar:
        for start in range(0, len(files), READ_TOGETHER):
            images = [read_image(path) for path in files[start:start + READ_TOGETHER]]
            chunks.append(scorer(images, texts[start:start + READ_TOGETHER]))
            bar.update(len(images))
    return joined(chunks)


def joined(chunks: Sequence[Scores]) -> Scores:
    """Concatenate the scores of several sets of images."""
    return {key: np.concatenate([chunk[key] for chunk in chunks]) for key in (chunks[0] if chunks else ())}


def prompt_row(scores: Scores, base: Scores | None) -> Row:
    """FID, KID and CLIP score of a set of images from `scores` of `PromptScorer`; `base` are those of the base model's images, or None.

    Returns:
        fid, kid, n_images, n_base; clip: mean cosine, as in the paper; clip_x100: the same times 100; clip_low, clip_high: 95 % bootstrap
        interval over prompts; n_clip: number of images with a CLIP score, if not all have one; detection_rate: share of images with a
        face, if faces were detected.
    """
    row = _distances(scores, base) | {"clip": None, "clip_x100": None}
    cosines = scores["clip"][~np.isnan(scores["clip"])]
    if len(cosines):
        low, high = bootstrap_interval(cosines, seed=0)
        row |= {"clip": float(cosines.mean()), "clip_x100": 100 * float(cosines.mean()), "clip_low": low, "clip_high": high}
    if "face_found" in scores:
        row["detection_rate"] = float(scores["face_found"].mean())
    if 0 < len(cosines) < len(scores["clip"]):
        row["n_clip"] = len(cosines)
    return row


def identity_row(scores: Scores, base: Scores | None, names: Sequence[str], gallery: Mapping[str, np.ndarray], threshold: float) -> Row:
    """FID, KID, ID-ACC and Attr-ACC of images of people; `scores` and `base` as in `prompt_row`, with the same people in the same order.

    `names` is the person in each image's prompt; the k-th image of a name has the name's k-th noise. The columns attr_acc and
    attr_random are those of `attributes_kept`, further ones those of `id_acc`.
    """
    own = by_person(scores["attributes"], names)
    kept, random = attributes_kept(own, own if base is None else by_person(base["attributes"], names))
    identity = id_acc(image_scores(scores["face"], names, [""] * len(names), gallery), threshold=threshold)
    return identity | _distances(scores, base) | {"attr_acc": kept, "attr_random": random}


def prompt_units(scores: Scores) -> dict[str, list[float]]:
    """clip, and detection_rate if faces were detected, of each image; NaN without a CLIP score. Means are those of `prompt_row`."""
    return {"clip": scores["clip"].tolist()} | ({"detection_rate": scores["face_found"].tolist()} if "face_found" in scores else {})


def identity_units(scores: Scores, base: Scores | None, names: Sequence[str],
                   gallery: Mapping[str, np.ndarray]) -> dict[str, list[float | None]]:
    """id_acc_mean, id_acc_max, detection_rate and attr_acc of each person, in the order of `names`; arguments of `identity_row`."""
    own = by_person(scores["attributes"], names)
    kept = attributes_of_people(own, own if base is None else by_person(base["attributes"], names))
    return units_of_people(identity_scores(image_scores(scores["face"], names, [""] * len(names), gallery))) | {"attr_acc": kept}


def by_person(values: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Regroup rows (N, D) of images in any order into (people, samples, D), with NaN where a person has fewer images than another."""
    named = np.array(names)
    own = [values[named == name] for name in dict.fromkeys(names)]
    most = max(map(len, own))
    return np.stack([np.pad(rows, ((0, most - len(rows)), (0, 0)), constant_values=np.nan) for rows in own])


def _distances(scores: Scores, base: Scores | None) -> Row:
    found: Row = {"n_images": len(scores["fid"])}
    if base is not None:
        found |= {"fid": frechet_distance(scores["fid"], base["fid"]), "kid": kernel_distance(scores["fid"], base["fid"]),
                  "n_base": len(base["fid"])}
    return found
