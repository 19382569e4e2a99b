"""Attacks on a prefix: one piece of work per person and attack, which needs the piece of the person without an attack.

    <out_dir>/adversary/<hash of the settings>/<person>/none/                 photos of the attacker, images without an attack
    <out_dir>/adversary/<hash of the settings>/<person>/<attack>-<hash>/      see ldm/experiments/adversary.py
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from args.paths import found
from ldm.attacks.service import Service
from ldm.contents import digest_of
from ldm.data.identities import GROUPS, Person, read_people
from ldm.experiments.adversary import AttackSettings, Examiner, Trial
from ldm.experiments.variants import load_variants
from ldm.loading import has_two_encoders
from ldm.paper.config import of_preset, slug
from ldm.paper.runner.evaluations import PartFlags, part_flags
from ldm.paper.runner.processes import Tools
from ldm.paper.runner.trainings import Training, Transfer, file_of, made_for, training
from ldm.run_folder import read_json, safe_name
from ldm.util import UserError, first_line

KIND = "attacks"  # of such a YAML file
ARMS = 3          # attack, random, ceiling
BARS, GRID = "bars", "grid"
_examiners: dict[str, Examiner] = {}  # the last one, which successive pieces share


@dataclass(frozen=True)
class AttackedPrefix:
    """A prefix under attack: the file `result`, or the result of a training; with neither, Table 1's prefix of seed 0."""

    name: str
    train: Mapping[str, Any] = field(default_factory=dict)  # flags of train.py
    result: str | None = None
    attacks: Sequence[str] | None = None                    # names of the attacks on it; None: all


@dataclass(frozen=True)
class AdversaryPlan:
    """Settings of configs/paper/attacks.yaml on a preset."""

    title: str
    remark: str
    group: str
    n_people: int
    n_samples: int
    prompt: str
    far: float
    photos: int
    attacks: Sequence[AttackSettings]
    prefixes: Sequence[AttackedPrefix]
    figure: str = BARS  # or GRID, prefixes by attacks


def read_adversary_plan(path: Path, preset: str) -> AdversaryPlan:
    """The plan of a YAML file on a preset; UserError if the file is not a valid plan."""
    try:
        values = of_preset(yaml.safe_load(path.read_text(encoding="utf-8")), preset)
        values.pop("kind")
        attacks = [AttackSettings.of(of_preset(entry, preset), str(path)) for entry in values.pop("attacks")]
        entries = [of_preset(entry, preset) for entry in values.pop("prefixes")]
        prefixes = [AttackedPrefix(**entry | {"train": of_preset(entry.get("train", {}), preset)}) for entry in entries]
        plan = AdversaryPlan(attacks=attacks, prefixes=prefixes, **values)
        known = {attack.name for attack in attacks}
        if unknown := {name for prefix in prefixes for name in prefix.attacks or ()} - known:
            raise ValueError(f"there is no attack '{min(unknown)}'")
        if len({prefix.name for prefix in prefixes}) < len(prefixes) or not prefixes or [] in [prefix.attacks for prefix in prefixes]:
            raise ValueError("there is a prefix, all have different names, and each has an attack")
        if plan.figure not in (BARS, GRID):
            raise ValueError("figure is bars or grid")
        if plan.group not in GROUPS or "{name}" not in plan.prompt or min(plan.n_people, plan.n_samples, plan.photos) < 1:
            raise ValueError("group is train or test, prompt has {name}, and the numbers are at least 1")
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"{path} is no plan of attacks ({first_line(error)}); give the keys of configs/paper/attacks.yaml") from None
    names = [slug(attack.name) for attack in attacks]
    if len({*names, "none"}) <= len(names):
        raise UserError(f"{path} has two attacks of one name, or one called 'none'; rename one")
    return plan


@dataclass(frozen=True)
class WithoutAttack:
    """The photos of one person that the attacker has, and images of the name without an attack."""

    folder: Path
    plan: AdversaryPlan
    flags: PartFlags
    person: Person
    prefix: Training | Path
    everybody: Sequence[str]  # attacked people, who must be in the gallery

    @property
    def needs(self) -> Sequence[Training | Transfer]:
        return made_for(self.prefix)

    @property
    def size(self) -> float:
        return self._calls(self.plan.photos + 2 * self.plan.n_samples)

    def is_done(self) -> bool:
        return (self.folder / "faces.json").exists()

    def make(self, tools: Tools) -> None:
        """Generate and recognize."""
        self.trial(tools).without_attack(self.folder, self.plan.photos)

    @cached_property
    def found(self) -> Mapping[str, Any]:
        """Content of faces.json; UserError if it is damaged."""
        return read_json(self.folder / "faces.json", {"faces", "forward", "backward", "seconds"})

    def trial(self, tools: Tools) -> Trial:
        """The person behind the prefix."""
        flags, options, plan = self.flags, self.flags.options, self.plan
        model = tools.model(flags.files, flags.precision)
        key = repr((options, self.everybody, plan.far))
        if key not in _examiners:
            _examiners.clear()
            _examiners[key] = Examiner(options, self.everybody, plan.far, options.clip_model, tools.device)
        manager = load_variants(model, [file_of(self.prefix)], flags.files)[1].manager
        if manager is None:
            raise UserError(f"{file_of(self.prefix)} holds edited weights, and attacks are for a prefix; give one with --embedding")
        return Trial(self.person, Service(model, manager), _examiners[key], plan.prompt, plan.n_samples, options.ddim_steps, options.scale,
                     options.seed)

    def _calls(self, images: int) -> float:
        return 2 * self.flags.options.ddim_steps * images


