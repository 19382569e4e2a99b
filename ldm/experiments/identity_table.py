"""Identity accuracy of generated portraits or existing images, from options named like the flags (paper section 4.2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ldm.data.identities import GROUPS, Person
from ldm.data.prompts import different_prompts
from ldm.evaluation.clip_score import ClipScorer, clip_model_of
from ldm.evaluation.faces import FaceAnalyzer
from ldm.evaluation.gallery import portraits_in
from ldm.evaluation.id_acc import IdentityTable, load_gallery
from ldm.evaluation.quality import AttributesOf, IdentityScorer, score_files
from ldm.evaluation.tables import Row
from ldm.left_out import LeftOut
from ldm.sharing import Devices
from ldm.util import UserError

if TYPE_CHECKING:  # existing images need no diffusion model
    from ldm.experiments.variants import Variant
    from ldm.loading import ModelFiles
    from ldm.models.diffusion.ddpm import LatentDiffusion


@dataclass(frozen=True)
class IdentityOptions:
    """Settings for generating and recognizing people, named like the flags of test_id.py."""

    face_pack: Path | None  # None omits the identity rows
    gallery: Path | None
    det_size: Sequence[int]
    det_thresh: float
    threshold: float
    clip: Path | None
    c2: bool
    prompt_template: str
    n_samples: int
    ddim_steps: int
    scale: float
    seed: int
    batch_size: int
    drift_prompts: Sequence[Path] | None
    out_dir: Path
    resume: bool

    def analyzer(self, device: torch.device) -> FaceAnalyzer:
        """The face detector and recognizer."""
        return FaceAnalyzer(self.face_pack, self.det_size, self.det_thresh, device=str(device))

    @property
    def sampling(self) -> dict[str, Any]:
        """Arguments of `generate` besides the prompts."""
        return {"ddim_steps": self.ddim_steps, "scale": self.scale, "seed": self.seed, "batch_size": self.batch_size}


class IdentityEvaluation:
    """Identity accuracy and drift of a model's variants. All inputs except the model are read here, so that errors are found early.

    Args:
        options: settings.
        people: group -> names.
        attributes: name -> c2.
        device: device of the face recognizer and of CLIP.

    Raises:
        UserError: an input file is missing or invalid.
    """

    def __init__(self, options: IdentityOptions, people: Mapping[str, Sequence[str]], attributes: Mapping[str, str],
                 device: torch.device) -> None:
        self.options, self.people, self.attributes, self.scorer = options, people, attributes, None
        if options.face_pack and options.gallery:
            self.gallery = load_gallery(options.gallery, [name for names in people.values() for name in names])
        self.prompts = {path.stem: different_prompts(path) for path in options.drift_prompts or ()}
        self.clip = ClipScorer(clip_model_of(options.clip, None), options.clip, device) if options.clip else None
        if options.face_pack and options.gallery:
            features_of = (lambda images, faces: self.clip.image_features(images).numpy()) if self.clip else None
            self.scorer = identity_scorer(options.analyzer(device), self.gallery, features_of)

    def rows(self, fabric: Devices, model: "LatentDiffusion", files: "ModelFiles", variants: Sequence["Variant"], precision: str,
             arguments: Mapping[str, Any]) -> list[Row]:
        """Rows of identity accuracy per group and variant, then rows of drift per set of prompts and variant, on every rank.

        Args:
            fabric: devices that share the work.
            model: the frozen model.
            files: its files.
            variants: see `load_variants`.
            precision: precision of the U-Net.
            arguments: arguments of the command, written next to the images.
        """
        from ldm.experiments.drift import drift_rows
        from ldm.experiments.identity import identity_rows
        from ldm.experiments.pipeline import Pipeline
        from ldm.experiments.variants import ImageSettings

        options, rows = self.options, []
        if self.scorer:
            settings = ImageSettings.of(files, prompt=options.prompt_template, seed=options.seed, scale=options.scale,
                                        ddim_steps=options.ddim_steps, precision=precision)
            rows = identity_rows(Pipeline(fabric, model, settings, options.batch_size), self.scorer, self.gallery, self.people, variants,
                                 model_name=files.name, n_samples=options.n_samples, threshold=options.threshold, out_dir=options.out_dir,
                                 resume=options.resume, arguments=arguments, attributes=self.attributes if options.c2 else None)
        for name, prompts in self.prompts.items():
            rows += drift_rows(fabric, model, prompts, variants, name=name, model_name=files.name,
                               recognise=self.clip.recognise if self.clip else None, **options.sampling)
        return rows


def table_of_model(options: IdentityOptions, people: Mapping[str, Person], names: Mapping[str, Sequence[str]], files: "ModelFiles",
                   embedding: Sequence[Path], fabric: Devices, precision: str, arguments: Mapping[str, Any]) -> list[Row]:
    """Rows of a model without a prefix and with each file of `embedding`; empty except on rank 0."""
    from ldm.apl.launch import set_precision
    from ldm.device import pick_precision
    from ldm.experiments.variants import load_variants

    evaluation = IdentityEvaluation(options, names, {person.name: person.attributes for person in people.values()}, fabric.device)
    model, precision = files.load(fabric.device), pick_precision(precision, fabric.device)
    set_precision(model, precision)
    rows = evaluation.rows(fabric, model, files, load_variants(model, embedding, files), precision, arguments)
    return rows if fabric.is_global_zero else []


def table_of_images(options: IdentityOptions, people: Mapping[str, Person], names: Mapping[str, Sequence[str]], images: Path,
                    device: torch.device) -> list[Row]:
    """Rows of existing images in a folder.

    Raises:
        UserError: the folder has no images of `names`, or a file is invalid.
    """
    left_out = LeftOut(strict=True)
    portraits = portraits_in(images, list(people), left_out)
    shown = {group: [name for name in asked if name in portraits] for group, asked in names.items()}
    if not any(shown.values()):
        raise UserError(f"{images} shows nobody of the people asked for; give another --group or --n_names")
    gallery = load_gallery(options.gallery, [name for asked in shown.values() for name in asked])
    scorer = identity_scorer(options.analyzer(device), gallery)
    table = IdentityTable(gallery, options.threshold, options.out_dir)
    for group in filter(shown.get, shown):
        files = [(name, path) for name in shown[group] for path in portraits[name]]
        scores = score_files([path for _, path in files], [name for name, _ in files], scorer, f"recognizing {group}")
        table.add({name: portraits[name] for name in shown[group]}, scores["face"], model=str(images), prefix="unknown", group=group)
    table.write_details()
    left_out.announce(options.out_dir)
    return table.rows


def people_asked_for(people: Mapping[str, Person], group: str, n_names: int | None) -> dict[str, list[str]]:
    """Group -> its first `n_names` names; "all" selects both groups of GROUPS."""
    groups = GROUPS if group == "all" else (group,)
    return {group: [person.name for person in people.values() if person.group == group][:n_names] for group in groups}


def identity_scorer(analyzer: FaceAnalyzer, gallery: Mapping[str, np.ndarray], attributes: AttributesOf | None = None) -> IdentityScorer:
    """Scorer of faces, and optionally attributes, with the width of the gallery's embeddings."""
    return IdentityScorer(None, analyzer, attributes, width=len(next(iter(gallery.values()))))
