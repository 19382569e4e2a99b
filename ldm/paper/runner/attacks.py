"""Attacks that teach the model new people (paper section 4.4): one piece of work per person and seed, from photos to cosines.

    <out_dir>/attacks/<hash of the settings>/seed-<n>/<person>-<hash of the photos>/
        photos/                                     training photos of the person
        <attack>/, <attack>-through-prefix/         --out_dir of train.py; checkpoints are deleted once their images exist
        pictures/<curve>/<iteration>/<sample>.png   a curve is "dreambooth, without", "dreambooth, with", ...
        faces.json                                  one row per image; written last
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from args.common import options_of
from args.paper_args import portrait_arguments
from args.train_args import parse_train_args
from ldm.contents import digest_of
from ldm.edited_weights import edited
from ldm.evaluation.gallery import make_gallery
from ldm.evaluation.id_acc import image_scores, load_gallery
from ldm.evaluation.quality import score_files
from ldm.experiments.identity_table import IdentityOptions, identity_scorer
from ldm.experiments.new_people import NewPerson, read_new_people
from ldm.experiments.pipeline import Pipeline, Shot
from ldm.experiments.variants import ImageSettings, checkpoint_weights, load_variants
from ldm.images import ImageWriter
from ldm.loading import ModelFiles, has_two_encoders
from ldm.modules.context_map import is_map_file
from ldm.modules.embedding_file import read_embedding_file
from ldm.paper.runner.evaluations import named_as_before
from ldm.paper.runner.processes import Tools
from ldm.paper.runner.trainings import TRAIN, Training, Transfer, counted, file_of, made_for, run_script
from ldm.run_folder import read_json, safe_name, write_json
from ldm.sharing import OneDevice
from ldm.util import UserError, first_line

WITHOUT, WITH = "without", "with"  # the prefix
PRIOR = "drawn-*.pt"               # latents of the class's images in train.py's --out_dir, the same for every person


@dataclass(frozen=True)
class AttackPlan:
    """Settings of configs/paper/figure5.yaml, overridden by flags."""

    title: str
    section: str
    remark: str
    n_people: int
    n_photos: int
    n_samples: int
    iterations: int
    every: int
    prompt: str
    token: str
    name: str
    attacks: Mapping[str, Mapping[str, Any]]

    @property
    def checkpoints(self) -> list[int]:
        """Iterations at which an attack is evaluated."""
        return list(range(self.every, self.iterations + 1, self.every))

    @property
    def subject(self) -> str:
        """Prompt of every image."""
        return self.prompt.replace("{name}", self.name)

    def flags(self, attack: str, preset: str, seed: int, photos: Path) -> list[str]:
        """Flags of train.py for an attack on one person."""
        typed = {**self.attacks[attack]["train"], "preset": preset, "token": self.token, "iterations": self.iterations, "seed": seed,
                 "save_every": self.every, "prompt": attack, "photos": photos}
        return [word for flag, value in typed.items() for word in (f"--{flag}", str(value))]


def read_plan(config: Path, **given: int | None) -> AttackPlan:
    """Read the plan of a YAML file; values in `given` that are not None override it. UserError if the file is not a valid plan."""
    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8"))
        plan = AttackPlan(**values | {name: value for name, value in given.items() if value is not None})
        if plan.checkpoints[-1:] != [plan.iterations] or not all(settings["train"] for settings in plan.attacks.values()):
            raise TypeError("'iterations' is not a multiple of 'every', or an attack has no 'train'")
        return plan
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"{config} is not a plan of Figure 5 ({first_line(error)}); restore it from the repository") from None


@dataclass(frozen=True)
class AttackOptions:
    """Flags of python -m ldm.paper figure5."""

    preset: str
    photos: Path
    out_dir: Path
    keep_checkpoints: bool = False  # after their images are generated
    embedding: Path | None = None   # attacked prefix; None: Table 1's prefix of each seed
    n_people: int | None = None     # these override the plan's
    n_photos: int | None = None
    n_samples: int | None = None


@dataclass(frozen=True)
class Attack:
    """All attacks on one person with one seed."""

    folder: Path
    plan: AttackPlan
    options: AttackOptions
    name: str
    person: NewPerson
    attacked: Training | Path   # training of the attacked prefix, or its file
    seed: int
    files: ModelFiles
    precision: str
    portraits: IdentityOptions  # a preset's flags of test_id.py, for images and scores

    @property
    def needs(self) -> Sequence[Training | Transfer]:
        return made_for(self.attacked)

    @property
    def size(self) -> float:
        return sum(5 * self.plan.iterations * (1 + bool(one.get("learned_through_prefix"))) for one in self.plan.attacks.values())

    def is_done(self) -> bool:
        return (self.folder / "faces.json").exists()

    def make(self, tools: Tools) -> None:
        """Train, generate and recognize what is missing."""
        began = time.monotonic()
        embedding = file_of(self.attacked)
        analyzer = self.portraits.analyzer(tools.device)
        make_gallery({self.name: self.person.folder}, analyzer, self.folder, first_photo=len(self.person.learned))  # of held-out photos
        gallery = load_gallery(self.folder / "gallery.npz", [self.name])
        scorer = identity_scorer(analyzer, gallery)
        for attack, settings in self.plan.attacks.items():
            if settings.get("learned_through_prefix"):
                self._learn(attack, self.folder / attack, [WITHOUT], embedding, tools)
                self._learn(attack, self.folder / f"{attack}-through-prefix", [WITH], embedding, tools)
            else:
                self._learn(attack, self.folder / attack, [WITHOUT, WITH], embedding, tools)
        rows = []
        for curve, iteration, paths in self.images():
            faces = score_files(paths, [self.name] * len(paths), scorer)["face"]
            scores = image_scores(faces, [self.name] * len(paths), [str(path.relative_to(self.folder)) for path in paths], gallery)
            rows += [{"curve": curve, "iteration": iteration, **row} for row in scores]
        write_json(self.folder / "faces.json", {"seconds": time.monotonic() - began, "faces": rows})

    def images(self) -> list[tuple[str, int, list[Path]]]:
        """Curve, iteration and image files of every point; iteration 0 is the model before the attack."""
        return [(f"{attack}, {label}", iteration, self._paths(attack, label, iteration)) for attack in self.plan.attacks
                for label in (WITHOUT, WITH) for iteration in (0, *self.plan.checkpoints)]

    @cached_property
    def found(self) -> Mapping[str, Any]:
        """"faces", rows of `image_scores` with curve and iteration, and "seconds", those of the last process."""
        return read_json(self.folder / "faces.json")

    def _learn(self, attack: str, folder: Path, labels: Sequence[str], embedding: Path, tools: Tools) -> None:
        """Train in `folder`, through the prefix if `labels` are [WITH], and generate the images of these labels; only what is missing."""
        missing = [iteration for iteration in (0, *self.plan.checkpoints)
                   if not all(path.exists() for label in labels for path in self._paths(attack, label, iteration))]
        if missing:
            self._train(attack, folder, [iteration for iteration in missing if iteration], embedding if labels == [WITH] else None, tools)
            self._generate(attack, folder, missing, labels, embedding, tools)
        if not self.options.keep_checkpoints:  # including the state of train.py; log, arguments and cost are kept
            for path in (*folder.glob(f"{attack}-*.safetensors"), *folder.glob(f"{attack}-*.pt"), folder / "state.pt"):
                path.unlink(missing_ok=True)

    def _train(self, attack: str, folder: Path, asked_for: Sequence[int], through: Path | None, tools: Tools) -> None:
        """Run or resume the training with checkpoints of these iterations; reuses the class's images of other people's attacks."""
        finished = folder / "cost.json"
        if finished.exists() and not all(_checkpoint(folder, attack, iteration) for iteration in asked_for):
            shutil.rmtree(folder)  # its checkpoints are gone
        if not finished.exists():
            self.person.copy_learned(self.folder / "photos")
            folder.mkdir(parents=True, exist_ok=True)
            for prior in self.folder.parent.glob(PRIOR):
                shutil.copy2(prior, folder)
            flags = self.plan.flags(attack, self.options.preset, self.seed, self.folder / "photos")
            flags += ["--embedding", str(through)] if through else []
            tools.release()  # DreamBooth trains whole U-Nets
            run_script([str(TRAIN), "--out_dir", str(folder), "--devices", tools.place.devices, *flags], folder / "train.log", tools.place,
                       f"the attack in {folder}")
        for prior in folder.glob(PRIOR):
            prior.replace(self.folder.parent / prior.name)

    def _generate(self, attack: str, folder: Path, missing: Sequence[int], labels: Sequence[str], embedding: Path, tools: Tools) -> None:
        """Generate the missing images of the iterations `missing`."""
        files, precision, options = self.files, tools.precision(self.precision), self.portraits
        model = tools.model(files, precision)
        pipeline = Pipeline(OneDevice(), model, ImageSettings.of(files, options, precision, self.plan.prompt), options.batch_size)
        variants = dict(zip((WITHOUT, WITH), load_variants(model, [embedding], files, [WITH]), strict=True))
        for iteration in missing:
            checkpoint = _checkpoint(folder, attack, iteration)
            if iteration and checkpoint is None:  # None would mean the model before the attack
                raise UserError(f"{folder} has no checkpoint of iteration {iteration}; delete the folder, and the same command trains it "
                                "again")
            weights = checkpoint_weights(model, checkpoint, self.plan.token, files.ckpt_path) if checkpoint else {}
            with edited(model, weights), ImageWriter() as writer:
                for label in labels:
                    paths = self._paths(attack, label, iteration)
                    shots = [Shot(self.plan.subject, sample, self.name, path) for sample, path in enumerate(paths)]
                    for _ in pipeline.generate(variants[label], shots, writer):
                        pass

    def _paths(self, attack: str, label: str, iteration: int) -> list[Path]:
        folder = self.folder / "pictures" / f"{attack}, {label}" / str(iteration)
        return [folder / f"{sample}.png" for sample in range(self.plan.n_samples)]


def attacks(plan: AttackPlan, options: AttackOptions, attacked: Training | Path, seed: int) -> list[Attack]:
    """Attacks of a seed, one per person; `attacked` is the training of the attacked prefix, or its file.

    Raises:
        UserError: there are too few people or photos, the file is not a prefix, or the model has two text encoders, for which a token
            cannot be learned.
    """
    people = read_new_people(options.photos, plan.n_people, plan.n_photos, seed)
    portraits = portrait_arguments(options.preset)
    if has_two_encoders(portraits.config_path):
        raise UserError(f"figure5 teaches tokens to one text encoder, and {portraits.config_path} has two; give another --preset")
    if isinstance(attacked, Path) and not is_map_file(attacked):
        read_embedding_file(attacked)
    values = asdict(plan).items()
    settings: dict[str, object] = {key: value for key, value in values if key not in ("n_people", "title", "section", "remark")}
    for attack in plan.attacks:
        learned = counted(vars(parse_train_args(plan.flags(attack, options.preset, seed, options.photos))))
        settings |= {f"{attack}.{flag}": value for flag, value in learned.items() if flag not in ("photos", "seed")}
    settings |= {f"portraits.{flag}": value for flag, value in counted(named_as_before(vars(portraits))).items()}
    settings["prefix"] = attacked.folder.name if isinstance(attacked, Training) else attacked
    place = options.out_dir / "attacks" / digest_of(settings) / f"seed-{seed}"
    return [Attack(place / f"{safe_name(name)}-{person.fingerprint()}", plan, options, name, person, attacked, seed,
                   options_of(ModelFiles, portraits), portraits.precision, options_of(IdentityOptions, portraits))
            for name, person in people.items()]


def _checkpoint(folder: Path, attack: str, iteration: int) -> Path | None:
    """File of an iteration's edited weights or token vector; None if it does not exist."""
    return next((path for suffix in (".safetensors", ".pt") if (path := folder / f"{attack}-{iteration}{suffix}").exists()), None)
