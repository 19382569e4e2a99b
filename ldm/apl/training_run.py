"""A training run prepared from the flags of train.py: data, settings and batches (paper section 4.1)."""

import argparse
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from args.train_methods import MAP
from ldm.apl.examples import Texts, TrainingSet
from ldm.apl.look_ahead import LookAhead, Share, steps_ahead
from ldm.apl.target_cache import TargetCache
from ldm.apl.trainer import Settings
from ldm.contents import digest, hashes_of
from ldm.data.captions import CaptionImage, caption_images
from ldm.data.identities import IdentityImage, Person, identity_images, read_people
from ldm.data.mixture import Mixture
from ldm.data.prompts import fill, read_templates
from ldm.device import same_devices
from ldm.generation import warn_of_cut_texts
from ldm.left_out import LeftOut
from ldm.loading import ModelFiles, file_hash, has_two_encoders
from ldm.logbook import Logbook
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import INITIALIZATIONS, Manager
from ldm.run_folder import versions, write_json
from ldm.sharing import Devices, gather
from ldm.util import UserError

# Flags on which the learned vectors depend. Files behind path flags are compared by content.
LEARNED_FROM = ("train_method", "iterations", "lr", "lr_decay", "batch_size", "grad_accum", "num_nodes", "ddim_steps", "mix", "alpha",
                "placeholder", "num_vectors", "init", "initializer_words", "map_rank", "seed", "data_seed", "lookahead", "checkpointing",
                "compile", "cuda_graphs", "log_every")
ONLY_WHERE_GIVEN = ("map_rank",)  # left out where None, so that files of the other methods keep their bytes
TARGETS = 2  # version of the cached targets; raise it when this code computes others from the same arguments


@dataclass(frozen=True)
class TrainingRun:
    """Data and settings of a run."""

    people: dict[str, Person]        # people in S_ID come first
    identities: list[IdentityImage]  # S_ID
    captions: list[CaptionImage]     # S_Reg
    templates: list[str]
    mixture: Mixture
    settings: Settings
    left_out: LeftOut = field(default_factory=LeftOut)  # by the readers of S_ID and S_Reg


def prepare_run(args: argparse.Namespace) -> TrainingRun:
    """Prepare a run from checked flags; reads every list, but no image.

    Raises:
        UserError: a list cannot be read, or a set that the mixture samples from is missing.
    """
    mix, left_out = identity_share(args), LeftOut(strict=True)
    people = read_people(_needed(args, "people")) if mix > 0 or args.people else {}
    identities = identity_images(_needed(args, "identity_images"), people, left_out) if mix > 0 else []
    if args.n_identities and identities:
        identities = of_first_people(identities, people, args.n_identities)
    shown = {image.name for image in identities}
    people = dict(sorted(people.items(), key=lambda item: item[0] not in shown))  # as the final table orders them
    captions = caption_images(_needed(args, "caption_images"), left_out) if mix < 1 else []
    templates = read_templates(args.templates) if args.templates else ["{}"]
    mixture = Mixture(args.data_seed, len(identities), len(captions), len(templates), args.ddim_steps, mix)
    settings = Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
    return TrainingRun(people, identities, captions, templates, mixture, settings, left_out)


def of_first_people(images: list[IdentityImage], people: dict[str, Person], count: int) -> list[IdentityImage]:
    """Images of the first `count` people in S_ID, in the order of the list of people (the paper's Figure 8).

    Raises:
        UserError: the images show fewer people.
    """
    shown = {image.name for image in images}
    chosen = [name for name in people if name in shown][:count]
    if len(chosen) < count:
        raise UserError(f"S_ID shows {len(chosen)} people where --n_identities asks for {count}; give a smaller number")
    return [image for image in images if image.name in chosen]


def identity_share(args: argparse.Namespace) -> float:
    """Probability that a sample is from S_ID: --mix, but 1 without L_Reg."""
    return 1.0 if args.train_method == "apl-no-reg" else args.mix


def arguments_of(args: argparse.Namespace, run: TrainingRun, precision: str, hashes: Path | None = None) -> dict[str, Any]:
    """Everything that determines the learned vectors, as JSON values: flags, and hashes of images, texts, config and checkpoint.

    Args:
        hashes: cache file of `hashes_of`.
    """
    images: list[IdentityImage | CaptionImage] = [*run.identities, *run.captions]
    texts = [*((image.name, image.attributes) for image in run.identities), *(image.caption for image in run.captions)]
    init = file_hash(args.init) if args.init not in (None, *INITIALIZATIONS) and Path(args.init).is_file() else args.init
    flags = {name: getattr(args, name) for name in LEARNED_FROM}
    return {name: value for name, value in flags.items() if value is not None or name not in ONLY_WHERE_GIVEN} | {
        "init": init, "devices": same_devices(args.devices), "precision": precision,
        "images": digest(hashes_of((image.source for image in images), hashes)), "texts": digest(texts, run.templates),
        "config": file_hash(args.config_path), "base_model": ModelFiles.of(args).hash()}


