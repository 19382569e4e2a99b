"""A training run: its options, data, arguments and batches (paper section 4.1)."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from args.train_methods import ALTERNATING, MAP, ROBUST, TEXT
from ldm.apl.examples import Texts, TrainingSet
from ldm.apl.look_ahead import LookAhead, Share, TargetCache, steps_ahead
from ldm.apl.robust_tokens import WORD
from ldm.apl.text_objective import TextBatch, text_batches
from ldm.apl.trainer import Settings
from ldm.contents import digest, hashes_of
from ldm.data.benchmarks import fill, read_templates
from ldm.data.captions import CaptionImage, caption_images
from ldm.data.celebrities import kept_captions, read_kept_names, refuse_both
from ldm.data.identities import IdentityImage, Person, identity_images, read_people
from ldm.data.mixture import Mixture
from ldm.device import same_devices
from ldm.generation import warn_of_cut_texts
from ldm.left_out import LeftOut
from ldm.loading import ModelFiles, file_hash, has_two_encoders
from ldm.logbook import Logbook
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import INITIALIZATIONS, EmbeddingManager, Manager
from ldm.run_folder import versions
from ldm.sharing import Devices, gather
from ldm.util import UserError

OF_ATTACK = ("robust_form", "attack_vectors", "attack_steps", "attack_radius", "attack_rounds", "attack_names")
# Options on which the learned vectors depend. Files are compared by content.
LEARNED_FROM = ("train_method", "iterations", "lr", "lr_decay", "batch_size", "grad_accum", "num_nodes", "ddim_steps", "mix", "alpha",
                "placeholder", "num_vectors", "init", "initializer_words", "map_rank", "seed", "data_seed", "lookahead", "checkpointing",
                "compile", "cuda_graphs", "log_every", *OF_ATTACK)
WHERE_GIVEN = ("map_rank", *OF_ATTACK)  # of some methods only
Named = IdentityImage | Person
TOKEN_BATCH = 4  # samples per step of the alternating form's attack
TARGETS = 2  # version of the cached targets; raise it when this code computes others from the same arguments


@dataclass(frozen=True)
class TrainingOptions(Settings):
    """Options of a training, named like the flags of train.py."""

    files: ModelFiles  # of the frozen model
    preset: str
    prompt: str        # name of the run and of its prefix files
    out_dir: Path
    embeddings_dir: Path
    devices: str
    num_nodes: int
    precision: str
    seed: int
    # the prefix or the context map
    placeholder: str
    num_vectors: int
    init: str
    initializer_words: str | None
    map_rank: int | None
    # the attack of "apl-robust"
    robust_form: str | None
    attack_vectors: int | None
    attack_steps: int | None
    attack_radius: float | None
    attack_rounds: int | None
    attack_names: int | None
    # data
    people: Path | None
    identity_images: Path | None
    caption_images: Path | None
    keep_names: Path | None
    templates: Path | None
    n_identities: int | None
    mix: float
    ddim_steps: int
    data_seed: int
    # speed and memory
    lookahead: int | None
    target_cache: Path | None
    target_cache_gb: float
    checkpointing: bool
    compile: bool
    cuda_graphs: bool
    # the final table, whose time --dry_run estimates
    eval_names: int
    eval_samples: int
    eval_ddim_steps: int
    c2: bool

    @property
    def identity_share(self) -> float:
        """Probability that a sample is from S_ID: --mix, but 1 without L_Reg."""
        return 1.0 if self.train_method == "apl-no-reg" else self.mix

    @property
    def inner_steps(self) -> float:
        """Mean number of steps of the attack of "apl-robust" per sample, on one sample each; 0 for other methods."""
        steps = self.attack_steps or 0
        if self.robust_form == ALTERNATING:  # its steps have a third U-Net call, for the name
            return 1.5 * steps * TOKEN_BATCH * (self.attack_rounds or 0) * (self.attack_names or 0) / (self.iterations * self.batch_size)
        return self.identity_share / 2 * steps

    def prefix_path(self, step: int) -> Path:
        """File of a step, embeddings/<prompt>-<step>.pt; .safetensors for SDXL's two encoders and for a context map."""
        plain = self.train_method == MAP or has_two_encoders(self.files.config_path)
        return self.embeddings_dir / f"{self.prompt}-{step}{'.safetensors' if plain else '.pt'}"


@dataclass(frozen=True)
class TrainingRun:
    """Data of a run."""

    people: dict[str, Person]        # people in S_ID come first
    identities: Sequence[Named]  # S_ID; people for "apl-text", which needs no images
    captions: list[CaptionImage]     # S_Reg; the last half of them name people of S_keep, if there are any
    kept_names: list[str]            # S_keep
    templates: list[str]
    mixture: Mixture
    attacked: list[Person]           # for whom the alternating form of "apl-robust" learns tokens
    left_out: LeftOut                # by the readers of S_ID and S_Reg


