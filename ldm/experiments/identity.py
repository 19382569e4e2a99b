"""Table 1: identity accuracy of people in S_ID and S_test, for each variant of a model (paper sections 4.1 and 4.2)."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ldm.evaluation.attributes import attributes_kept
from ldm.evaluation.portraits import IdentityTable
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
    """A row per group and variant; images, per-image and per-person CSV and an image grid in `out_dir`.

    Args:
        scorer: without features of FID; its `attributes`, if it has them, add attr_kept and attr_random, see `attributes_kept`, where
            there are two samples and two people.
        gallery: the true face of everybody in `people`, and of whom else rank-1 should choose from.
        people: group ("train", "test") -> names.
        variants: see `load_variants`.
        threshold: cosine from which a face counts as the person.
        resume: keep images that an earlier run finished; they must have been made in the same way.
        arguments: of the command, written beside the images.
        attributes: name -> c2; adds the rows "c2", the model as it is with attributes instead of the name.

    Returns:
        Rows with model, prefix, group and what `id_acc` returns, on every rank.

    Raises:
        UserError: `out_dir` holds images that were made in another way, or somebody's attributes are asked for and empty.
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
    """`n_samples` shots of each person, person after person.

    Args:
        described: by which words the prompt calls each name: by the name itself, or by attributes.
        template: with {name}.
    """
    shots: dict[tuple[str, int], Shot] = {}
    for name, words in described.items():
        prompt = template.replace("{name}", words)
        for sample in range(n_samples):  # people with equal attributes take further samples of the same prompt
            number = next(number for number in itertools.count(sample) if (prompt, number) not in shots)
            shots[prompt, number] = Shot(prompt, number, name, folder.image_path(variant.label, name, sample))
    return list(shots.values())