@dataclass(frozen=True)
class PersonAttack:
    """One attack on one person."""

    folder: Path
    attack: AttackSettings
    without: WithoutAttack

    @property
    def needs(self) -> Sequence[WithoutAttack]:
        return [self.without]

    @property
    def size(self) -> float:
        return expected_calls(self.attack, self.without.plan.n_samples, 2 * self.without.flags.options.ddim_steps)

    def is_done(self) -> bool:
        return (self.folder / "faces.json").exists()

    def make(self, tools: Tools) -> None:
        """Attack, generate and recognize."""
        self.without.trial(tools).attack(self.attack, self.without.folder / "photos", self.folder)

    @cached_property
    def found(self) -> Mapping[str, Any]:
        """Content of faces.json; UserError if it is damaged."""
        return read_json(self.folder / "faces.json", {"faces", "forward", "backward", "seconds"})


def expected_calls(attack: AttackSettings, n_samples: int, image: int) -> float:
    """Approximate number of U-Net evaluations of an attack on one person and of its images, each of `image` evaluations."""
    own = attack.settings
    judged = image * attack.knows_prefix
    searched = {"unlearn_diff_atk": lambda: own["timesteps"] * (2 * own["updates"] + judged),
                "p4d": lambda: own["iterations"] * (3 + judged / own["judge_every"]),
                "concept_inversion": lambda: own["iterations"] * own["batch_size"] * (3 - own["from_photos"])}
    images = {"paraphrases": 28 * 2, "arithmetic": 9 * 2 * 1.2}.get(attack.method, ARMS)
    return searched.get(attack.method, lambda: 0.0)() + images * n_samples * image


def adversary(path: Path, preset: str, out_dir: Path, embedding: Path | None) -> tuple[AdversaryPlan, dict[str, list[list[PersonAttack]]]]:
    """The plan of a YAML file, and its pieces by prefix: per attack those of all people. `embedding` replaces the file's prefixes.

    Raises:
        UserError: the file is no plan, the model has two text encoders, or there are too few people.
    """
    plan = read_adversary_plan(path, Path(preset).stem)
    flags = part_flags(preset, {}, str(path))
    if has_two_encoders(flags.files.config_path):
        raise UserError(f"attacks search the tokens of one text encoder, and {flags.files.config_path} has two; give another --preset")
    people = [person for person in read_people(flags.options.people).values() if person.group == plan.group][:plan.n_people]
    if len(people) < plan.n_people:
        raise UserError(f"{flags.options.people} has {len(people)} people of the group {plan.group}, and {path} attacks {plan.n_people}; "
                        "give a smaller n_people, or more people")
    prefixes = [AttackedPrefix(embedding.stem, result=str(embedding))] if embedding else plan.prefixes
    return plan, {prefix.name: _pieces(plan, prefix, flags, people, preset, out_dir, str(path)) for prefix in prefixes}


def _pieces(plan: AdversaryPlan, attacked: AttackedPrefix, flags: PartFlags, people: Sequence[Person], preset: str, out_dir: Path,
            source: str) -> list[list[PersonAttack]]:
    """Per attack on a prefix, the pieces of all people."""
    prefix = found(attacked.result) if attacked.result else training(out_dir, preset, attacked.train, 0, source)
    options = flags.options
    common = {key: getattr(plan, key) for key in ("group", "n_samples", "prompt", "far", "photos")} | {
        "prefix": prefix.folder.name if isinstance(prefix, Training) else prefix, "precision": flags.precision, **vars(flags.files)}
    common |= {key: getattr(options, key) for key in (
        "ddim_steps", "scale", "seed", "gallery", "face_pack", "det_size", "det_thresh", "clip")}
    place, everybody = out_dir / "adversary" / digest_of(common), [person.name for person in people]
    without = [WithoutAttack(place / safe_name(person.name) / "none", plan, flags, person, prefix, everybody) for person in people]
    return [[PersonAttack(one.folder.parent / f"{slug(attack.name)}-{digest_of(vars(attack))}", attack, one) for one in without]
            for attack in plan.attacks if attacked.attacks is None or attack.name in attacked.attacks]