def prepare_run(options: TrainingOptions) -> TrainingRun:
    """Read every list, but no image; UserError if one cannot be read, or a set that the mixture samples from is missing."""
    def needed(flag: str) -> Path:
        if getattr(options, flag) is None:
            raise UserError(f"--{flag} is missing, and --train_method {options.train_method} with --mix {options.mix:g} samples from it; "
                            "give it, or a --preset that has it")
        return getattr(options, flag)

    if options.train_method == ROBUST and has_two_encoders(options.files.config_path):
        raise UserError(f"--train_method {ROBUST} attacks one text encoder, and {options.files.config_path} has two, as SDXL; give another "
                        "model, or --train_method apl")
    mix, left_out = options.identity_share, LeftOut(strict=True)
    people = read_people(needed("people")) if mix > 0 or options.people else {}
    kept_names = read_kept_names(options.keep_names) if options.keep_names else []
    if kept_names and not 0 < mix < 1:
        raise UserError(f"--keep_names has no use with --mix {mix:g}, which samples from one set alone; leave out one of them")
    text = options.train_method == TEXT
    images = identity_images(needed("identity_images"), people, left_out, keep=bool(kept_names)) if mix > 0 and not text else []
    identities: Sequence[Named] = [image for image in images if people[image.name].group == "train"]
    if text:
        identities = _people_of_texts(people, options.people)
    if options.n_identities and identities:
        identities = of_first_people(identities, people, options.n_identities)
    shown = {image.name for image in identities}
    people = dict(sorted(people.items(), key=lambda item: item[0] not in shown))  # as the final table orders them
    captions = caption_images(needed("caption_images"), left_out) if mix < 1 else []
    templates = read_templates(options.templates) if options.templates else ["{}"]
    refuse_both(shown, kept_names, options.keep_names)
    if kept_names:
        captions += kept_captions(kept_names, images, templates, len(captions))
    attacked = []
    if options.robust_form == ALTERNATING:
        of_attacked = of_first_people(identities, people, options.attack_names or 0, "attack_names")
        attacked = [people[name] for name in dict.fromkeys(image.name for image in of_attacked)]
    numbers = tuple(number for number, image in enumerate(identities) if people[image.name] in attacked)
    mixture = Mixture(options.data_seed, len(identities), len(captions), len(templates), options.ddim_steps or 1, mix,  # texts have no t
                      attacked=numbers)
    return TrainingRun(people, identities, captions, kept_names, templates, mixture, attacked, left_out)


def _people_of_texts(people: dict[str, Person], path: Path | None) -> Sequence[Person]:
    """S_ID as texts; UserError if somebody lacks attributes."""
    identities = [person for person in people.values() if person.group == "train"]
    if without := [person.name for person in identities if not person.attributes]:
        raise UserError(f"{path} has no attributes (c2) for {', '.join(without[:3])}, and --train_method {TEXT} learns from them; add some")
    return identities


def of_first_people(images: Sequence[Named], people: dict[str, Person], count: int, flag: str = "n_identities") -> Sequence[Named]:
    """Images of the first `count` people of the list that S_ID shows (the paper's Figure 8); UserError if it shows fewer."""
    shown = {image.name for image in images}
    chosen = [name for name in people if name in shown][:count]
    if len(chosen) < count:
        raise UserError(f"S_ID shows {len(chosen)} people where --{flag} asks for {count}; give a smaller number")
    return [image for image in images if image.name in chosen]


def arguments_of(options: TrainingOptions, run: TrainingRun, precision: str, hashes: Path | None = None) -> dict[str, Any]:
    """Everything that determines the learned vectors, as JSON values; `hashes` is the cache file of `hashes_of`."""
    images = [image for image in (*run.identities, *run.captions) if not isinstance(image, Person) and options.train_method != TEXT]
    texts = [*((image.name, image.attributes) for image in run.identities), *(image.caption for image in run.captions)]
    is_file = options.init not in (None, *INITIALIZATIONS) and Path(options.init).is_file()
    # Left out where they are None, so that files of the other methods keep their bytes.
    return {name: getattr(options, name) for name in LEARNED_FROM
            if name not in WHERE_GIVEN or getattr(options, name) is not None} | {
        "init": file_hash(options.init) if is_file else options.init, "devices": same_devices(options.devices), "precision": precision,
        "images": digest(hashes_of((image.source for image in images), hashes)), "texts": digest(texts, run.templates),
        "config": file_hash(options.files.config_path), "base_model": options.files.hash()}


def target_key(options: TrainingOptions, run: TrainingRun, arguments: dict[str, Any], share: Share, device: torch.device) -> dict[str, Any]:
    """Cache key of the targets that one device computes; equal keys imply equal bits."""
    computed_by = (torch.cuda.get_device_name(device) if device.type == "cuda" else
                   f"CPU with {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")
    mixture = {name: value for name, value in asdict(run.mixture).items() if value != ()}
    return {name: arguments[name] for name in ("base_model", "config", "precision", "images", "texts", "compile")} | {
        "mixture": mixture, "share": asdict(share), "with_names": options.train_method != "apl-released",
        "computed_by": computed_by, "versions": versions(), "code": TARGETS}


