"""People whom a model learns later (paper section 4.4): which photos it learns from, and which give the true face."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldm.contents import digest, hashes_of
from ldm.evaluation.faces import FaceAnalyzer
from ldm.evaluation.gallery import make_gallery, person_folders
from ldm.evaluation.id_acc import load_gallery
from ldm.image_files import ImageSource
from ldm.images import images_in
from ldm.left_out import LeftOut
from ldm.util import UserError, warn


@dataclass(frozen=True)
class NewPerson:
    """The photo files of a person; those of `learned` and of `held_out` are different ones."""

    folder: Path
    learned: list[Path]
    held_out: list[Path]

    def copy_learned(self, place: Path) -> None:
        """Makes `place` a folder of the learned photos and nothing else: what an attack may see."""
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for photo in self.learned:
            shutil.copy2(photo, place / photo.name)

    def fingerprint(self) -> str:
        """8 hexadecimal digits that stand for the content of the photos."""
        return digest(*(hashes_of(map(ImageSource, photos)) for photos in (self.learned, self.held_out)))[:8]


def read_new_people(photos: Path, n_people: int, n_photos: int, seed: int = 0) -> dict[str, NewPerson]:
    """The first people of a folder by name, and for each further seed the next ones, from the first again at the end.

    The first `n_photos` photos of each are learned, the others held out.

    Raises:
        UserError: the folder holds no folders of people, or fewer people or photos than asked for.
    """
    left_out = LeftOut(strict=True)
    folders = list(person_folders(photos, report=left_out).items())
    if left_out.rows:
        warn(f"left out of {photos}: {left_out}")
    if len(folders) < n_people:
        raise UserError(f"{photos} has photos of {len(folders)} people where {n_people} are asked for; give more, or a smaller --n_people")
    people = {}
    for number in range(n_people):
        name, folder = folders[(seed * n_people + number) % len(folders)]
        files = images_in(folder)
        if len(files) <= n_photos:
            raise UserError(f"{folder} has {len(files)} photos, and {n_photos} to learn from leave none for the true face; give more, or a "
                            "smaller --n_photos")
        people[name] = NewPerson(folder, files[:n_photos], files[n_photos:])
    return people


def true_face(name: str, person: NewPerson, analyzer: FaceAnalyzer, out_dir: Path) -> dict[str, np.ndarray]:
    """Mean embedding of the held-out photos by name, (512,) of unit length; files of `make_gallery` go to `out_dir`.

    Raises:
        UserError: these photos show no face.
    """
    make_gallery({name: person.folder}, analyzer, out_dir, first_photo=len(person.learned))
    return load_gallery(out_dir / "gallery.npz", [name])
