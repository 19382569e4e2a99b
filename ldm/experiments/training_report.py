"""Report at the end of a training: identity accuracy and drift without and with the prefix, as metrics and images (Table 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.data.identities import GROUPS, Person
from ldm.evaluation.tables import Row, console_table, markdown_table, write_results
from ldm.experiments.before_after import BeforeAfter
from ldm.experiments.identity_table import IdentityEvaluation, IdentityOptions
from ldm.experiments.variants import Variant, load_variants
from ldm.loading import ModelFiles
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.sharing import Devices
from ldm.util import write_atomically, write_text

PORTRAIT = "A close-up portrait of {name}"
SHOWN = 3             # people per group, and other prompts, in the image grid
NOISE_SEED = 0        # the default of test_id.py
BATCH_SIZE = 16
SHOWN_IDENTITY = ("prefix", "group", "id_acc_mean", "id_acc_max", "detection_rate", "rank1", "attr_kept", "attr_random",
                  "n_identities", "n_images")


@dataclass(frozen=True)
class FinalTableOptions:
    """Settings of the final table, named like the flags of train.py."""

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
        """The corresponding options of the identity table."""
        same = {name: getattr(self, name) for name in ("face_pack", "gallery", "det_size", "det_thresh", "threshold", "clip", "c2", "scale",
                                                       "resume")}
        return IdentityOptions(**same, prompt_template=PORTRAIT, n_samples=self.eval_samples, ddim_steps=self.eval_ddim_steps,
                               seed=NOISE_SEED, batch_size=BATCH_SIZE, drift_prompts=self.prompts_file, out_dir=self.out_dir / "identity")


class TrainingReport:
    """Final table and image grid of a training. The inputs are read on creation, so that errors are found before the training.

    Args:
        options: settings.
        people: people of both groups, by name.
        fabric: devices that share the work.

    Raises:
        UserError: an input file is missing or invalid.
    """

    def __init__(self, options: FinalTableOptions, people: Mapping[str, Person], fabric: Devices):
        self.options, self.fabric = options, fabric
        everybody = {group: [person.name for person in people.values() if person.group == group] for group in GROUPS}
        self.shown = {group: names[:SHOWN] for group, names in everybody.items()}
        names = {group: names[:options.eval_names] for group, names in everybody.items() if names}
        self.evaluation = IdentityEvaluation(options.as_identity_options(), names,
                                             {person.name: person.attributes for person in people.values()}, fabric.device)

    def before_after(self, model: LatentDiffusion) -> BeforeAfter:
        """Image grid of people of both groups and of other prompts, without and with the prefix."""
        prompts = {f"{name} ({group})": PORTRAIT.replace("{name}", name)
                   for group, names in self.shown.items() for name in names}
        prompts |= {prompt: prompt for prompts in self.evaluation.prompts.values() for prompt in prompts[:SHOWN]}
        return BeforeAfter(model, prompts, **self.evaluation.options.sampling)

    def measure(self, model: LatentDiffusion, files: ModelFiles, result: Path, *, precision: str,
                arguments: Mapping[str, Any]) -> list[Row]:
        """Rows of identity accuracy, then of drift, on every rank; written to --out_dir as results.json, .csv and .md.

        Args:
            model: the frozen model.
            files: its files.
            result: file of the prefix or of the edited weights.
            precision: precision of the U-Net.
            arguments: arguments of the command.
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
    """The rows as two tables for the console."""
    identity, drift = parts_of(rows)
    return console_table([{key: row.get(key) for key in SHOWN_IDENTITY} for row in identity], drift)


def parts_of(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of identity accuracy, and those of drift."""
    return [row for row in rows if "group" in row], [row for row in rows if "mse" in row]


def write_before_after(path: Path, before_after: BeforeAfter, variant: Variant) -> None:
    """Write the image grid to a file."""
    write_atomically(path, before_after.grid(variant).save)