def batches_of_texts(options: TrainingOptions, run: TrainingRun, fabric: Devices, model: LatentDiffusion, prefix: EmbeddingManager,
                     logbook: Logbook) -> Iterable[TextBatch]:
    """The texts of the remaining steps, for "apl-text"."""
    data = TrainingSet(model, run.identities, run.captions, run.templates, run.mixture)
    _refuse_different_states(options, fabric, logbook)
    _warn_of_cut_texts(model, run, prefix)
    share = Share(options.batch_size, 1, fabric.global_rank, fabric.world_size)
    return text_batches(model, prefix, data, share, first_step=logbook.first_step, iterations=options.iterations)


def look_ahead(options: TrainingOptions, run: TrainingRun, arguments: dict[str, Any], fabric: Devices, model: LatentDiffusion,
               prefix: Manager, logbook: Logbook) -> LookAhead:
    """The batches of the remaining steps, after all their images have been checked."""
    token = " ".join([WORD] * (options.attack_vectors or 0)) if run.attacked else None
    data = TrainingSet(model, run.identities, run.captions, run.templates, run.mixture, token)
    _refuse_different_states(options, fabric, logbook)
    ahead = logbook.steps_ahead or options.lookahead or steps_ahead(model, options.batch_size, fabric.world_size)
    logbook.steps_ahead = min(gather(fabric, [ahead]))
    share = Share(options.batch_size, logbook.steps_ahead, fabric.global_rank, fabric.world_size)
    cache = None
    if options.target_cache:
        cache = TargetCache(options.target_cache, target_key(options, run, arguments, share, model.device),
                            limit=1e9 * options.target_cache_gb, dtype=model.model.diffusion_model.dtype, device=model.device)
    batches = LookAhead(model, data, Texts(model, prefix), share, first_step=logbook.first_step, iterations=options.iterations,
                        with_names=options.train_method != "apl-released", cache=cache)
    _warn_of_cut_texts(model, run, prefix)
    batches.check(show_progress=fabric.is_global_zero)
    return batches


def _refuse_different_states(options: TrainingOptions, fabric: Devices, logbook: Logbook) -> None:
    if len(set(gather(fabric, [logbook.first_step]))) > 1:
        raise UserError(f"the processes of this run found different training states; --out_dir {options.out_dir} must be a folder that "
                        "all machines share")


def _warn_of_cut_texts(model: LatentDiffusion, run: TrainingRun, prefix: Manager) -> None:
    names = dict.fromkeys(image.name for image in run.identities)
    warn_of_cut_texts(model, [fill(template, name) for template in run.templates for name in names], [prefix], what="prompts of S_ID")
    warn_of_cut_texts(model, [image.caption for image in run.captions], [prefix], what="captions of S_Reg")


def describe(options: TrainingOptions, run: TrainingRun) -> str:
    """Describe the run in a few lines."""
    names, mix, files = {image.name for image in run.identities}, run.mixture.mix, options.files
    if options.train_method == MAP:
        what = "map"
        learned = f"of the context, {f'rank {options.map_rank}' if options.map_rank else 'full'}, started from the identity"
    else:
        what = "prefix"
        learned = (f"{options.num_vectors} vectors for the word '{options.placeholder}', started from "
                   f"{options.initializer_words or options.init}")
    how = f"inner steps, {'anywhere' if options.attack_radius is None else f'within {options.attack_radius:g} of a token'}"
    if options.robust_form == ALTERNATING:
        how = f"steps per token of {options.attack_names} people in each of {options.attack_rounds} rounds, in place of the name"
    attack = {"attack": f"{options.attack_vectors} vectors behind the prefix in half of S_ID, {options.attack_steps} {how}"
                        + f"; per sample {2 * options.inner_steps:g} U-Net calls in addition to {3 + mix:g}, with backward passes"
              } if options.train_method == ROBUST else {}
    text, images = options.train_method == TEXT, f"{len(run.identities)} images of "
    timesteps = "" if text else f"; t from {run.mixture.bins} bins"
    lines = {
        "model": f"{' with '.join(str(path) for path in (files.ckpt_path, files.vae_path, files.edited_weights) if path)} in "
                 f"{files.config_path}, on {options.devices}, {options.precision}",
        what: f"{learned}, seed {options.seed}",
        "S_ID": f"{images * (not text)}{len(names)} people, {len(run.templates)} templates, sampled with probability {mix:g}",
        "S_Reg": f"{len(run.captions)} images with captions"
                 + f", half of which name the {len(run.kept_names)} people of S_keep" * bool(run.kept_names)
                 + f", sampled with probability {1 - mix:g}",
        "training": f"{options.train_method}, alpha {options.alpha:g}; {options.iterations} steps of {options.batch_size} samples, "
                    f"Adam with learning rate {options.lr:g}"
                    + f", to 0 over the last {options.lr_decay:.0%}" * (options.lr_decay > 0) + timesteps,
        **attack,
        "maps" if what == "map" else "prefixes": f"{options.prefix_path(options.iterations)}, and every {options.save_every} steps",
        "the rest": f"{options.out_dir}",
    }
    return "\n".join(f"{name:9} {text}" for name, text in lines.items())
