"""From the flags of train.py to what will be trained on what (paper section 4.1)."""

import argparse
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from ldm.apl.examples import Texts, TrainingSet
from ldm.apl.look_ahead import LookAhead, Share, steps_ahead
from ldm.apl.target_cache import TargetCache
from ldm.apl.trainer import Settings
from ldm.contents import digest, hashes_of
from ldm.data.captions import CaptionImage, caption_images
from ldm.data.identities import IdentityImage, Person, identity_images, read_people
from ldm.data.mixture import Mixture
from ldm.data.templates import fill, read_templates
from ldm.device import same_devices
from ldm.generation import warn_of_cut_texts
from ldm.left_out import LeftOut
from ldm.loading import ModelFiles, file_hash, has_two_encoders
from ldm.logbook import Logbook
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import INITIALIZATIONS, EmbeddingManager
from ldm.run_folder import versions, write_json
from ldm.sharing import Devices, gather
from ldm.util import UserError

# Flags on which the learned vectors depend; the files behind the path flags enter by their content.
LEARNED_FROM = ("train_method", "iterations", "lr", "lr_decay", "batch_size", "grad_accum", "num_nodes", "ddim_steps", "mix", "alpha",
                "placeholder", "num_vectors", "init", "initializer_words", "seed", "data_seed", "lookahead", "checkpointing",
                "compile", "cuda_graphs", "log_every")
TARGETS = 2  # to be raised when this code computes other targets from the same arguments


@dataclass(frozen=True)
class Plan:
    """Data and settings of a run."""

    people: dict[str, Person]        # those whom S_ID shows first
    identities: list[IdentityImage]  # S_ID
    captions: list[CaptionImage]     # S_Reg
    templates: list[str]
    mixture: Mixture
    settings: Settings
    left_out: LeftOut = field(default_factory=LeftOut)  # by the readers of S_ID and S_Reg


def make_plan(args: argparse.Namespace) -> Plan:
    """The plan for checked flags; every list is read, no picture is.

    Raises:
        UserError: a list cannot be read, or a set that the mixture draws from is missing.
    """
    mix, left_out = identity_share(args), LeftOut(strict=True)
    people = read_people(_needed(args, "people")) if mix > 0 or args.people else {}
    identities = identity_images(_needed(args, "identity_images"), people, left_out) if mix > 0 else []
    if args.n_identities and identities:
        identities = of_first_people(identities, people, args.n_identities)
    shown = {image.name for image in identities}
    people = dict(sorted(people.items(), key=lambda item: item[0] not in shown))  # the final table begins with those of whom it learns
    captions = caption_images(_needed(args, "caption_images"), left_out) if mix < 1 else []
    templates = read_templates(args.templates) if args.templates else ["{}"]
    mixture = Mixture(args.data_seed, len(identities), len(captions), len(templates), args.ddim_steps, mix)
    settings = Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
    return Plan(people, identities, captions, templates, mixture, settings, left_out)


def of_first_people(images: list[IdentityImage], people: dict[str, Person], count: int) -> list[IdentityImage]:
    """The images of the first `count` people that they show, in the order of the list of people (the paper's Figure 8).

    Raises:
        UserError: they show fewer people.
    """
    shown = {image.name for image in images}
    chosen = [name for name in people if name in shown][:count]
    if len(chosen) < count:
        raise UserError(f"S_ID shows {len(chosen)} people where --n_identities asks for {count}; give a smaller number")
    return [image for image in images if image.name in chosen]


def identity_share(args: argparse.Namespace) -> float:
    """Probability that a sample is from S_ID: --mix, but 1 without L_Reg."""
    return 1.0 if args.train_method == "apl-no-reg" else args.mix


