"""Trainings of tables and figures. Each runs once in its own process of train.py, even if several tables use it.

    <out_dir>/training/<flags>-<hash>/               --out_dir of train.py, with its output in train.log and its cost in cost.json
    <out_dir>/training/<prefix>-to-<model>-<route>/  a prefix transferred to a model with two text encoders
    <out_dir>/targets/                               frozen predictions shared by the trainings of APL
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from args.common import as_flags
from args.paths import ROOT
from args.train_args import build_parser, parse_train_args
from args.train_methods import APL, CLOSED_FORM, TEXT
from ldm.apl.workers import STARTED_BY
from ldm.contents import digest_of, file_hash
from ldm.device import Place
from ldm.paper.config import slug
from ldm.run_folder import read_json
from ldm.util import UserError

TRAIN = ROOT / "train.py"
CHECKPOINTS = 100  # number of saved prefixes per training: every 200 of the paper's 20 000 steps
UNCOUNTED = ("out_dir", "embeddings_dir", "devices", "num_nodes", "resume", "dry_run", "preset", "prompt", "target_cache", "save_every",
             "val_every")  # flags that do not affect results
# Omitted where None, so that results from before these flags keep their folders.
WHERE_GIVEN = ("map_rank", "keep_names", "robust_form", "attack_vectors", "attack_steps", "attack_radius", "attack_rounds", "attack_names",
               "target")
TAKEN = {"seed", "eval_names", *UNCOUNTED} - {"devices"}  # flags that a row must not set
# U-Net evaluations per sample and step; 5 for other methods.
CALLS = {"esd": 30, "forget_me_not": 8, "concept_ablation": 8, **dict.fromkeys((*CLOSED_FORM, TEXT), 0)}


@dataclass(frozen=True)
class Training:
    """One run of train.py, identified by its flags."""

    folder: Path          # its --out_dir
    flags: Sequence[str]  # checked, without those that the place determines
    size: float           # estimated number of U-Net evaluations
    start: "Training | None" = None  # whose result is --init

    @property
    def needs(self) -> "Sequence[Training]":
        return [self.start] if self.start else []

    def is_done(self) -> bool:
        """Whether train.py has finished; state.pt is deleted last."""
        return (self.folder / "cost.json").exists() and not (self.folder / "state.pt").exists()

    def make(self, tools: Any) -> None:
        """Run or resume train.py; UserError with its last words if it fails."""
        start = ["--init", str(self.start.result())] if self.start else []
        run_script([str(TRAIN), "--out_dir", str(self.folder), "--devices", tools.place.devices, *self.flags, *start],
                   self.folder / "train.log", tools.place, f"the training in {self.folder}")
        (self.folder / "state.pt").unlink(missing_ok=True)  # gigabytes for a whole U-Net, not needed any more

    @cached_property
    def cost(self) -> Mapping[str, Any]:
        """seconds, peak_memory_bytes, result and result_bytes; UserError if the file is damaged."""
        return read_json(self.folder / "cost.json", {"seconds", "peak_memory_bytes", "result", "result_bytes"})

    def result(self, step: int | None = None) -> Path:
        """File of the result, or of an earlier step; UserError if it does not exist."""
        name = Path(self.cost["result"]).name
        if step is not None:
            name = re.sub(r"-\d+(\.\w+)$", rf"-{step}\1", name)
        for path in (self.folder / "embeddings" / name, self.folder / name):
            if path.is_file():
                return path
        raise UserError(f"{name}, which the training in {self.folder} has made, is not there; put it back, or delete the folder to train "
                        "it again")

    def command(self) -> str:
        """Command line that runs it, once the training whose result it starts from is finished."""
        start = ["--init", str(self.start.result())] if self.start else []
        return shlex.join(["python", "train.py", "--out_dir", str(self.folder), *self.flags, *start])


@dataclass(frozen=True)
class Transfer:
    """A prefix of Stable Diffusion v1 with vectors for the second text encoder of another model (section 4.2)."""

    folder: Path
    source: Training | Path
    model: str  # preset
    route: str
    size: float = 100.0

    @property
    def needs(self) -> "Sequence[Training | Transfer]":
        return made_for(self.source)

    def is_done(self) -> bool:
        return self.result().exists()

    def make(self, tools: Any) -> None:
        run_script(self._script, self.folder / "transfer.log", tools.place, f"the transfer of {file_of(self.source)}")

    def result(self, step: int | None = None) -> Path:
        return self.folder / "prefix.safetensors"

    def command(self) -> str:
        """Command line that runs it, once its source exists."""
        return shlex.join(["python", *self._script])

    @property
    def _script(self) -> list[str]:
        return ["-m", "ldm.apl.transfer", str(file_of(self.source)), str(self.result()), "--to", self.model, "--route", self.route]


Source = Training | Transfer | Path | None  # training or file of a prefix or edited weights; None: base model


def training(out_dir: Path, preset: str, train: Mapping[str, Any], seed: int, source: str, step: int | None = None) -> Training:
    """The training with a row's flags `train` and a seed, below the output folder of python -m ldm.paper.

    `train` can replace the preset (name or file), and its `init` can be flags, those of the training from whose result it starts; `source`
    is its origin, for messages; `step` is the requested step, None the last.

    Raises:
        SystemExit: a flag is unknown to train.py, or a file that it reads does not exist.
        UserError: the result of this step is not saved.
    """
    train = dict(train)
    preset, method = train.pop("preset", preset), train.get("train_method", APL[0])
    start = None
    if isinstance(train.get("init"), Mapping):
        start = training(out_dir, preset, train.pop("init"), seed, source)
    if wrong := [value for value in (preset, method) if not isinstance(value, str)]:
        raise UserError(f"{source} has {wrong[0]!r} where a name is needed; give one preset and one train_method")
    typed = ["--preset", preset, "--prompt", method, "--eval_names", "0", "--seed", str(seed),
             *as_flags(build_parser(method), train, source, TAKEN)]
    if method in APL:
        typed += ["--val_every", "0", *(["--target_cache", str(out_dir / "targets")] if method != TEXT else [])]
    args = parse_train_args(typed)
    if method in APL:
        every = max(1, args.iterations // CHECKPOINTS)
        typed += ["--save_every", str(every)]
        if step is not None and step not in (*range(every, args.iterations, every), args.iterations):
            raise UserError(f"{source} asks for step {step}, which is not kept; give a multiple of {every}, up to {args.iterations}")
    elif step is not None:
        raise UserError(f"{source} asks for step {step}, and {method} keeps only its final result; remove the step")
    digest = digest_of(counted(vars(args)) | ({"init": start.folder.name} if start else {}))
    named = [method, *(f"{key}-{value}" for key, value in train.items() if key != "train_method" and "/" not in str(value))]
    steps = 100 * args.iters_per_concept if args.iters_per_concept else args.iterations or 0
    steps += 100 * (args.ti_iterations or 0) * (args.variant == "with-ti")
    calls = 3 if getattr(args, "z_t", None) == "noised" else CALLS.get(method, 5)
    size = steps * (args.batch_size or 1) * calls
    if args.attack_rounds:
        size += 12 * args.attack_rounds * args.attack_names * args.attack_steps  # four samples with three evaluations
    elif args.attack_steps:
        size += steps * args.batch_size * args.attack_steps / 2
    return Training(out_dir / "training" / f"{slug('-'.join(named))}-seed-{seed}-{digest}", typed, size, start)


def counted(flags: Mapping[str, object]) -> dict[str, object]:
    """The flags on which a training's result depends."""
    return {flag: value for flag, value in flags.items() if flag not in UNCOUNTED and (value is not None or flag not in WHERE_GIVEN)}


