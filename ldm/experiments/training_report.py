"""Report at the end of a training: identity accuracy and drift without and with its result, as metrics and images (Table 1, Figure 1)."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from args.common import PORTRAIT
from ldm.data.identities import Person
from ldm.evaluation.tables import console_table, markdown_table, write_results
from ldm.experiments.identity import IdentityEvaluation
from ldm.experiments.identity_table import IdentityOptions, people_asked_for
from ldm.experiments.variants import BASE, Variant, load_variants
from ldm.generation import generate
from ldm.images import image_grid
from ldm.loading import ModelFiles
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.sharing import Devices
from ldm.util import write_atomically, write_text

SHOWN = 3  # people per group, and other prompts, in the image grid
SHOWN_IDENTITY = ("prefix", "group", "id_acc_mean", "id_acc_max", "detection_rate", "rank1", "attr_kept", "attr_random",
                  "n_identities", "n_images")


class BeforeAfter:
    """Labelled image grid with one column per prompt: the frozen model's image above, the variant's below, from the same noise.

    Args:
        prompts: label -> prompt.
        sampling: ddim_steps, scale, seed and batch_size for `generate`.
    """

    def __init__(self, model: LatentDiffusion, prompts: Mapping[str, str], **sampling: Any):
        self.model, self.prompts, self.sampling = model, dict(prompts), sampling
        self._before: list[np.ndarray] = []  # generated once: the frozen model never changes

    def grid(self, variant: Variant) -> Image.Image:
        """The grid with the prefix, or the edited weights, in their current state."""
        self._before = self._before or self._generate(BASE)
        labels = ["no prefix", "with prefix"] if variant.manager else ["frozen", "edited"]
        return image_grid([self._before, self._generate(variant)], labels, list(self.prompts))

    def _generate(self, variant: Variant) -> list[np.ndarray]:
        jobs = [(prompt, 0) for prompt in self.prompts.values()]
        with variant.in_place(self.model):
            return [image for _, image in generate(self.model, jobs, embedding_manager=variant.manager, **self.sampling)]


class TrainingReport:
    """Final table and image grid of a training. The inputs are read on creation, so that errors are found before the training.

    Args:
        options: settings; `out_dir` is the training's.
        people: people of both groups, by name.
        n_names: names per group in the table; 0 omits it.
    """

    def __init__(self, options: IdentityOptions, people: Mapping[str, Person], fabric: Devices, *, n_names: int):
        self.out_dir, self.fabric, self.n_names = options.out_dir, fabric, n_names
        everybody = people_asked_for(people, "all", None)
        self.shown = {group: names[:SHOWN] for group, names in everybody.items()}
        self.evaluation = IdentityEvaluation(replace(options, out_dir=options.out_dir / "identity"),
                                             {group: names[:n_names] for group, names in everybody.items() if names}, people, fabric.device)

    def before_after(self, model: LatentDiffusion) -> BeforeAfter:
        """Image grid of people of both groups and of other prompts, without and with the prefix."""
        prompts = {f"{name} ({group})": PORTRAIT.replace("{name}", name) for group, names in self.shown.items() for name in names}
        prompts |= {prompt: prompt for prompts in self.evaluation.prompts.values() for prompt in prompts[:SHOWN]}
        return BeforeAfter(model, prompts, **self.evaluation.options.sampling)

    def write(self, model: LatentDiffusion, files: ModelFiles, result: Path, *, precision: str, arguments: Mapping[str, Any],
              before_after: BeforeAfter | None = None) -> str:
        """Write results.json, .csv and .md with rows of identity accuracy, then of drift, and before-after.png, to --out_dir.

        Args:
            result: file of the prefix or of the edited weights.
            arguments: arguments of the command.
            before_after: image grid that already has the images of the frozen model.

        Returns:
            The rows as two tables for the console.
        """
        self.fabric.barrier()  # rank 0 may still be writing the file
        variants = load_variants(model, [result], files)
        rows = self.evaluation.rows(self.fabric, model, files, variants, precision, arguments) if self.n_names else []
        identity, drift = ([row for row in rows if column in row] for column in ("group", "mse"))
        if self.fabric.is_global_zero:
            if rows:
                write_results(rows, self.out_dir)
                write_text(self.out_dir / "results.md", "\n".join(markdown_table(part) for part in (identity, drift) if part))
            grid = (before_after or self.before_after(model)).grid(variants[1])
            write_atomically(self.out_dir / "before-after.png", grid.save)
        return console_table([{key: row.get(key) for key in SHOWN_IDENTITY} for row in identity], drift)
