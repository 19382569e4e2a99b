"""The true face of everybody: photos in, the gallery of ID-ACC out (paper section 4.1).

A person's entry is the mean of the normalised embeddings of the photos with a face, made unit length again. Photos without a face
count for nothing. Doubtful photos, with several faces or with a face unlike the others of the person, are left out of the mean while
the person has others. All of them are listed. Folders: <name>/*.jpg at any depth, so also VGGFace2's train/n000001/0001_01.jpg with
the names of its identity_meta.csv, and what dataset_generation.py faces or test_id.py have drawn.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ldm.contents import hashes_of
from ldm.evaluation.faces import FaceAnalyzer
from ldm.evaluation.id_acc import load_gallery
from ldm.evaluation.tables import Row, write_csv
from ldm.image_files import ImageSource, image_files
from ldm.left_out import LeftOut, Report, besides
from ldm.names import NameList, normal_form
from ldm.pictures import picture_files, read_image
from ldm.run_folder import safe_name, versions, write_arrays, write_json
from ldm.text_files import first_of, read_text, rows_of
from ldm.util import UserError, write_atomically

WITH_FACE = ("face", "several faces", "unlike the others")  # what may be seen in a photo, beside "no face" and "unreadable"
DOUBTFUL = WITH_FACE[1:]
# Cosines of strangers' ArcFace embeddings lie around 0 and seldom above 0.3, those of one person mostly above 0.4, and against a mean
# higher still. The miniature's 144 photos have 0.67 or more, its 400 images of S_ID 0.26 or more, and 96 of 100 strangers less than 0.2.
UNLIKE = 0.2


def person_folders(folder: Path, names: Iterable[str] = (), classes: Mapping[str, str] | None = None,
                   report: Report | None = None) -> dict[str, Path]:
    """Name -> the folder of that person's photos.

    Args:
        folder: holds a folder of photos for each person, at any depth; or the --out_dir of pictures that a base model drew.
        names: people whose folders may have any spelling of their names (ldm/names.py).
        classes: folder -> name, see `read_classes`.
        report: see `files_below`; None: a strict `LeftOut`.

    Raises:
        UserError: no photos, photos that belong to nobody's folder, or two folders of one name.
    """
    drawn = folder / "images" / "none"  # of a run folder: the pictures without a prefix
    folder = drawn if drawn.is_dir() else folder
    known, classes = NameList(names), classes or {}
    people: dict[str, Path] = {}
    first: dict[str, Path] = {}  # normal form -> folder
    report = report or LeftOut(strict=True)
    for file in image_files(folder, report):
        path = file.parent
        name = classes.get(path.name, path.name.replace("_", " "))
        above = [place.name for place in path.parents if place != folder and folder in place.parents]  # <name>/2019/1.jpg
        name = next(filter(None, map(known.find, (path.name, name, *above))), name)
        if path == folder:
            raise UserError(f"nothing says whom {file} shows; put it into a sub-folder with the person's name")
        if re.search("[\x00-\x1f\ud800-\udfff]", name):
            raise UserError(f"the folder {str(path)!a} has a name that is no UTF-8 or holds control characters; rename it")
        if (other := first.setdefault(normal_form(name), path)) != path:
            raise UserError(f"{other} and {path} are both called '{name}', and may show two people; rename or merge them")
        people[name] = path
    if not people:
        raise UserError(f"{folder} holds no photos in folders of names{besides(report)}; expected {folder}/<name>/*.jpg")
    return people


def read_classes(path: Path) -> dict[str, str]:
    """Folder -> name, from VGGFace2's identity_meta.csv (columns Class_ID and Name); UserError if it is none."""
    found = {}
    try:
        for line, fields in rows_of(read_text(path), path, ("class_id", "name")):
            folder, name = (first_of(fields, (column,), f"{path}, line {line},") for column in ("class_id", "name"))
            found[folder] = name.replace("_", " ")
    except UserError as error:
        raise UserError(f"{error}; give a table such as VGGFace2's identity_meta.csv, with the columns Class_ID and Name") from None
    return found


