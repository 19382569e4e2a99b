"""Attacks on new people (paper section 4.4): which trainings there are, what train.py needs for each, and what stays of it.

    <out_dir>/photos/<person>/                         what an attack sees of a person
    <out_dir>/<attack>/<person>/                       --out_dir of train.py; its checkpoints go once their pictures are there
    <out_dir>/pictures/<attack>/<person>/manifest.json, images/<prefix>/<iteration>/<sample>.png
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from args.common import ROOT
from ldm.loading import file_hash
from ldm.paper.identity import Drawing
from ldm.paper.new_people import NewPerson
from ldm.run_folder import RunFolder, safe_name
from ldm.util import UserError, first_line

CONFIG = ROOT / "configs" / "paper" / "figure5.yaml"
NONE = "none"                      # label of pictures without the prefix
OF_PERSON = ("data", "devices")    # what differs from person to person in what train.py has learned from
DRAWN = "drawn-*.pt"               # the class's pictures, which train.py keeps in --out_dir: the same for every person


@dataclass(frozen=True)
class AttackPlan:
    """configs/paper/figure5.yaml, with the flags given in place of its values."""

    n_people: int
    n_photos: int
    n_samples: int
    iterations: int
    every: int
    prompt: str
    token: str
    name: str
    seed: int
    attacks: Mapping[str, Mapping[str, Any]]

    @property
    def checkpoints(self) -> list[int]:
        """The iterations at which an attack is looked at."""
        return list(range(self.every, self.iterations + 1, self.every))

    @property
    def subject(self) -> str:
        """The prompt of every picture."""
        return self.prompt.replace("{name}", self.name)


def read_plan(config: Path, **given: int | None) -> AttackPlan:
    """The plan of a YAML file, with the values given that are not None in place of its own; UserError if it is none."""
    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8"))
        return AttackPlan(**values | {name: value for name, value in given.items() if value is not None})
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise UserError(f"{config} is no plan of Figure 5 ({first_line(error)}); restore it from the repository") from None


@dataclass(frozen=True)
class Run:
    """One attack on one person, and the pictures of its checkpoints.

    Args:
        attack: name of the run, so of its checkpoints' files.
        name: of the person; empty where it is nobody.
        folder: --out_dir of train.py.
        flags: its further flags; None where nothing is trained.
        prefixes: labels of those with which the checkpoints are drawn, "none" among them for the model without one.
    """

    attack: str
    name: str
    folder: Path
    flags: Sequence[str] | None
    pictures: RunFolder
    prefixes: Sequence[str]
    iterations: Sequence[int]
    n_samples: int

    def paths(self, prefix: str, iteration: int) -> list[Path]:
        """The pictures of a checkpoint with a prefix, one a sample."""
        return [self.pictures.image_path(prefix, str(iteration), sample) for sample in range(self.n_samples)]

    def undrawn(self) -> list[int]:
        """The iterations of which pictures are missing."""
        return [iteration for iteration in self.iterations
                if not all(path.exists() for prefix in self.prefixes for path in self.paths(prefix, iteration))]

    def checkpoint(self, iteration: int) -> Path:
        """Edited weights, or the vector of a token."""
        weights = self.folder / f"{self.attack}-{iteration}.safetensors"
        return weights if weights.exists() else weights.with_suffix(".pt")

    def make_ready(self) -> None:
        """Forgets a finished training whose checkpoints are gone, and hands on what an earlier person's training has drawn."""
        if (self.folder / "cost.json").exists() and not all(self.checkpoint(iteration).exists() for iteration in self.undrawn()):
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for drawn in self.folder.parent.glob(DRAWN):
            shutil.copy2(drawn, self.folder)

    def delete_checkpoints(self) -> None:
        """Deletes also what train.py could go on from; log, arguments and cost stay."""
        for drawn in self.folder.glob(DRAWN):
            drawn.replace(self.folder.parent / drawn.name)
        for path in (*self.folder.glob(f"{self.attack}-*.safetensors"), *self.folder.glob(f"{self.attack}-*.pt"), self.folder / "state.pt"):
            path.unlink(missing_ok=True)


