"""Options of the tables, named like the flags of the test scripts, and the identity table's rows for existing images (paper section 4.2).

Imports no diffusion model; for generated portraits see `ldm.experiments.identity`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm.data.identities import GROUPS, Person
from ldm.evaluation.faces import FaceAnalyzer
from ldm.evaluation.gallery import portraits_in
from ldm.evaluation.id_acc import IdentityTable, load_gallery
from ldm.evaluation.quality import AttributesOf, IdentityScorer, score_files
from ldm.evaluation.tables import Row
from ldm.left_out import LeftOut
from ldm.util import UserError


@dataclass(frozen=True)
class PortraitOptions:
    """Settings for generating and recognizing people."""

    prompt_template: str
    n_samples: int
    ddim_steps: int
    scale: float
    seed: int
    batch_size: int
    gallery: Path | None
    face_pack: Path | None
    det_size: Sequence[int]
    det_thresh: float
    threshold: float
    clip: Path | None

    def analyzer(self, device: torch.device) -> FaceAnalyzer:
        """The face detector and recognizer."""
        return FaceAnalyzer(self.face_pack, self.det_size, self.det_thresh, device=str(device))


@dataclass(frozen=True)
class IdentityOptions(PortraitOptions):
    """Settings of the identity table, which has no rows of identity accuracy without `face_pack` and `gallery`."""

    c2: bool
    target: Sequence[float] | None  # alphas of Eq. 5
    drift_prompts: Sequence[Path] | None
    out_dir: Path
    resume: bool

    @property
    def sampling(self) -> dict[str, Any]:
        """Arguments of `generate` besides the prompts."""
        return {"ddim_steps": self.ddim_steps, "scale": self.scale, "seed": self.seed, "batch_size": self.batch_size}


def people_asked_for(people: Mapping[str, Person], group: str, n_names: int | None) -> dict[str, list[str]]:
    """Group -> its first `n_names` names; "all" selects both groups of GROUPS."""
    groups = GROUPS if group == "all" else (group,)
    return {group: [person.name for person in people.values() if person.group == group][:n_names] for group in groups}


def identity_scorer(analyzer: FaceAnalyzer, gallery: Mapping[str, np.ndarray], attributes: AttributesOf | None = None) -> IdentityScorer:
    """Scorer of faces, and optionally attributes, with the width of the gallery's embeddings."""
    return IdentityScorer(None, analyzer, attributes, width=len(next(iter(gallery.values()))))


def table_of_images(options: IdentityOptions, people: Mapping[str, Person], names: Mapping[str, Sequence[str]], images: Path,
                    device: torch.device) -> list[Row]:
    """Rows of existing images in a folder; raises UserError if it has no images of `names`, or a file is invalid."""
    left_out = LeftOut(strict=True)
    portraits = portraits_in(images, list(people), left_out)
    shown = {group: {name: portraits[name] for name in asked if name in portraits} for group, asked in names.items()}
    if not any(shown.values()):
        raise UserError(f"{images} shows nobody of the people asked for; give another --group or --n_names")
    gallery = load_gallery(options.gallery, [name for own in shown.values() for name in own])
    scorer = identity_scorer(options.analyzer(device), gallery)
    table = IdentityTable(gallery, options.threshold, options.out_dir)
    for group, own in shown.items():
        if own:
            files, texts = zip(*((path, name) for name, paths in own.items() for path in paths), strict=True)
            scores = score_files(files, texts, scorer, f"recognizing {group}")
            table.add(own, scores["face"], model=str(images), file="unknown", group=group)
    table.write_details()
    left_out.announce(options.out_dir)
    return table.rows