def make_gallery(people: Mapping[str, Path], analyzer: FaceAnalyzer, out_dir: Path, *, max_photos: int | None = None,
                 first_photo: int = 0, photos: Path | None = None, onto: Path | None = None, keep_doubtful: bool = False,
                 names: Iterable[str] = (), arguments: Mapping[str, Any] | None = None) -> list[Row]:
    """Writes gallery.npz (name -> embedding), gallery.csv (one row per photo) and gallery.json, and returns one row per person.

    What is known of a person is kept in gallery/<name>.npz and is taken from there while photos and recogniser are the same.

    Args:
        max_photos: the first ones of each person; None takes all.
        first_photo: number of the first photo that is taken, from 0.
        photos: the folder of all of them; where a model drew them, its manifest goes into gallery.json.
        onto: a gallery whose people are kept, but for those of whom there are photos now.
        keep_doubtful: average photos with several faces and faces unlike the others too.
        names: of the list of people; gallery.json names who is not in it. Empty: there is no list.
        arguments: of the command, for gallery.json.

    Returns:
        Rows of name, photos, with_face, unreadable, and of whom there are any, doubtful: what was seen in these photos, by file. Who has
        no photo with a face is not in the gallery; who has only doubtful ones is, with the mean of all of them.

    Raises:
        UserError: nobody has a photo with a face.
    """
    recogniser = analyzer.fingerprint()
    gallery = load_gallery(onto) if onto else {}
    there = NameList(gallery, onto)
    rows, table = [], []
    for name, folder in tqdm(people.items(), "gallery", unit="person"):
        files = picture_files(folder)[first_photo:max_photos]
        embeddings, seen, reasons = _embeddings(files, analyzer, out_dir / "gallery" / f"{safe_name(name)}.npz", recogniser)
        seen = _with_unlike(seen, embeddings)
        faces = [what for what in seen if what in WITH_FACE]
        used = ["face"] if "face" in faces and not keep_doubtful else WITH_FACE
        table += [{"name": name, "photo": str(path), "seen": what, "used": what in used, "reason": reason}
                  for path, what, reason in zip(files, seen, reasons, strict=True)]
        rows.append({"name": name, "photos": len(files), "with_face": len(faces), "unreadable": seen.count("unreadable")})
        if doubtful := {str(path): what for path, what in zip(files, seen, strict=True) if what in DOUBTFUL}:
            rows[-1]["doubtful"] = doubtful
        if faces:
            mean = embeddings[[what in used for what in faces]].mean(axis=0)
            gallery.pop(there.find(name) or "", None)
            gallery[name] = (mean / np.linalg.norm(mean)).astype(np.float32)
    write_csv(table, out_dir / "gallery.csv")
    if not any(row["with_face"] for row in rows):
        raise UserError(f"no face was found in any of the {len(table)} photos, see {out_dir / 'gallery.csv'}; give photos of faces, or "
                        "another --det_size")
    write_arrays(out_dir / "gallery.npz", gallery)
    about = {"recogniser": recogniser, "drawn_with": _manifest_of(photos), "people": rows, "not_in_people": _strangers(rows, names)}
    write_json(out_dir / "gallery.json", about | {"arguments": dict(arguments or {}), "versions": versions()})
    return rows


