"""Report at the end of train.py with a baseline or an attack: Table 1's metrics and images, or images of the learned person."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ldm.data.identities import Person, read_people
from ldm.data.images import load_image
from ldm.edited_weights import edited
from ldm.experiments.attack_images import checkpoint_weights
from ldm.experiments.methods import MethodPlan
from ldm.experiments.training_report import NOISE_SEED, PORTRAIT, FinalTableOptions, TrainingReport, summary, write_before_after
from ldm.experiments.variants import BASE, Variant, load_variants
from ldm.generation import generate, to_uint8
from ldm.images import image_grid
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.sharing import Devices
from ldm.util import warn, write_atomically

PHOTOS_SHOWN = 4

MethodReport = Callable[[LatentDiffusion, Path], str]  # (frozen model, result) -> what the console shows; files go to --out_dir


def report_of(plan: MethodPlan, options: FinalTableOptions, fabric: Devices, precision: str) -> MethodReport:
    """The report of a method. Its inputs are read here, so that a missing face or model is found before the training."""
    if not plan.material.names:
        return lambda model, result: attack_report(plan, fabric, model, result)
    training_report = TrainingReport(options, people_of(plan), fabric)

    def report(model: LatentDiffusion, result: Path) -> str:
        files = plan.options.files
        rows = training_report.measure(model, files, result, precision=precision, arguments=plan.flags)
        if fabric.is_global_zero:
            _, method = load_variants(model, [result], files)
            write_before_after(options.out_dir / "before-after.png", training_report.before_after(model), method)
        return summary(rows)
    return report


def people_of(plan: MethodPlan) -> Mapping[str, Person]:
    """People of --people; with --names_file, the erased names form the group train, and all others the group test."""
    options = plan.options
    people = read_people(options.people) if options.people else {}
    if not options.names_file:
        return people
    unknown = [name for name in plan.material.names if name not in people]
    if unknown:
        warn(f"{', '.join(unknown[:3])} of {options.names_file} {'is' if len(unknown) == 1 else 'are'} not in --people {options.people}, "
             "and will not be in the final table and images")
    erased = set(plan.material.names)
    return {name: replace(person, group="train" if name in erased else "test") for name, person in people.items()}


def attack_report(plan: MethodPlan, fabric: Devices, model: LatentDiffusion, result: Path) -> str:
    """Write `pictures.png`: photos, and images of the person before the attack, after it, and with the prefix of --embedding."""
    if not fabric.is_global_zero:
        return ""
    options, count = plan.options, min(PHOTOS_SHOWN, len(plan.material.photos))
    jobs = [(PORTRAIT.replace("{name}", options.phrase), sample) for sample in range(count)]

    def images_of(variant: Variant) -> list[np.ndarray]:
        return [image for _, image in generate(model, jobs, embedding_manager=variant.manager, ddim_steps=options.eval_ddim_steps,
                                               scale=options.scale, seed=NOISE_SEED)]

    rows = {"photos": [to_uint8(load_image(source, 8 * model.image_size)[None])[0] for source in plan.material.photos[:count]],
            "before the attack": images_of(BASE)}
    none, *variants = load_variants(model, [options.embedding] if options.embedding else [], options.files)
    with edited(model, checkpoint_weights(model, result, options.token, options.files.ckpt_path)):
        rows |= {"after it": images_of(none), **{f"after it, with {variant.label}": images_of(variant) for variant in variants}}
    sheet = image_grid(list(rows.values()), list(rows), [prompt for prompt, _ in jobs])
    write_atomically(options.out_dir / "pictures.png", sheet.save)
    return f"photos and generated images of '{options.phrase}' side by side: {options.out_dir / 'pictures.png'}"
