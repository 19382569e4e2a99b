"""The numbers of Table 2 (paper section 4.3): what is measured on each picture, and a row from the measurements of a set.

The half "non_id" has prompts that name nobody: distance from the pictures of the model as it is, and CLIP score. The half "id" has
prompts that name people: the same distance, ID-ACC and Attr-ACC. A scorer turns pictures into arrays with one entry a picture,
so that pictures can go once they are scored; a row takes the arrays of two whole sets.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from ldm.evaluation.attributes import attributes_kept
from ldm.evaluation.clip_score import ClipScorer
from ldm.evaluation.fid import frechet_distance, kernel_distance
from ldm.evaluation.id_acc import bootstrap_interval, id_acc, image_scores, observations
from ldm.evaluation.portraits import Analyzer
from ldm.evaluation.tables import Row
from ldm.images import read_image
from ldm.util import UserError

FACE_WIDTH = 512    # of ArcFace embeddings
READ_TOGETHER = 64  # image files

FeaturesOf = Callable[[Sequence[np.ndarray]], np.ndarray]  # pictures (H, W, 3) uint8 RGB -> (N, D)
AttributesOf = Callable[[Sequence[np.ndarray], Sequence[Any]], np.ndarray]  # images and their faces -> (N, D'), as `AttributeEncoder`
Scores = dict[str, np.ndarray]


class Scorer(Protocol):
    """Pictures (H, W, 3) uint8 RGB, and the prompt or the name of each -> arrays whose first axis counts the pictures."""

    def __call__(self, images: Sequence[np.ndarray], texts: Sequence[Any]) -> Scores: ...


class PromptScorer:
    """Of the half "non_id": "fid" (N, D), features; "clip" (N,), cosine with the prompt, not-a-number without a prompt or a CLIP model.

    Args:
        features_of: of FID.
        analyzer: adds "face_found" (N,), 1 or 0.
        apl_compat: see `ImageEncoder.encode`; it concerns the CLIP score alone.
    """

    def __init__(self, features_of: FeaturesOf, clip: ClipScorer | None = None, analyzer: Analyzer | None = None, *,
                 apl_compat: bool = False) -> None:
        self.features_of, self.clip, self.analyzer, self.apl_compat = features_of, clip, analyzer, apl_compat

    def __call__(self, images: Sequence[np.ndarray], texts: Sequence[str | None]) -> Scores:
        cosines = np.full(len(images), np.nan, np.float32)
        told = {place: text for place, text in enumerate(texts) if text is not None}
        if self.clip and told:
            similarity = self.clip.similarity([images[place] for place in told], list(told.values()), apl_compat=self.apl_compat)
            cosines[list(told)] = similarity.numpy()
        scores = {"fid": self.features_of(images), "clip": cosines}
        if self.analyzer:
            scores["face_found"] = np.array([self.analyzer.analyze(image) is not None for image in images], np.float32)
        return scores


class IdentityScorer:
    """Of images of people: "fid" (N, D); "face" (N, 512) and "attributes" (N, D'), not-a-number for a picture without a face.

    Args:
        features_of: of FID; None leaves "fid" out.
        attributes: None leaves Attr-ACC out.
        width: of the embeddings of the gallery.
    """

    def __init__(self, features_of: FeaturesOf | None, analyzer: Analyzer, attributes: AttributesOf | None = None,
                 width: int = FACE_WIDTH) -> None:
        self.features_of, self.analyzer, self.attributes, self.width = features_of, analyzer, attributes, width

    def __call__(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> Scores:
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
    """FID, KID and CLIP score of a set of pictures; `base`: of the model as it is, None if `scores` are its own.

    Returns:
        clip: mean cosine, as in the paper; clip_x100: the same as other papers write it; clip_low, clip_high: its 95 % bootstrap interval
        over prompts; n_clip, where not all of the images have a CLIP score: how many do; detection_rate, where faces were looked for:
        share of pictures that show one.
    """
    found = {}
    if "face_found" in scores:
        found["detection_rate"] = float(scores["face_found"].mean())
    cosines = scores["clip"][~np.isnan(scores["clip"])]
    if not len(cosines):
        return _distances(scores, base) | {"clip": None, "clip_x100": None} | found
    if len(cosines) < len(scores["clip"]):
        found["n_clip"] = len(cosines)
    clip, (low, high) = float(cosines.mean()), bootstrap_interval(cosines, seed=0)
    return _distances(scores, base) | {"clip": clip, "clip_x100": 100 * clip, "clip_low": low, "clip_high": high} | found


def identity_row(scores: Scores, base: Scores | None, names: Sequence[str], gallery: Mapping[str, np.ndarray],
                 threshold: float) -> Row:
    """FID, KID, ID-ACC and Attr-ACC of pictures of people; `base` as in `prompt_row`, of the same people in the same order.

    Args:
        names: whom each picture should show; how often a name has come before is the number of its noise.
        gallery, threshold: see `load_gallery`, `id_acc`.

    Returns:
        attr_acc and attr_random: `attributes_kept`; further columns as `id_acc`.
    """
    seen = observations(scores["face"], names, [""] * len(names))
    own = by_person(scores["attributes"], names)
    kept, random = attributes_kept(own, own if base is None else by_person(base["attributes"], names))
    identity = id_acc(image_scores(seen, gallery), threshold=threshold)
    return identity | _distances(scores, base) | {"attr_acc": kept, "attr_random": random}


def by_person(values: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """(N, D) of pictures in any order -> (people, samples, D), not-a-number where a person has fewer pictures than another."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    table = np.full((len(places), max(map(len, places.values())), values.shape[1]), np.nan, values.dtype)
    for person, own in zip(table, places.values(), strict=True):
        person[:len(own)] = values[own]
    return table


def _distances(scores: Scores, base: Scores | None) -> Row:
    found: Row = {"n_images": len(scores["fid"])}
    if base is not None:
        found |= {"fid": frechet_distance(scores["fid"], base["fid"]), "kid": kernel_distance(scores["fid"], base["fid"]),
                  "n_base": len(base["fid"])}
    return found
