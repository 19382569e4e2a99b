"""Identity accuracy of portraits on disk: collects the scores of each image in rows and files of metrics."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.evaluation.id_acc import id_acc, identity_scores, image_scores
from ldm.evaluation.tables import Row
from ldm.image_files import image_files
from ldm.images import image_grid, read_image
from ldm.left_out import ELSEWHERE, LeftOut, Report, besides
from ldm.names import NameList
from ldm.text_files import write_csv
from ldm.util import UserError, write_atomically

PEOPLE_IN_GRID = 4  # per group


@dataclass
class IdentityTable:
    """Table of identity accuracy, with rows per group, per image and per person.

    Args:
        gallery: reference faces, see `load_gallery`.
        threshold: minimum cosine at which a face counts as the person.
        out_dir: output folder; paths in the table are relative to it.
    """

    gallery: Mapping[str, np.ndarray]
    threshold: float
    out_dir: Path
    rows: list[Row] = field(default_factory=list)
    images: list[Row] = field(default_factory=list)
    people: list[Row] = field(default_factory=list)
    _shown: dict[str, dict[str, Path]] = field(default_factory=dict)  # prefix -> person (group) -> first image

    def add(self, portraits: Mapping[str, Sequence[Path]], faces: np.ndarray, *, model: str, prefix: str, group: str) -> None:
        """Add the row of one group of people, for one model and prefix.

        Args:
            portraits: name -> image files that should show the person.
            faces: embedding of each image of `portraits`, in order, (N, 512); NaN without a face.
        """
        what = {"model": model, "prefix": prefix, "group": group}
        firsts = {f"{name} ({group})": paths[0] for name, paths in list(portraits.items())[:PEOPLE_IN_GRID]}
        self._shown.setdefault(prefix, {}).update(firsts)
        images = [(name, os.path.relpath(path, self.out_dir)) for name, paths in portraits.items() for path in paths]
        scores = image_scores(faces, [name for name, _ in images], [path for _, path in images], self.gallery)
        self.images += [what | row for row in scores]
        self.people += [what | row for row in identity_scores(scores)]
        self.rows.append(what | id_acc(scores, threshold=self.threshold))

    def write_details(self) -> None:
        """Write images.csv (one row per image), identities.csv (per person) and grid.png (per prefix) to `out_dir`."""
        write_csv(self.images, self.out_dir / "images.csv")
        write_csv(self.people, self.out_dir / "identities.csv")
        write_atomically(self.out_dir / "grid.png", self.grid().save)

    def grid(self) -> Image.Image:
        """The first image of the first people of each group, one row per prefix."""
        columns = list(dict.fromkeys(person for firsts in self._shown.values() for person in firsts))
        images = [[read_image(firsts[person]) if person in firsts else None for person in columns] for firsts in self._shown.values()]
        return image_grid(images, ["no prefix" if prefix == "none" else Path(prefix).stem for prefix in self._shown], columns)


def portraits_in(folder: str | Path, names: Sequence[str], report: Report | None = None) -> dict[str, list[Path]]:
    """Images of each person in `folder`/<name>/; the folder name may have any spelling of the name (ldm/names.py).

    Args:
        folder: folder with one sub-folder per person.
        names: list of people.
        report: see `files_below`; None uses a strict `LeftOut`.

    Raises:
        UserError: there are no images, a folder has no name of the list, or two folders have the same name.
    """
    folder, report, known = Path(folder), report or LeftOut(strict=True), NameList(names)
    portraits: dict[str, list[Path]] = {}
    for file in image_files(folder, report):
        path = file.parent
        if path.parent != folder:
            report(ELSEWHERE, f"{file} is not in {folder}/<name>/, so its person is unknown; move it there to score it")
            continue
        name = known.find(path.name)
        if not name:
            raise UserError(f"{path} has images, but nobody in the list of people is called '{path.name}'{known.hint(path.name)}; "
                            "rename the folder or add the person to --people and --gallery")
        if name in portraits and portraits[name][0].parent != path:
            raise UserError(f"{portraits[name][0].parent} and {path} are both folders of '{name}'; merge or rename them")
        portraits.setdefault(name, []).append(file)
    if not portraits:
        raise UserError(f"{folder} holds no images in folders of names{besides(report)}; expected {folder}/<name>/*.png")
    return portraits
