"""The end of a training: identity accuracy and drift without and with the prefix, in numbers and pictures (Table 1)."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.data.benchmarks import different_prompts
from ldm.data.identities import GROUPS, Person
from ldm.evaluation.clip_score import ClipScorer, clip_model_of
from ldm.evaluation.faces import FaceAnalyzer
from ldm.evaluation.id_acc import load_gallery
from ldm.evaluation.tables import console_tables, markdown_table, write_results
from ldm.experiments.before_after import BeforeAfter
from ldm.experiments.drift import drift_table
from ldm.experiments.identity import Drawing, Prefix, identity_rows, load_prefixes
from ldm.fabric import Fabric
from ldm.loading import ModelFiles, file_hash
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import write_atomically, write_text

PORTRAIT = "A close-up portrait of {name}"
SHOWN = 3             # people of each group, and other prompts, in the pictures
NOISE_SEED = 0        # as test_id.py has it
BATCH_SIZE = 16
SHOWN_IDENTITY = ("prefix", "group", "id_acc_mean", "id_acc_max", "detection_rate", "rank1", "attr_kept", "attr_random",
                  "n_identities", "n_images")


class TrainingReport:
    """What is measured after a training, read before it: a missing face or model is found out at once.

    Args:
        args: flags of train.py, of the group "final table".
        people: of both groups.
        fabric: its devices share what is drawn and scored.

    Raises:
        UserError: a file is not what it should be.
    """

    def __init__(self, args: argparse.Namespace, people: Mapping[str, Person], fabric: Fabric):
        self.args, self.fabric = args, fabric
        everybody = {group: [person.name for person in people.values() if person.group == group] for group in GROUPS}
        self.shown = {group: names[:SHOWN] for group, names in everybody.items()}
        self.attributes = {person.name: person.attributes for person in people.values()}
        self.names = {group: names[:args.eval_names] for group, names in everybody.items() if names}
        self.prompts = {path.stem: different_prompts(path) for path in args.prompts_file or ()}
        self.drawing = {"ddim_steps": args.eval_ddim_steps, "scale": args.scale, "seed": NOISE_SEED,
                        "batch_size": BATCH_SIZE}
        self.analyzer = self.clip = None
        if args.eval_names and args.face_pack and args.gallery:
            self.gallery = load_gallery(args.gallery, [name for names in self.names.values() for name in names])
            self.analyzer = FaceAnalyzer(args.face_pack, args.det_size, args.det_thresh, device=str(fabric.device))
        if args.eval_names and args.clip:
            self.clip = ClipScorer(clip_model_of(args.clip, None), args.clip, fabric.device)

    def before_after(self, model: LatentDiffusion) -> BeforeAfter:
        """People of both groups and other prompts, as pictures without and with the prefix."""
        prompts = {f"{name} ({group})": PORTRAIT.replace("{name}", name)
                   for group, names in self.shown.items() for name in names}
        prompts |= {prompt: prompt for prompts in self.prompts.values() for prompt in prompts[:SHOWN]}
        return BeforeAfter(model, prompts, **self.drawing)

    def measure(self, model: LatentDiffusion, prefix_file: Path, *, precision: str,
                arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Rows of identity accuracy, then of drift, on every device; written to --out_dir as results.json, .csv and .md."""
        self.fabric.barrier()  # the first device may still be writing the file
        args, files = self.args, ModelFiles.of(self.args)
        prefixes = load_prefixes(model, [prefix_file], files)
        identity, drift = [], []
        if self.analyzer:
            hashes = files.hash(), file_hash(args.config_path)
            drawing = Drawing(*hashes, PORTRAIT, NOISE_SEED, args.scale, args.eval_ddim_steps, precision)
            identity = identity_rows(self.fabric, model, self.analyzer, self.gallery, self.names, prefixes, model_name=files.name,
                                     drawing=drawing, n_samples=args.eval_samples, batch_size=BATCH_SIZE,
                                     threshold=args.threshold, out_dir=args.out_dir / "identity", resume=args.resume,
                                     arguments=arguments, attributes=self.attributes if args.c2 else None,
                                     features_of=self.clip.image_features if self.clip else None)
        if args.eval_names:
            drift = drift_table(self.fabric, model, self.prompts, prefixes, model_name=files.name,
                                recognise=self.clip.recognise if self.clip else None, **self.drawing)
        rows = [*identity, *drift]
        if self.fabric.is_global_zero and rows:
            write_results(rows, args.out_dir)
            tables = [markdown_table(part) for part in (identity, drift) if part]
            write_text(args.out_dir / "results.md", "\n".join(tables))
        return rows


def summary(rows: list[dict[str, Any]]) -> str:
    """The rows as the two tables that the console shows."""
    identity = [{key: row.get(key) for key in SHOWN_IDENTITY} for row in rows if "group" in row]
    drift = [row for row in rows if "mse" in row]
    return console_tables(identity, drift)


def write_before_after(path: Path, before_after: BeforeAfter, prefix: Prefix) -> None:
    """The picture grid as a file."""
    write_atomically(path, before_after.grid(prefix).save)