def frozen_run(plan: AttackPlan, drawing: Drawing, prefix: Path, out_dir: Path, *, resume: bool) -> Run:
    """The model before any attack, iteration 0: the same pictures for every person and attack."""
    folder = _picture_folder(out_dir / "pictures" / "frozen", asdict(drawing) | {"name": plan.name}, [NONE, prefix.stem], prefix, resume)
    return Run("frozen", "", out_dir / "frozen", None, folder, [NONE, prefix.stem], [0], plan.n_samples)


def attack_runs(plan: AttackPlan, people: Mapping[str, NewPerson], drawing: Drawing, prefix: Path, out_dir: Path, *, preset: str,
                resume: bool) -> list[Run]:
    """The runs of all attacks on all people, person by person; with `resume` False, what earlier ones left is deleted.

    Raises:
        UserError: there are pictures that were made in another way.
    """
    runs = []
    for name, person in people.items():
        for folder, attack, labels in _trainings(plan, prefix):
            place = Path(folder, safe_name(name))
            if not resume:
                shutil.rmtree(out_dir / place, ignore_errors=True)
            learned = dict(plan.attacks[attack]["train"]) | {"preset": preset, "token": plan.token, "iterations": plan.iterations,
                                                             "save_every": plan.every}
            through = {"embedding": prefix} if NONE not in labels else {}
            typed = learned | through | {"prompt": attack, "photos": photos_seen(out_dir, name)}
            flags = [word for flag, value in typed.items() for word in (f"--{flag}", str(value))]
            settings = asdict(drawing) | {"name": plan.name, "training": learned, "photos": person.fingerprint(),
                                          "learned_through": file_hash(prefix) if through else None}
            pictures = _picture_folder(out_dir / "pictures" / place, settings, labels, prefix, resume)
            runs.append(Run(attack, name, out_dir / place, flags, pictures, labels, plan.checkpoints, plan.n_samples))
    return runs


def photos_seen(out_dir: Path, name: str) -> Path:
    """The folder of the photos that an attack sees."""
    return out_dir / "photos" / safe_name(name)


def refuse_mixed(runs: Sequence[Run]) -> None:
    """Raises UserError where trainings of one attack differ in more than the person: in a learning rate, in the model, ..."""
    first: dict[Path, tuple[Run, dict[str, Any]]] = {}
    for run in runs:
        record = run.folder / "arguments.json"
        if record.exists():
            learned_from = json.loads(record.read_text(encoding="utf-8"))["learned_from"]
            there = {key: value for key, value in learned_from.items() if key not in OF_PERSON}
            other, expected = first.setdefault(run.folder.parent, (run, there))
            different = [f"{key} {there.get(key)!r} instead of {expected.get(key)!r}"
                         for key in dict.fromkeys([*expected, *there]) if there.get(key) != expected.get(key)]
            if different:
                raise UserError(f"{run.folder} was trained in another way than {other.folder} ({', '.join(different)}); use another "
                                "--out_dir, or --no-resume to train all anew")


def _trainings(plan: AttackPlan, prefix: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Folder, attack and labels of the prefixes with which its checkpoints are drawn; each label of an attack once."""
    for attack, settings in plan.attacks.items():
        if settings.get("learned_through_prefix"):
            yield attack, attack, [NONE]
            yield f"{attack}-through-{prefix.stem}", attack, [prefix.stem]
        else:
            yield attack, attack, [NONE, prefix.stem]


def _picture_folder(path: Path, settings: Mapping[str, Any], labels: Sequence[str], prefix: Path, resume: bool) -> RunFolder:
    folder = RunFolder(path, settings, resume=resume)
    for label in labels:
        folder.add_prefix(label, None if label == NONE else file_hash(prefix))
    return folder