def arguments_of(args: argparse.Namespace, plan: Plan, precision: str, hashes: Path | None = None) -> dict[str, Any]:
    """What the learned vectors depend on, as JSON values: flags, and the content of images, texts, config and checkpoint.

    Args:
        hashes: the cache of `hashes_of`.
    """
    images = [*plan.identities, *plan.captions]
    texts = [*((image.name, image.attributes) for image in plan.identities), *(image.caption for image in plan.captions)]
    init = args.init if args.init in INITIALIZATIONS or not Path(args.init).is_file() else file_hash(args.init)
    return {name: getattr(args, name) for name in LEARNED_FROM} | {
        "init": init, "devices": same_devices(args.devices), "precision": precision,
        "images": digest(hashes_of((image.source for image in images), hashes)), "texts": digest(texts, plan.templates),
        "config": file_hash(args.config_path), "base_model": ModelFiles.of(args).hash()}


def target_key(plan: Plan, arguments: dict[str, Any], share: Share, device: torch.device) -> dict[str, Any]:
    """Everything that the targets depend on which one device computes; equal keys, equal bits."""
    computed_by = (torch.cuda.get_device_name(device) if device.type == "cuda" else
                   f"CPU with {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")
    return {name: arguments[name] for name in ("base_model", "config", "precision", "images", "texts", "compile")} | {
        "mixture": asdict(plan.mixture), "share": asdict(share), "with_names": plan.settings.train_method != "apl-released",
        "computed_by": computed_by, "versions": versions(), "code": TARGETS}


def look_ahead(args: argparse.Namespace, plan: Plan, arguments: dict[str, Any], fabric: Devices, model: LatentDiffusion,
               prefix: EmbeddingManager, logbook: Logbook) -> LookAhead:
    """The batches of the steps that are left; their pictures are known to be good."""
    data = TrainingSet(model, plan.identities, plan.captions, plan.templates, plan.mixture)
    if len(set(gather(fabric, [logbook.first_step]))) > 1:
        raise UserError(f"the processes of this run found different training states; --out_dir {args.out_dir} must be a folder that "
                        "all machines share")
    ahead = logbook.steps_ahead or args.lookahead or steps_ahead(model, args.batch_size, fabric.world_size)
    logbook.steps_ahead = min(gather(fabric, [ahead]))
    share = Share(args.batch_size, logbook.steps_ahead, fabric.global_rank, fabric.world_size)
    cache = None
    if args.target_cache:
        side = model.image_size
        cache = TargetCache(args.target_cache, target_key(plan, arguments, share, model.device), limit=1e9 * args.target_cache_gb,
                            shape=(model.channels, side, side), dtype=model.model.diffusion_model.dtype, device=model.device)
    batches = LookAhead(model, data, Texts(model, prefix), share, first_step=logbook.first_step, iterations=args.iterations,
                        with_names=plan.settings.train_method != "apl-released", cache=cache)
    names = dict.fromkeys(image.name for image in plan.identities)
    warn_of_cut_texts(model, [fill(template, name) for template in plan.templates for name in names], [prefix], what="prompts of S_ID")
    warn_of_cut_texts(model, [image.caption for image in plan.captions], [prefix], what="captions of S_Reg")
    batches.check(show_progress=fabric.is_global_zero)
    return batches


def describe(args: argparse.Namespace, plan: Plan) -> str:
    """The plan in a few lines."""
    names = {image.name for image in plan.identities}
    mix, steps = plan.mixture.mix, plan.settings
    prefix = args.initializer_words or args.init
    files = [path for path in (args.ckpt_path, args.vae_path, args.edited_weights) if path]
    lines = {
        "model": f"{' with '.join(map(str, files))} in {args.config_path}, on {args.devices}, {args.precision}",
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
    """File of the prefix after a step, embeddings/<prompt>-<step>.pt; of SDXL's two encoders, as .safetensors."""
    return args.embeddings_dir / f"{args.prompt}-{step}{'.safetensors' if has_two_encoders(args.config_path) else '.pt'}"


def _needed(args: argparse.Namespace, flag: str) -> Path:
    if getattr(args, flag) is None:
        raise UserError(f"--{flag} is missing, and --train_method {args.train_method} with --mix {args.mix:g} draws from it; "
                        "give it, or a --preset that has it")
    return getattr(args, flag)
