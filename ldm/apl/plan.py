"""From the flags of train.py to what will be trained on what, before any model is loaded (paper section 4.1)."""

import argparse
import hashlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ldm.apl.trainer import Settings
from ldm.data.captions import CaptionImage, caption_images
from ldm.data.identities import IdentityImage, Person, identity_images, read_people
from ldm.data.mixture import Mixture
from ldm.data.templates import read_templates
from ldm.loading import file_hash
from ldm.run_folder import versions, write_json
from ldm.util import UserError

# Flags on which the learned vectors depend; the files behind the path flags enter by their content.
LEARNED_FROM = ("train_method", "iterations", "lr", "lr_decay", "batch_size", "devices", "ddim_steps", "mix", "alpha", "placeholder",
                "num_vectors", "init", "initializer_words", "seed", "log_every")


@dataclass(frozen=True)
class Plan:
    """Data and settings of a run."""

    people: dict[str, Person]
    identities: list[IdentityImage]  # S_ID
    captions: list[CaptionImage]     # S_Reg
    templates: list[str]
    mixture: Mixture
    settings: Settings


def make_plan(args: argparse.Namespace) -> Plan:
    """The plan for checked flags; every list is read, no picture is.

    Raises:
        UserError: a list cannot be read, or a set that the mixture draws from is missing.
    """
    mix = identity_share(args)
    people = read_people(_needed(args, "people")) if mix > 0 or args.people else {}
    identities = identity_images(_needed(args, "identity_images"), people) if mix > 0 else []
    captions = caption_images(_needed(args, "caption_images")) if mix < 1 else []
    templates = read_templates(args.templates) if args.templates else ["{}"]
    mixture = Mixture(args.seed, len(identities), len(captions), len(templates), args.ddim_steps, mix)
    settings = Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
    return Plan(people, identities, captions, templates, mixture, settings)


def identity_share(args: argparse.Namespace) -> float:
    """Probability that a sample is from S_ID: --mix, but 1 without L_Reg."""
    return 1.0 if args.train_method == "apl-no-reg" else args.mix


def arguments_of(args: argparse.Namespace, plan: Plan, precision: str) -> dict[str, Any]:
    """What the learned vectors depend on, as JSON values: flags, and the content of data, config and checkpoint."""
    data = [[str(image.source), image.name, image.attributes] for image in plan.identities]
    data += [[str(image.source), image.caption] for image in plan.captions]
    return {name: getattr(args, name) for name in LEARNED_FROM} | {
        "precision": precision, "data": hashlib.sha256(repr((data, plan.templates)).encode()).hexdigest()[:16],
        "config": file_hash(args.config_path), "base_model": file_hash(args.ckpt_path)}


def describe(args: argparse.Namespace, plan: Plan) -> str:
    """The plan in a few lines."""
    names = {image.name for image in plan.identities}
    mix, steps = plan.mixture.mix, plan.settings
    prefix = args.initializer_words or args.init
    lines = {
        "model": f"{args.ckpt_path} in {args.config_path}, on {args.devices}, {args.precision}",
        "prefix": f"{args.num_vectors} vectors for the word '{args.placeholder}', started from {prefix}, seed {args.seed}",
        "S_ID": f"{len(plan.identities)} images of {len(names)} people, {len(plan.templates)} templates, drawn with "
                f"probability {mix:g}",
        "S_Reg": f"{len(plan.captions)} images with captions, drawn with probability {1 - mix:g}",
        "training": f"{steps.train_method}, alpha {steps.alpha:g}; {steps.iterations} steps of {steps.batch_size} samples, "
                    f"Adam with learning rate {steps.lr:g}" + f", to 0 over the last {steps.lr_decay:.0%}" * (steps.lr_decay > 0)
                    + f"; t from {plan.mixture.bins} bins",
        "prefixes": f"{prefix_path(args, steps.iterations)}, and every {steps.save_every} steps",
        "the rest": f"{args.out_dir}",
    }
    return "\n".join(f"{name:9} {text}" for name, text in lines.items())


def write_arguments(args: argparse.Namespace, arguments: dict[str, Any]) -> None:
    """All flags, what the vectors depend on, and versions: as <prompt>.json beside the prefixes, and in --out_dir."""
    record = {"arguments": vars(args), "learned_from": arguments, "versions": versions()}
    for path in (args.embeddings_dir / f"{args.prompt}.json", args.out_dir / "arguments.json"):
        write_json(path, record)


def prefix_path(args: argparse.Namespace, step: int) -> Path:
    """File of the prefix after a step, embeddings/<prompt>-<step>.pt."""
    return args.embeddings_dir / f"{args.prompt}-{step}.pt"


def _needed(args: argparse.Namespace, flag: str) -> Path:
    if getattr(args, flag) is None:
        raise UserError(f"--{flag} is missing, and --train_method {args.train_method} with --mix {args.mix:g} draws from it; "
                        "give it, or a --preset that has it")
    return getattr(args, flag)