def describe(rows: Sequence[Row], names: Iterable[str], out_dir: Path) -> str:
    """What the gallery holds and whom it lacks, in a few lines; `names` are those whom it should have."""
    found = [row["name"] for row in rows if row["with_face"]]
    photos, faces, unreadable = (sum(row[key] for row in rows) for key in ("photos", "with_face", "unreadable"))
    lines = [f"{out_dir / 'gallery.npz'} holds {len(found)} people, from {faces} photos with a face of {photos}; "
             f"{photos - faces - unreadable} show no face and {unreadable} cannot be read (listed in gallery.csv)"]
    faceless = [row["name"] for row in rows if not row["with_face"]]
    if faceless:
        lines.append(f"left out, no photo with a face: {', '.join(faceless)}")
    if doubtful := [row for row in rows if "doubtful" in row]:
        kinds = Counter(what for row in doubtful for what in row["doubtful"].values())
        counts = ", ".join(f"{count} x {what}" for what, count in kinds.items())
        lines.append(f"doubtful photos of {_some([row['name'] for row in doubtful])}: {counts} "
                     "(listed in gallery.csv with what was used); check them, or give --keep_doubtful to average all")
    if only := [row["name"] for row in doubtful if len(row["doubtful"]) == row["with_face"]]:
        lines.append(f"only doubtful photos, so the entry is their mean and may show somebody else: {_some(only)}")
    if strangers := _strangers(rows, names):
        lines.append(f"not in --people, and kept under the name of the folder: {_some([name + hint for name, hint in strangers.items()])}")
    absent = [name for name in names if name not in {row["name"] for row in rows}]
    if absent:
        lines.append(f"no photos of {len(absent)} people of --people: {_some(absent)}")
    return "\n".join(lines)


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"


def _strangers(rows: Sequence[Row], names: Iterable[str]) -> dict[str, str]:
    """People of the gallery who are not in the list, each with a hint at the nearest name; none where there is no list."""
    known = NameList(names, "--people")
    return {row["name"]: known.hint(row["name"]) for row in rows if not known.find(row["name"])} if known else {}


def _with_unlike(seen: Sequence[str], embeddings: np.ndarray) -> list[str]:
    """`seen` with "unlike the others" for faces whose cosine to the mean of the person's others is below UNLIKE.

    Args:
        embeddings: unit vectors (faces, 512), in the order of the photos with a face.
    """
    faces = [number for number, what in enumerate(seen) if what in WITH_FACE]
    alone = [row for row, number in enumerate(faces) if seen[number] == "face"]
    seen = list(seen)
    if len(alone) > 1:
        others = embeddings[alone].sum(axis=0) - embeddings[alone]  # (faces, 512), of each without itself
        cosines = (embeddings[alone] * others).sum(axis=1) / np.maximum(np.linalg.norm(others, axis=1), 1e-6)
        for row, cosine in zip(alone, cosines, strict=True):
            if cosine < UNLIKE:
                seen[faces[row]] = "unlike the others"
    return seen


def _embeddings(files: Sequence[Path], analyzer: FaceAnalyzer, cache: Path, recogniser: str) -> tuple[np.ndarray, list[str], list[str]]:
    """Unit embeddings (faces, 512) of the photos with a face; what each photo shows, such as "face" or "unreadable", and why the last."""
    key = repr((recogniser, "upright, faces counted", hashes_of(map(ImageSource, files))))
    if cache.exists():
        with np.load(cache, allow_pickle=False) as known:
            if str(known["key"]) == key:
                return known["embeddings"], known["seen"].tolist(), known["reasons"].tolist()
    faces, seen, reasons = [], [], []
    for path in files:
        try:
            face = analyzer.analyze(read_image(path))
        except UserError as error:
            seen.append("unreadable")
            reasons.append(str(error))
            continue
        seen.append("no face" if face is None else "face" if face.n_faces == 1 else "several faces")
        reasons.append("")
        if face is not None:
            faces.append(face.embedding)
    embeddings = np.stack(faces) if faces else np.zeros((0, 0), np.float32)
    write_atomically(cache, lambda path: np.savez(path, key=key, embeddings=embeddings, seen=seen, reasons=reasons))
    return embeddings, seen, reasons


def _manifest_of(photos: Path | None) -> Any:
    """The manifest of a folder of drawn pictures; None for photos."""
    try:
        return json.loads((photos / "manifest.json").read_text(encoding="utf-8")) if photos else None
    except (OSError, ValueError):
        return None
