"""The end of train.py with a competing method or an attack: the table of Table 1 and pictures, or the pictures of the person learned."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from args.common import options_of
from ldm.data.identities import Person, read_people
from ldm.data.images import load_image
from ldm.edited_weights import edited
from ldm.experiments.attack_images import checkpoint_weights
from ldm.experiments.method_builders import phrase_of
from ldm.experiments.methods import MethodPlan
from ldm.experiments.training_report import NOISE_SEED, PORTRAIT, FinalTableOptions, TrainingReport, summary, write_before_after
from ldm.experiments.variants import BASE, Variant, load_variants
from ldm.fabric import Fabric
from ldm.generation import generate, to_uint8
from ldm.loading import ModelFiles
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.pictures import picture_grid
from ldm.util import warn, write_atomically

PHOTOS_SHOWN = 4

Report = Callable[[LatentDiffusion, Path], str]  # (frozen model, result) -> what the console shows; files go to --out_dir


def report_of(args: argparse.Namespace, plan: MethodPlan, fabric: Fabric, precision: str) -> Report:
    """The report on a method; what it reads is read now, so that a missing face or model is found out before the training."""
    if not plan.material.names:
        return lambda model, result: attack_report(args, plan, fabric, model, result)
    training_report = TrainingReport(options_of(FinalTableOptions, args), people_of(args, plan), fabric)

    def report(model: LatentDiffusion, result: Path) -> str:
        rows = training_report.measure(model, ModelFiles.of(args), result, precision=precision, arguments=vars(args))
        if fabric.is_global_zero:
            _, method = load_variants(model, [result], ModelFiles.of(args))
            write_before_after(args.out_dir / "before-after.png", training_report.before_after(model), method)
        return summary(rows)
    return report


def people_of(args: argparse.Namespace, plan: MethodPlan) -> dict[str, Person]:
    """The people of --people; with --names_file the group train is those to be erased, and test everybody else."""
    people = read_people(args.people) if args.people else {}
    if not args.names_file:
        return people
    unknown = [name for name in plan.material.names if name not in people]
    if unknown:
        warn(f"{', '.join(unknown[:3])} of {args.names_file} {'is' if len(unknown) == 1 else 'are'} not in --people {args.people}, and "
             "will not be in the table and pictures at the end")
    erased = set(plan.material.names)
    return {name: replace(person, group="train" if name in erased else "test") for name, person in people.items()}


def attack_report(args: argparse.Namespace, plan: MethodPlan, fabric: Fabric, model: LatentDiffusion, result: Path) -> str:
    """pictures.png: photos, and the person as drawn before the attack, after it, and behind the prefix of --embedding."""
    if not fabric.is_global_zero:
        return ""
    files, count = ModelFiles.of(args), min(PHOTOS_SHOWN, len(plan.material.photos))
    jobs = [(PORTRAIT.replace("{name}", phrase_of(args)), sample) for sample in range(count)]

    def images_of(variant: Variant) -> list:
        return [image for _, image in generate(model, jobs, embedding_manager=variant.manager, ddim_steps=args.eval_ddim_steps,
                                               scale=args.scale, seed=NOISE_SEED)]

    rows = {"photos": [to_uint8(load_image(source, 8 * model.image_size)[None])[0] for source in plan.material.photos[:count]],
            "drawn before the attack": images_of(BASE)}
    none, *variants = load_variants(model, [args.embedding] if args.embedding else [], files)
    with edited(model, checkpoint_weights(model, result, args.token, args.ckpt_path)):
        rows |= {"drawn after it": images_of(none), **{f"after it, with {variant.label}": images_of(variant) for variant in variants}}
    sheet = picture_grid(list(rows.values()), list(rows), [prompt for prompt, _ in jobs])
    write_atomically(args.out_dir / "pictures.png", sheet.save)
    return f"photos and drawings of '{phrase_of(args)}' side by side: {args.out_dir / 'pictures.png'}"