def transfer(out_dir: Path, source: Training | Path, model: str, route: str) -> Transfer:
    """Transfer of a prefix to a preset's model."""
    name = source.folder.name if isinstance(source, Training) else f"{source.stem}-{file_hash(source)[:8]}"
    return Transfer(out_dir / "training" / f"{name}-to-{slug(model)}-{route}", source, model, route)


def file_of(source: Source, step: int | None = None) -> Path | None:
    """The given file, or the result of a finished training; None for the base model."""
    return source if source is None or isinstance(source, Path) else source.result(step)


def made_for(source: Source) -> list[Training | Transfer]:
    """Pieces that must be finished before the file exists."""
    return [] if source is None or isinstance(source, Path) else [source]


def run_script(command: Sequence[str], log: Path, place: Place, what: str) -> None:
    """Run Python with `command`, with its output in `log`; UserError if it fails. The process ends with this one."""
    log.parent.mkdir(parents=True, exist_ok=True)
    modules = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, *command], stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                                   env=os.environ | place.environment | {STARTED_BY: str(os.getpid()), "PYTHONPATH": modules})
    try:
        status = process.wait()
    finally:
        process.terminate()  # unless it has ended
        process.wait()
    if status:
        raise UserError(f"{what} ended with status {status} ({last_words(log)}); correct that, and the same command resumes")


def last_words(log: Path) -> str:
    """The error sentence of a finished process, or else its last line of output."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines() if line.strip()]
    sentences = [line.removeprefix("error: ") for line in lines if line.startswith("error:")]
    return (sentences or lines or ["it said nothing"])[-1].rstrip(".")


