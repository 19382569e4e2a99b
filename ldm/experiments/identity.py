"""Table 1: identity accuracy of people in S_ID and S_test, for each variant of a model (paper sections 4.1 and 4.2)."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ldm.evaluation.attributes import attributes_kept
from ldm.evaluation.id_acc import IdentityTable
from ldm.evaluation.quality import IdentityScorer
from ldm.evaluation.tables import Row
from ldm.experiments.pipeline import Pipeline, Shot
from ldm.experiments.variants import C2, Variant
from ldm.generation import warn_of_cut_texts
from ldm.run_folder import RunFolder
from ldm.util import UserError


def identity_rows(pipeline: Pipeline, scorer: IdentityScorer, gallery: Mapping[str, np.ndarray], people: Mapping[str, Sequence[str]],
                  variants: Sequence[Variant], *, model_name: str, n_samples: int, threshold: float, out_dir: Path, resume: bool = True,
                  arguments: Mapping[str, Any] | None = None, attributes: Mapping[str, str] | None = None) -> list[Row]:
    """One row per group and variant; writes images, CSV files per image and per person, and an image grid to `out_dir`.

    Args:
        pipeline: generates and scores the images.
        scorer: scorer without FID features; with `attributes` it adds attr_kept and attr_random (see `attributes_kept`) if there are at
            least two samples and two people.
        gallery: reference faces of everybody in `people`, and further people for rank-1.
        people: group ("train", "test") -> names.
        variants: see `load_variants`.
        model_name: name of the model in the rows.
        n_samples: images per name.
        threshold: minimum cosine at which a face counts as the person.
        out_dir: output folder.
        resume: keep finished images of an earlier run with the same settings.
        arguments: arguments of the command, written next to the images.
        attributes: name -> c2; adds rows "c2" of the base model with attributes instead of the name.

    Returns:
        Rows with model, prefix, group and the columns of `id_acc`, on every rank.

    Raises:
        UserError: `out_dir` holds images of other settings, or a person lacks attributes for the rows "c2".
    """
    unknown = [name for names in people.values() for name in names if attributes is not None and not attributes.get(name)]
    if unknown:
        raise UserError(f"there are no attributes (c2) for {', '.join(unknown[:3])}; add them to --people, or leave out --c2")
    fabric, template = pipeline.fabric, pipeline.settings.prompt
    shown = [*variants, Variant(C2, C2)] if attributes else list(variants)
    folder = RunFolder.shared(fabric, out_dir, asdict(pipeline.settings), {variant.label: variant.hash for variant in shown}, resume=resume,
                              arguments=arguments)
    table = IdentityTable(gallery, threshold, folder.path)
    prompts = [template.replace("{name}", name) for names in people.values() for name in names]
    warn_of_cut_texts(pipeline.model, prompts, [variant.manager for variant in variants], what="prompts with names")
    base: dict[str, np.ndarray] = {}  # group -> attribute features of the first variant's images
    for variant in shown:
        for group, names in people.items():
            described = {name: attributes[name] if variant.label == C2 else name for name in names}
            shots = portrait_shots(folder, variant, described, template, n_samples)
            scores = pipeline.scores(variant, shots, scorer, f"{model_name}, {group}, {variant.label}")
            portraits = {name: [shot.path for shot in own] for name, own in itertools.groupby(shots, lambda shot: shot.text)}
            table.add(portraits, scores.get("face", np.zeros(0)), model=model_name, prefix=variant.file, group=group)
            if scorer.attributes and n_samples > 1 and len(names) > 1:
                features = scores["attributes"].reshape(len(names), n_samples, -1)
                kept, random = attributes_kept(features, base.setdefault(group, features))
                table.rows[-1] |= {"attr_kept": kept, "attr_random": random}
    if fabric.is_global_zero:
        table.write_details()
    return table.rows


def portrait_shots(folder: RunFolder, variant: Variant, described: Mapping[str, str], template: str, n_samples: int) -> list[Shot]:
    """`n_samples` shots per person, grouped by person.

    Args:
        folder: folder of the images.
        variant: variant of the model, for the paths.
        described: name -> text that replaces {name} in the prompt: the name itself or the attributes.
        template: prompt with {name}.
        n_samples: images per person.
    """
    shots: dict[tuple[str, int], Shot] = {}
    for name, words in described.items():
        prompt = template.replace("{name}", words)
        for sample in range(n_samples):  # people with equal attributes use further samples of the same prompt
            number = next(number for number in itertools.count(sample) if (prompt, number) not in shots)
            shots[prompt, number] = Shot(prompt, number, name, folder.image_path(variant.label, name, sample))
    return list(shots.values())
