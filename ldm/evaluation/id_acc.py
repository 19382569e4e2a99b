"""ID-ACC: similarity between a face in an image and the person named in its prompt (paper section 4.1, Table 1).

Lower ID-ACC is better anonymization. An image without a detected face lowers `detection_rate` and is excluded from the means, so a
missing face never counts as a success.
"""

import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ldm.containers import NPZ, kind_of
from ldm.evaluation.tables import Row
from ldm.images import image_grid, read_image
from ldm.names import NameList
from ldm.text_files import write_csv
from ldm.util import UserError, write_atomically

RESAMPLES = 2000    # of the bootstrap
PEOPLE_IN_GRID = 4  # per group


def load_gallery(path: str | Path, names: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """Reference face of every person: name -> (512,) fp32 of unit length, read from an .npz with one array per name.

    `names` must be in it, in any spelling; the result uses the spelling given here. Raises UserError if the file is not an .npz of
    vectors, the vectors differ in width, two names are spellings of one name, or one of `names` is missing.
    """
    names = list(names)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            gallery = {name: np.asarray(arrays[name], np.float32) for name in arrays.files}
    except FileNotFoundError as error:
        raise UserError(f"the gallery {path} does not exist; give an .npz with one face embedding per name") from error
    except (ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        kind = kind_of(path)
        reason = " ".join(str(error).split()) if kind == NPZ else kind or "of no known format"
        raise UserError(f"{path} is not a gallery ({reason}); expected an .npz with one face embedding per name, and no pickles") from error
    if not gallery:
        raise UserError(f"the gallery {path} is empty; give an .npz with one face embedding per name")
    lengths = {name: float(np.linalg.norm(vector)) for name, vector in gallery.items()}
    for name, vector in gallery.items():
        if vector.ndim != 1 or not 0 < lengths[name] < np.inf:
            raise UserError(f"the gallery {path} holds for '{name}' an array of shape {vector.shape} and length "
                            f"{lengths[name]:g}; expected one finite vector such as (512,)")
    if len(widths := {len(vector) for vector in gallery.values()}) > 1:
        raise UserError(f"the gallery {path} mixes vectors of the widths {sorted(widths)}; make all of them with one recognizer")
    known = NameList(gallery, f"the gallery {path}")
    spelled = {found: name for name in names if (found := known.find(name))}  # as in the gallery -> as in `names`
    if missing := [name for name in names if not known.find(name)]:
        others = f" and {len(missing) - 3} others" if len(missing) > 3 else ""
        raise UserError(f"the gallery {path} has no face for {', '.join(map(repr, missing[:3]))}{others}{known.hint(missing[0])}; "
                        "add each under this name, as dataset_generation.py gallery does from photos, or give --gallery")
    return {spelled.get(name, name): vector / lengths[name] for name, vector in gallery.items()}


def image_scores(faces: np.ndarray, names: Sequence[str], images: Sequence[str], gallery: Mapping[str, np.ndarray]) -> list[Row]:
    """One row per image: name, image, face_found, cosine to that person's reference face, and the nearest person of the gallery.

    `faces` are unit embeddings (N, 512), with NaN for images without a face, whose `cosine` and `nearest` are None. `names` and
    `images` are the person in each image's prompt, and the image's file.
    """
    everybody, labels = np.stack(list(gallery.values())), list(gallery)  # (people, 512)
    rows: list[Row] = []
    for face, name, image in zip(faces, names, images, strict=True):
        row = {"name": name, "image": image, "face_found": not np.isnan(face).any(), "cosine": None, "nearest": None}
        if row["face_found"]:
            cosines = everybody @ face  # (people,)
            row |= {"cosine": float(cosines[labels.index(name)]), "nearest": labels[int(cosines.argmax())]}
        rows.append(row)
    return rows


def identity_scores(scores: Sequence[Row]) -> list[Row]:
    """One row per person: mean and max cosine over the images with a face (None without any), and the numbers of faces and images."""
    people: dict[str, list[float | None]] = {}
    for row in scores:
        people.setdefault(row["name"], []).append(row["cosine"])
    faces = {name: [cosine for cosine in cosines if cosine is not None] for name, cosines in people.items()}
    return [{"name": name, "mean": _mean(faces[name]), "max": max(faces[name], default=None), "n_faces": len(faces[name]),
             "n_images": len(cosines)} for name, cosines in people.items()]


def units_of_people(people: Sequence[Row]) -> dict[str, list[float | None]]:
    """id_acc_mean, id_acc_max and detection_rate of `id_acc` for each person, from the rows of `identity_scores`."""
    return {"id_acc_mean": [person["mean"] for person in people], "id_acc_max": [person["max"] for person in people],
            "detection_rate": [person["n_faces"] / person["n_images"] for person in people]}


def id_acc(scores: Sequence[Row], *, threshold: float) -> Row:
    """Metrics of one group of people, from the rows of `image_scores`; a face is accepted as the person at a cosine of `threshold`.

    Returns:
        id_acc_mean, id_acc_max: per person over images with a face, then over people with a face (Table 1);
        detection_rate: over all images; id_acc_low, id_acc_high: 95 % bootstrap interval of id_acc_mean over people;
        rank1, tar: share of detected faces whose nearest in the gallery is that person, and that reach `threshold`;
        n_identities, n_without_face (people none of whose images has a face), n_images.
        Metrics without any detected face are None.
    """
    people = identity_scores(scores)
    seen = [person for person in people if person["n_faces"]]
    faces = [row for row in scores if row["face_found"]]
    low, high = bootstrap_interval([person["mean"] for person in seen], seed=0)
    return {"id_acc_mean": _mean([person["mean"] for person in seen]),
            "id_acc_max": _mean([person["max"] for person in seen]),
            "detection_rate": _mean([row["face_found"] for row in scores]),
            "rank1": _mean([row["nearest"] == row["name"] for row in faces]),
            "n_identities": len(people), "n_images": len(scores),
            "tar": _mean([row["cosine"] >= threshold for row in faces]), "id_acc_low": low, "id_acc_high": high,
            "n_without_face": len(people) - len(seen)}


@dataclass
class IdentityTable:
    """Table of identity accuracy, with rows per group, per image and per person."""

    gallery: Mapping[str, np.ndarray]  # reference faces, see `load_gallery`
    threshold: float                   # minimum cosine at which a face counts as the person
    out_dir: Path                      # output folder; paths in the table are relative to it
    rows: list[Row] = field(default_factory=list)
    images: list[Row] = field(default_factory=list)
    people: list[Row] = field(default_factory=list)
    _shown: dict[str, dict[str, Path]] = field(default_factory=dict)  # file -> person (group) -> first image

    def add(self, portraits: Mapping[str, Sequence[Path]], faces: np.ndarray, *, model: str, file: str, group: str) -> None:
        """Add the row of one group of people, for one model and the prefix of a file ("none": without).

        `portraits` maps names to image files that should show the person; `faces` are the embeddings of these images, (N, 512), in
        order; NaN without a face.
        """
        what = {"model": model, "prefix": file, "group": group}
        firsts = {f"{name} ({group})": paths[0] for name, paths in list(portraits.items())[:PEOPLE_IN_GRID]}
        self._shown.setdefault(file, {}).update(firsts)
        images = [(name, os.path.relpath(path, self.out_dir)) for name, paths in portraits.items() for path in paths]
        scores = image_scores(faces, [name for name, _ in images], [path for _, path in images], self.gallery)
        self.images += [what | row for row in scores]
        self.people += [what | row for row in identity_scores(scores)]
        self.rows.append(what | id_acc(scores, threshold=self.threshold))

    def write_details(self) -> None:
        """Write images.csv (one row per image), identities.csv (per person) and grid.png (per prefix; first images) to `out_dir`."""
        write_csv(self.images, self.out_dir / "images.csv")
        write_csv(self.people, self.out_dir / "identities.csv")
        columns = list(dict.fromkeys(person for firsts in self._shown.values() for person in firsts))
        images = [[read_image(firsts[person]) if person in firsts else None for person in columns] for firsts in self._shown.values()]
        grid = image_grid(images, [_label_of(file) for file in self._shown], columns)
        write_atomically(self.out_dir / "grid.png", grid.save)


def bootstrap_interval(values: Sequence[float] | np.ndarray, *, seed: int) -> tuple[float | None, float | None]:
    """95 % percentile bootstrap interval of the mean of `values`; (None, None) without values."""
    if not len(values):
        return None, None
    indices = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(np.asarray(values)[indices].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def _label_of(file: str) -> str:
    """Label of an image grid's row: a file without its suffix, which "target, alpha 0.5" does not have."""
    return "no prefix" if file == "none" else Path(file).stem if Path(file).suffix[1:].isalpha() else file


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