def target_key(run: TrainingRun, arguments: dict[str, Any], share: Share, device: torch.device) -> dict[str, Any]:
    """Cache key of the targets that one device computes; equal keys imply equal bits."""
    computed_by = (torch.cuda.get_device_name(device) if device.type == "cuda" else
                   f"CPU with {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")
    return {name: arguments[name] for name in ("base_model", "config", "precision", "images", "texts", "compile")} | {
        "mixture": asdict(run.mixture), "share": asdict(share), "with_names": run.settings.train_method != "apl-released",
        "computed_by": computed_by, "versions": versions(), "code": TARGETS}


def look_ahead(args: argparse.Namespace, run: TrainingRun, arguments: dict[str, Any], fabric: Devices, model: LatentDiffusion,
               prefix: Manager, logbook: Logbook) -> LookAhead:
    """The batches of the remaining steps, after all their images have been checked."""
    data = TrainingSet(model, run.identities, run.captions, run.templates, run.mixture)
    if len(set(gather(fabric, [logbook.first_step]))) > 1:
        raise UserError(f"the processes of this run found different training states; --out_dir {args.out_dir} must be a folder that "
                        "all machines share")
    ahead = logbook.steps_ahead or args.lookahead or steps_ahead(model, args.batch_size, fabric.world_size)
    logbook.steps_ahead = min(gather(fabric, [ahead]))
    share = Share(args.batch_size, logbook.steps_ahead, fabric.global_rank, fabric.world_size)
    cache = None
    if args.target_cache:
        side = model.image_size
        cache = TargetCache(args.target_cache, target_key(run, arguments, share, model.device), limit=1e9 * args.target_cache_gb,
                            shape=(model.channels, side, side), dtype=model.model.diffusion_model.dtype, device=model.device)
    batches = LookAhead(model, data, Texts(model, prefix), share, first_step=logbook.first_step, iterations=args.iterations,
                        with_names=run.settings.train_method != "apl-released", cache=cache)
    names = dict.fromkeys(image.name for image in run.identities)
    warn_of_cut_texts(model, [fill(template, name) for template in run.templates for name in names], [prefix], what="prompts of S_ID")
    warn_of_cut_texts(model, [image.caption for image in run.captions], [prefix], what="captions of S_Reg")
    batches.check(show_progress=fabric.is_global_zero)
    return batches


def describe(args: argparse.Namespace, run: TrainingRun) -> str:
    """Describe the run in a few lines."""
    names = {image.name for image in run.identities}
    mix, steps = run.mixture.mix, run.settings
    what = "map" if args.train_method == MAP else "prefix"
    files = [path for path in (args.ckpt_path, args.vae_path, args.edited_weights) if path]
    lines = {
        "model": f"{' with '.join(map(str, files))} in {args.config_path}, on {args.devices}, {args.precision}",
        what: f"{learned(args)}, seed {args.seed}",
        "S_ID": f"{len(run.identities)} images of {len(names)} people, {len(run.templates)} templates, sampled with "
                f"probability {mix:g}",
        "S_Reg": f"{len(run.captions)} images with captions, sampled with probability {1 - mix:g}",
        "training": f"{steps.train_method}, alpha {steps.alpha:g}; {steps.iterations} steps of {steps.batch_size} samples, "
                    f"Adam with learning rate {steps.lr:g}" + f", to 0 over the last {steps.lr_decay:.0%}" * (steps.lr_decay > 0)
                    + f"; t from {run.mixture.bins} bins",
        "maps" if what == "map" else "prefixes": f"{prefix_path(args, steps.iterations)}, and every {steps.save_every} steps",
        "the rest": f"{args.out_dir}",
    }
    return "\n".join(f"{name:9} {text}" for name, text in lines.items())


def learned(args: argparse.Namespace) -> str:
    """Describe what the run learns: the vectors of a prefix, or a context map."""
    if args.train_method == MAP:
        return f"of the context, {f'rank {args.map_rank}' if args.map_rank else 'full'}, started from the identity"
    return f"{args.num_vectors} vectors for the word '{args.placeholder}', started from {args.initializer_words or args.init}"


def write_arguments(args: argparse.Namespace, arguments: dict[str, Any]) -> None:
    """Write all flags, `arguments` and versions to <prompt>.json beside the prefixes, and to --out_dir."""
    record = {"arguments": vars(args), "learned_from": arguments, "versions": versions()}
    for path in (args.embeddings_dir / f"{args.prompt}.json", args.out_dir / "arguments.json"):
        write_json(path, record)


def prefix_path(args: argparse.Namespace, step: int) -> Path:
    """File of a step, embeddings/<prompt>-<step>.pt; .safetensors for SDXL's two encoders and for a context map."""
    plain = args.train_method == MAP or has_two_encoders(args.config_path)
    return args.embeddings_dir / f"{args.prompt}-{step}{'.safetensors' if plain else '.pt'}"


def _needed(args: argparse.Namespace, flag: str) -> Path:
    if getattr(args, flag) is None:
        raise UserError(f"--{flag} is missing, and --train_method {args.train_method} with --mix {args.mix:g} samples from it; "
                        "give it, or a --preset that has it")
    return getattr(args, flag)
