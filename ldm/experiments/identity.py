"""Table 1: identity accuracy of people in S_ID and S_test, for each variant of a model (paper sections 4.1 and 4.2)."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm.apl.launch import set_precision
from ldm.data.benchmarks import different_prompts
from ldm.data.identities import Person
from ldm.device import pick_precision
from ldm.evaluation.attributes import attributes_kept
from ldm.evaluation.clip_score import ClipScorer, clip_model_of
from ldm.evaluation.id_acc import IdentityTable, load_gallery
from ldm.evaluation.quality import IdentityScorer
from ldm.evaluation.tables import Row
from ldm.experiments.drift import drift_rows
from ldm.experiments.identity_table import IdentityOptions, identity_scorer
from ldm.experiments.pipeline import Pipeline, Shot
from ldm.experiments.variants import C2, ImageSettings, Variant, load_variants, target_variant
from ldm.generation import warn_of_cut_texts
from ldm.loading import ModelFiles
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.run_folder import RunFolder
from ldm.sharing import Devices
from ldm.util import UserError


class IdentityEvaluation:
    """Identity accuracy and drift of a model's variants. All inputs except the model are read here, so that errors are found early.

    Args:
        names: group -> names.
        people: these people, with their attributes (c2).
    """

    def __init__(self, options: IdentityOptions, names: Mapping[str, Sequence[str]], people: Mapping[str, Person],
                 device: torch.device) -> None:
        self.options, self.names, self.scorer = options, names, None
        self.attributes = {person.name: person.attributes for person in people.values()} if options.c2 or options.target else None
        self.prompts = {path.stem: different_prompts(path) for path in options.drift_prompts or ()}
        self.clip = ClipScorer(clip_model_of(options.clip, None), options.clip, device) if options.clip else None
        if options.face_pack and options.gallery:
            self.gallery = load_gallery(options.gallery, [name for own in names.values() for name in own])
            features_of = (lambda images, faces: self.clip.image_features(images).numpy()) if self.clip else None
            self.scorer = identity_scorer(options.analyzer(device), self.gallery, features_of)

    def rows(self, fabric: Devices, model: LatentDiffusion, files: ModelFiles, variants: Sequence[Variant], precision: str,
             arguments: Mapping[str, Any]) -> list[Row]:
        """Rows of identity accuracy per group and variant, then rows of drift per set of prompts and variant, on every rank.

        `arguments` of the command are written next to the images.
        """
        options, rows = self.options, []
        if self.scorer:
            pipeline = Pipeline(fabric, model, ImageSettings.of(files, options, precision), options.batch_size)
            rows = identity_rows(pipeline, self.scorer, self.gallery, self.names, variants,
                                 model_name=files.name, n_samples=options.n_samples, threshold=options.threshold, out_dir=options.out_dir,
                                 resume=options.resume, arguments=arguments, attributes=self.attributes,
                                 alphas=options.target or ())
        for name, prompts in self.prompts.items():
            rows += drift_rows(fabric, model, prompts, variants, name=name, model_name=files.name,
                               recognise=self.clip.recognise if self.clip else None, **options.sampling)
        return rows


def table_of_model(options: IdentityOptions, people: Mapping[str, Person], names: Mapping[str, Sequence[str]], files: ModelFiles,
                   embedding: Sequence[Path], fabric: Devices, precision: str, arguments: Mapping[str, Any]) -> list[Row]:
    """Rows of a model without a prefix and with each file of `embedding`; empty except on rank 0."""
    evaluation = IdentityEvaluation(options, names, people, fabric.device)
    model, precision = files.load(fabric.device), pick_precision(precision, fabric.device)
    set_precision(model, precision)
    rows = evaluation.rows(fabric, model, files, load_variants(model, embedding, files), precision, arguments)
    return rows if fabric.is_global_zero else []


def identity_rows(pipeline: Pipeline, scorer: IdentityScorer, gallery: Mapping[str, np.ndarray], people: Mapping[str, Sequence[str]],
                  variants: Sequence[Variant], *, model_name: str, n_samples: int, threshold: float, out_dir: Path, resume: bool = True,
                  arguments: Mapping[str, Any] | None = None, attributes: Mapping[str, str] | None = None,
                  alphas: Sequence[float] = ()) -> list[Row]:
    """One row per group and variant; writes images, CSV files per image and per person, and an image grid to `out_dir`.

    Args:
        scorer: scorer without FID features; with `attributes` it adds attr_kept and attr_random (see `attributes_kept`) if there are at
            least two samples and two people.
        gallery: reference faces of everybody in `people`, and further people for rank-1.
        people: group ("train", "test") -> names.
        n_samples: images per name.
        threshold: minimum cosine at which a face counts as the person.
        resume: keep finished images of an earlier run with the same settings.
        arguments: arguments of the command, written next to the images.
        attributes: name -> c2; adds rows "c2" of the base model with attributes instead of the name.
        alphas: each adds rows of Eq. 5's target, whose images have the noise of the rows with names; needs `attributes`.

    Returns:
        Rows with model, prefix, group and the columns of `id_acc`, on every rank.

    Raises:
        UserError: `out_dir` holds images of other settings, or a person lacks attributes for the rows "c2".
    """
    unknown = [name for names in people.values() for name in names if attributes is not None and not attributes.get(name)]
    if unknown:
        raise UserError(f"there are no attributes (c2) for {', '.join(unknown[:3])}; add them to --people, or leave out --c2 and --target")
    fabric, template = pipeline.fabric, pipeline.settings.prompt
    shown = list(variants)
    if attributes:
        shown += [Variant(C2, C2), *(target_variant(template, attributes, alpha) for alpha in alphas)]
    folder = RunFolder.shared(fabric, out_dir, asdict(pipeline.settings), {variant.label: variant.hash for variant in shown}, resume=resume,
                              arguments=arguments)
    table = IdentityTable(gallery, threshold, folder.path)
    prompts = [template.replace("{name}", name) for names in people.values() for name in names]
    warn_of_cut_texts(pipeline.model, prompts, [variant.manager for variant in variants], what="prompts with names")
    base: dict[str, np.ndarray] = {}  # group -> attribute features of the first variant's images
    for variant in shown:
        for group, names in people.items():
            shots: dict[tuple[str, int], Shot] = {}
            for name, sample in itertools.product(names, range(n_samples)):
                prompt = template.replace("{name}", attributes[name] if variant.label == C2 else name)
                # people with equal attributes use further samples of the same prompt
                number = next(number for number in itertools.count(sample) if (prompt, number) not in shots)
                shots[prompt, number] = Shot(prompt, number, name, folder.image_path(variant.label, name, sample))
            scores = pipeline.scores(variant, [*shots.values()], scorer, f"{model_name}, {group}, {variant.label}")
            portraits = {name: [shot.path for shot in own] for name, own in itertools.groupby(shots.values(), lambda shot: shot.text)}
            table.add(portraits, scores.get("face", np.zeros(0)), model=model_name, file=variant.file, group=group)
            if scorer.attributes and n_samples > 1 and len(names) > 1:
                features = scores["attributes"].reshape(len(names), n_samples, -1)
                kept, random = attributes_kept(features, base.setdefault(group, features))
                table.rows[-1] |= {"attr_kept": kept, "attr_random": random}
    if fabric.is_global_zero:
        table.write_details()
    return table.rows
