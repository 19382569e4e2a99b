"""The pictures behind a row of a table, and what they come to: one piece for each part and result (paper sections 4.1 to 4.3).

    <out_dir>/pictures/<model>/<result>/<part>-<hash of the flags>/row.json    the numbers of ldm/experiments/quality_table.py; written last
    .../<half>/images/, scores/                                                see ldm/experiments/quality.py

The parts: portraits of S_ID and of S_test, and pictures of prompts that name nobody. FID is taken from the pictures of the model as it is.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from args.common import as_flags
from args.test_fid_clip_score_args import build_parser, parse_test_fid_clip_score_args
from ldm.data.benchmarks import read_benchmark
from ldm.evaluation.quality import Scores
from ldm.experiments.identity import Prefix, load_prefixes
from ldm.experiments.identity_table import people_asked_for
from ldm.experiments.quality import HalfFolder
from ldm.experiments.quality_table import portraits_of
from ldm.loading import ModelFiles, file_hash
from ldm.paper.config import COLUMNS, slug
from ldm.paper.runner.tools import Tools
from ldm.paper.runner.trainings import Training, Transfer, digest_of
from ldm.run_folder import image_path, read_json, write_json
from ldm.sharing import OneDevice
from ldm.util import UserError

GROUP_OF = {"S_ID": "train", "S_test": "test"}  # the part "prompts" has nobody
BESIDE = ("out_dir", "devices", "num_nodes", "resume", "preset", "keep_images", "embedding", "anonymize", "half", "group", "images")
TAKEN = {*BESIDE, "count_faces"} - {"keep_images"}  # not a table's to set
NOT_OF_PEOPLE = ("benchmark", "n_prompts", "apl_compat", "count_faces", "clip_model")
NOT_OF_PROMPTS = ("prompt", "n_names", "n_samples", "people", "gallery", "attribute_features", "farl_weights", "threshold")
CALLS = 2  # of the U-Net for a step of a picture, with guidance

Result = Training | Transfer | Path | None  # what makes a prefix or edited weights, or their file; None: the model as it is


@dataclass(frozen=True)
class Part:
    """Pictures of one part, drawn by a model with a result.

    Args:
        args: checked flags of test_fid_clip_score.py, of both halves and groups.
        step: of a training.
        base: the pictures from which the distances are; None if these are they.
    """

    folder: Path
    name: str
    args: argparse.Namespace
    result: Result
    step: int | None
    base: "Part | None"

    @property
    def needs(self) -> Sequence[Any]:
        made = [] if self.result is None or isinstance(self.result, Path) else [self.result]
        return [*made, *([self.base] if self.base else [])]

    @property
    def size(self) -> float:
        count = self.args.n_prompts if self.name == "prompts" else (self.args.n_names or 100) * self.args.n_samples
        return CALLS * self.args.ddim_steps * count

    def is_done(self) -> bool:
        return (self.folder / "row.json").exists()

    def make(self, tools: Tools) -> None:
        """Draws and scores what is missing."""
        began = time.monotonic()
        model, table, file = tools.model(self.args), tools.quality(self.args), self.file()
        prefix = load_prefixes(model, [file], ModelFiles.of(self.args), ["result"])[1] if file else Prefix()
        folder = self._half_folder(tools, prefix)
        folder.draw_and_score(model, self.args.batch_size)
        row = table.row(self.half, folder.scores_of(prefix), self.base and self.base.scores(tools), [text for text, _ in self.texts],
                        model=ModelFiles.of(self.args).name, prefix=prefix.file)
        write_json(self.folder / "row.json", row | {"seconds": time.monotonic() - began})

    def scores(self, tools: Tools) -> Scores:
        """The scores of the model as it is, once they are made."""
        return self._half_folder(tools, Prefix()).scores_of(Prefix())

    @property
    def half(self) -> str:
        return "non_id" if self.name == "prompts" else "id"

    def file(self) -> Path | None:
        """The prefix or the edited weights, once they are made."""
        return self.result if self.result is None or isinstance(self.result, Path) else self.result.result(self.step)

    @cached_property
    def texts(self) -> list[tuple[str, int]]:
        """What stands for {name} in the prompt of each picture, and the number of its noise."""
        if self.name == "prompts":
            return read_benchmark(self.args.benchmark, self.args.n_prompts)
        return portraits_of(people_asked_for(self.args)[GROUP_OF[self.name]], self.args.n_samples)

    @cached_property
    def row(self) -> Mapping[str, Any]:
        """The numbers; UserError if the file is damaged."""
        keys = {key for part, key in COLUMNS.values() if part == self.name}
        row = read_json(self.folder / "row.json", {"seconds", *keys})
        if wrong := [key for key in ("seconds", *keys) if not isinstance(row[key], int | float | None)]:
            raise UserError(f"{self.folder / 'row.json'} is damaged ({wrong[0]}: {row[wrong[0]]}); delete it, and the same command makes "
                            "it again")
        return row

    def image(self, text: str, sample: int) -> Path:
        """Where a picture is, if it has been kept."""
        return image_path(self.folder / self.half, "none" if self.result is None else "result", text, sample)

    def _half_folder(self, tools: Tools, prefix: Prefix) -> HalfFolder:
        half = tools.quality(self.args).half(self.half, self.texts, tools.precision(self.args))
        return HalfFolder(OneDevice(), half, [prefix], self.folder, keep_images=self.args.keep_images)


def part_args(preset: str, score: Mapping[str, Any], source: str) -> argparse.Namespace:
    """Checked flags of test_fid_clip_score.py for a preset's model, of both halves and groups.

    Args:
        source: where the flags stand, for errors.

    Raises:
        SystemExit: a flag is not one of test_fid_clip_score.py, or a file that it reads is not there.
    """
    typed = ["--preset", preset, *as_flags(build_parser(), score, source, TAKEN)]
    return parse_test_fid_clip_score_args([*typed, "--half", "both", "--group", "all", "--count_faces", "--no-anonymize"])


def part(out_dir: Path, name: str, model: str, args: argparse.Namespace, result: Result = None, step: int | None = None,
         base: Part | None = None) -> Part:
    """The part of a row; equal ones have one folder, whatever table asks for them. `model` is the preset's name."""
    others = BESIDE + (NOT_OF_PROMPTS if name == "prompts" else NOT_OF_PEOPLE)
    digest = digest_of({flag: value for flag, value in vars(args).items() if flag not in others})
    label = "none" if result is None else f"{slug(result.stem)}-{file_hash(result)[:8]}" if isinstance(result, Path) else result.folder.name
    label += "" if step is None else f"-step-{step}"
    return Part(out_dir / "pictures" / slug(Path(model).stem) / label / f"{name}-{digest}", name, args, result, step, base)
