"""The end of a training: identity accuracy and drift without and with the prefix, in numbers and images (Table 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.data.identities import GROUPS, Person
from ldm.evaluation.tables import Row, console_tables, markdown_table, write_results
from ldm.experiments.before_after import BeforeAfter
from ldm.experiments.identity_table import IdentityEvaluation, IdentityOptions
from ldm.experiments.variants import Variant, load_variants
from ldm.loading import ModelFiles
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.sharing import Devices
from ldm.util import write_atomically, write_text

PORTRAIT = "A close-up portrait of {name}"
SHOWN = 3             # people of each group, and other prompts, in the images
NOISE_SEED = 0        # as test_id.py has it
BATCH_SIZE = 16
SHOWN_IDENTITY = ("prefix", "group", "id_acc_mean", "id_acc_max", "detection_rate", "rank1", "attr_kept", "attr_random",
                  "n_identities", "n_images")


@dataclass(frozen=True)
class FinalTableOptions:
    """What is measured after a training, named as the flags of train.py."""

    face_pack: Path | None
    gallery: Path | None
    det_size: Sequence[int]
    det_thresh: float
    threshold: float
    clip: Path | None
    c2: bool
    prompts_file: Sequence[Path] | None
    eval_names: int  # names per group; 0: no table
    eval_samples: int
    eval_ddim_steps: int
    scale: float
    out_dir: Path
    resume: bool

    def as_identity_options(self) -> IdentityOptions:
        """The same for the portraits of Table 1."""
        same = {name: getattr(self, name) for name in ("face_pack", "gallery", "det_size", "det_thresh", "threshold", "clip", "c2", "scale",
                                                       "resume")}
        return IdentityOptions(**same, prompt_template=PORTRAIT, n_samples=self.eval_samples, ddim_steps=self.eval_ddim_steps,
                               seed=NOISE_SEED, batch_size=BATCH_SIZE, drift_prompts=self.prompts_file, out_dir=self.out_dir / "identity")


class TrainingReport:
    """What is measured after a training. Its inputs are read before the training: a missing face or model is found out at once.

    Args:
        people: of both groups.
        fabric: its ranks share what is generated and scored.

    Raises:
        UserError: a file is not what it should be.
    """

    def __init__(self, options: FinalTableOptions, people: Mapping[str, Person], fabric: Devices):
        self.options, self.fabric = options, fabric
        everybody = {group: [person.name for person in people.values() if person.group == group] for group in GROUPS}
        self.shown = {group: names[:SHOWN] for group, names in everybody.items()}
        names = {group: names[:options.eval_names] for group, names in everybody.items() if names}
        self.evaluation = IdentityEvaluation(options.as_identity_options(), names,
                                             {person.name: person.attributes for person in people.values()}, fabric.device)

    def before_after(self, model: LatentDiffusion) -> BeforeAfter:
        """People of both groups and other prompts, as images without and with the prefix."""
        prompts = {f"{name} ({group})": PORTRAIT.replace("{name}", name)
                   for group, names in self.shown.items() for name in names}
        prompts |= {prompt: prompt for prompts in self.evaluation.prompts.values() for prompt in prompts[:SHOWN]}
        return BeforeAfter(model, prompts, **self.evaluation.options.sampling)

    def measure(self, model: LatentDiffusion, files: ModelFiles, result: Path, *, precision: str,
                arguments: Mapping[str, Any]) -> list[Row]:
        """Rows of identity accuracy, then of drift, on every rank; written to --out_dir as results.json, .csv and .md.

        Args:
            result: the prefix, or the edited weights.
        """
        self.fabric.barrier()  # rank 0 may still be writing the file
        variants = load_variants(model, [result], files)
        if not self.options.eval_names:
            return []
        rows = self.evaluation.rows(self.fabric, model, files, variants, precision, arguments)
        if self.fabric.is_global_zero and rows:
            write_results(rows, self.options.out_dir)
            tables = [markdown_table(part) for part in parts_of(rows) if part]
            write_text(self.options.out_dir / "results.md", "\n".join(tables))
        return rows


def summary(rows: Sequence[Row]) -> str:
    """The rows as the two tables that the console shows."""
    identity, drift = parts_of(rows)
    return console_tables([{key: row.get(key) for key in SHOWN_IDENTITY} for row in identity], drift)


def parts_of(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of identity accuracy, and those of drift."""
    return [row for row in rows if "group" in row], [row for row in rows if "mse" in row]


def write_before_after(path: Path, before_after: BeforeAfter, variant: Variant) -> None:
    """The image grid as a file."""
    write_atomically(path, before_after.grid(variant).save)
