"""The true face of everybody: photos in, the gallery of ID-ACC out (paper section 4.1).

A person's entry is the mean of the normalised embeddings of all photos with a face, made unit length again. Photos without
a face count for nothing and are listed. Folders: <name>/*.jpg at any depth, so also VGGFace2's train/n000001/0001_01.jpg with
the names of its identity_meta.csv, and what dataset_generation.py faces or test_id.py have drawn.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ldm.contents import hashes_of
from ldm.evaluation.faces import FaceAnalyzer
from ldm.evaluation.id_acc import Row, load_gallery
from ldm.evaluation.tables import write_csv
from ldm.image_files import ImageSource, image_files
from ldm.left_out import LeftOut, Report, besides
from ldm.pictures import picture_files, read_image
from ldm.run_folder import names_by_folder, safe_name, versions, write_json
from ldm.util import UserError, write_atomically


def person_folders(folder: Path, names: Iterable[str] = (), classes: Mapping[str, str] | None = None,
                   report: Report | None = None) -> dict[str, Path]:
    """Name -> the folder of that person's photos.

    Args:
        folder: holds a folder of photos for each person, at any depth; or the --out_dir of pictures that a base model drew.
        names: people whose folders may be called by `safe_name`, or with underscores for spaces.
        classes: folder -> name, see `read_classes`.
        report: see `files_below`; None: a strict `LeftOut`.

    Raises:
        UserError: no photos, photos that belong to nobody's folder, or two folders of one name.
    """
    drawn = folder / "images" / "none"  # of a run folder: the pictures without a prefix
    folder = drawn if drawn.is_dir() else folder
    written = names_by_folder(names) | dict(classes or {})
    people: dict[str, Path] = {}
    report = report or LeftOut(strict=True)
    for file in image_files(folder, report):
        path = file.parent
        name = written.get(path.name) or path.name.replace("_", " ")
        if path == folder:
            raise UserError(f"nothing says whom {file} shows; put it into a sub-folder with the person's name")
        if people.setdefault(name, path) != path:
            raise UserError(f"{people[name]} and {path} are both called '{name}', and may show two people; rename or merge them")
    if not people:
        raise UserError(f"{folder} holds no photos in folders of names{besides(report)}; expected {folder}/<name>/*.jpg")
    return people


def read_classes(path: Path) -> dict[str, str]:
    """Folder -> name, from VGGFace2's identity_meta.csv (columns Class_ID and Name); UserError if it is none."""
    try:
        rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""), skipinitialspace=True)
        return {row["Class_ID"].strip(): row["Name"].strip().replace("_", " ") for row in rows}
    except (KeyError, AttributeError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is no table of classes ({type(error).__name__}: {error}); give VGGFace2's identity_meta.csv, with the "
                        "columns Class_ID and Name") from error


def make_gallery(people: Mapping[str, Path], analyzer: FaceAnalyzer, out_dir: Path, *, max_photos: int | None = None,
                 first_photo: int = 0, photos: Path | None = None, onto: Path | None = None,
                 arguments: Mapping[str, Any] | None = None) -> list[Row]:
    """Writes gallery.npz (name -> embedding), gallery.csv (a row a photo) and gallery.json, and returns a row a person.

    What is known of a person is kept in gallery/<name>.npz and is taken from there while photos and recogniser are the same.

    Args:
        max_photos: the first ones of each person; None takes all.
        first_photo: number of the first photo that is taken, from 0.
        photos: the folder of all of them; where a model drew them, its manifest goes into gallery.json.
        onto: a gallery whose people are kept, but for those of whom there are photos now.
        arguments: of the command, for gallery.json.

    Returns:
        Rows of name, photos, with_face, unreadable. Who has no photo with a face is not in the gallery.

    Raises:
        UserError: nobody has a photo with a face.
    """
    recogniser = analyzer.fingerprint()
    gallery = load_gallery(onto) if onto else {}
    rows, table = [], []
    for name, folder in tqdm(people.items(), "gallery", unit="person"):
        files = picture_files(folder)[first_photo:max_photos]
        embeddings, seen, reasons = _embeddings(files, analyzer, out_dir / "gallery" / f"{safe_name(name)}.npz", recogniser)
        table += [{"name": name, "photo": str(path), "seen": what, "reason": reason}
                  for path, what, reason in zip(files, seen, reasons, strict=True)]
        rows.append({"name": name, "photos": len(files), "with_face": len(embeddings), "unreadable": seen.count("unreadable")})
        if len(embeddings):
            mean = embeddings.mean(axis=0)
            gallery[name] = (mean / np.linalg.norm(mean)).astype(np.float32)
    write_csv(table, out_dir / "gallery.csv")
    if not any(row["with_face"] for row in rows):
        raise UserError(f"no face was found in any of the {len(table)} photos, see {out_dir / 'gallery.csv'}; give photos of faces, or "
                        "another --det_size")
    write_atomically(out_dir / "gallery.npz", lambda path: np.savez(path, **gallery))
    write_json(out_dir / "gallery.json", {"recogniser": recogniser, "drawn_with": _manifest_of(photos), "people": rows,
                                          "arguments": dict(arguments or {}), "versions": versions()})
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
    absent = [name for name in names if name not in {row["name"] for row in rows}]
    if absent:
        lines.append(f"no photos of {len(absent)} people of --people: {', '.join(absent[:10])}{', ...' if len(absent) > 10 else ''}")
    return "\n".join(lines)


def _embeddings(files: Sequence[Path], analyzer: FaceAnalyzer, cache: Path, recogniser: str) -> tuple[np.ndarray, list[str], list[str]]:
    """Unit embeddings (faces, 512) of the photos with a face; for each photo "face", "no face" or "unreadable", and why the last."""
    key = repr((recogniser, "upright", hashes_of(map(ImageSource, files))))
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
        seen.append("no face" if face is None else "face")
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
