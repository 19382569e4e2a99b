"""People that an attack teaches the model (paper section 4.4): splits their photos into training photos and held-out photos."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from ldm.contents import digest, hashes_of
from ldm.evaluation.gallery import person_folders
from ldm.image_files import ImageSource
from ldm.images import images_in
from ldm.left_out import LeftOut
from ldm.util import UserError, warn


@dataclass(frozen=True)
class NewPerson:
    """Photo files of a person: `learned` for training, `held_out` for the reference face; disjoint."""

    folder: Path
    learned: list[Path]
    held_out: list[Path]

    def copy_learned(self, place: Path) -> None:
        """Replace the folder `place` by one with copies of the training photos only."""
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for photo in self.learned:
            shutil.copy2(photo, place / photo.name)

    def fingerprint(self) -> str:
        """Hash of the photos' content, 8 hexadecimal digits."""
        return digest(*(hashes_of(map(ImageSource, photos)) for photos in (self.learned, self.held_out)))[:8]


def read_new_people(photos: Path, n_people: int, n_photos: int, seed: int = 0) -> dict[str, NewPerson]:
    """The first `n_people` people of a folder; each further seed takes the next ones, cyclically.

    The first `n_photos` photos of each person are for training, the others are held out.

    Raises:
        UserError: the folder has no sub-folders of people, or fewer people or photos than requested.
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
            raise UserError(f"{folder} has {len(files)} photos, and {n_photos} for training leave none for the reference face; give more, "
                            "or a smaller --n_photos")
        people[name] = NewPerson(folder, files[:n_photos], files[n_photos:])
    return people
