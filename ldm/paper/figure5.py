"""Figure 5: ID-ACC of people whom the model is taught later, without and with the prefix, over an attack's iterations (section 4.4).

In --out_dir: figure5.csv, .json, .md (a row a point of the curves), results.json (the same), figure5-identities.csv (a row a person and
point), figure5a.png (curves), figure5b.png (pictures), gallery.* (true faces, of held-out photos alone), and what attack_runs.py says.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from args.common import take_one_device
from args.figure5_flags import portrait_arguments
from ldm.apl.launch import launch
from ldm.device import devices_of, pick_precision
from ldm.evaluation.faces import FaceAnalyzer
from ldm.evaluation.id_acc import Observation, Row, id_acc, identity_scores, image_scores
from ldm.evaluation.tables import console_table, write_csv, write_results
from ldm.generation import batches_of
from ldm.loading import ModelFiles, file_hash, has_two_encoders
from ldm.paper.attack_pictures import Studio
from ldm.paper.attack_runs import CONFIG, NONE, AttackPlan, Run, attack_runs, frozen_run, photos_seen, read_plan, refuse_mixed
from ldm.paper.figure5_plot import draw_curves
from ldm.paper.identity import Drawing
from ldm.paper.new_people import NewPerson, read_new_people, true_faces
from ldm.paper.runs import train_missing
from ldm.pictures import picture_grid, read_image
from ldm.run_folder import versions, write_json
from ldm.util import UserError, write_atomically

COLUMNS = ("id_acc_mean", "id_acc_low", "id_acc_high", "id_acc_max", "detection_rate", "tar", "n_identities", "n_images")
PEOPLE_SHOWN = 8


def figure5(args: argparse.Namespace, config: Path = CONFIG) -> None:
    """Trains the attacks that are missing, draws and scores their checkpoints, and prints the ends of the curves.

    Args:
        args: preset, out_dir, devices, resume, and the flags of `add_figure5_arguments`.

    Raises:
        UserError: a file is not what it should be, a training failed, or --out_dir holds pictures that were made in another way.
    """
    plan = read_plan(config, n_people=args.n_people, n_photos=args.n_photos, n_samples=args.n_samples)
    people = read_new_people(args.photos, plan.n_people, plan.n_photos)
    portraits = portrait_arguments(args.preset)
    if has_two_encoders(portraits.config_path):
        raise UserError(f"figure5 teaches tokens to one text encoder, and {portraits.config_path} has two; give another --preset")
    one = argparse.Namespace(devices=args.devices)
    take_one_device(one)
    device, files = launch(one.devices).device, ModelFiles.of(portraits)
    drawing = Drawing(files.hash(), file_hash(portraits.config_path), plan.prompt, plan.seed, portraits.scale, portraits.ddim_steps,
                      pick_precision(portraits.precision, device))
    analyzer = FaceAnalyzer(portraits.face_pack, portraits.det_size, portraits.det_thresh, device=str(device))
    gallery = true_faces(people, analyzer, args.out_dir, n_photos=plan.n_photos)
    frozen = frozen_run(plan, drawing, args.embedding, args.out_dir, resume=args.resume)
    runs = attack_runs(plan, people, drawing, args.embedding, args.out_dir, preset=args.preset, resume=args.resume)
    write_json(args.out_dir / "arguments.json", {"arguments": vars(args), "plan": asdict(plan), "versions": versions()})

    studio = Studio(files, device, args.embedding, drawing, prompt=plan.subject, token=plan.token, batch_size=portraits.batch_size)
    studio.draw([frozen], "drawing before any attack")
    attack(runs, people, studio, args)
    curves = Curves(plan, args.embedding, frozen, runs, people, gallery, analyzer, portraits.threshold)
    rows = curves.write(args.out_dir)
    ends = [row for row in rows if row["iteration"] in (0, plan.checkpoints[-1])]
    print(f"{console_table(ends)}\n\ncurves, pictures and tables: {args.out_dir}")


def attack(runs: Sequence[Run], people: Mapping[str, NewPerson], studio: Studio, args: argparse.Namespace) -> None:
    """Trains and draws for as many people at a time as there are devices to train on: so many people's checkpoints are on the disk."""
    for names in batches_of(list(people), devices_of(args.devices)[2]):
        of_names = [run for run in runs if run.name in names]
        undone = [run for run in of_names if run.undrawn()]
        for run in undone:
            run.make_ready()
            people[run.name].copy_learned(photos_seen(args.out_dir, run.name))
        train_missing({run.folder: run.flags for run in undone}, devices=args.devices, label=f"attacks on {', '.join(names)}")
        refuse_mixed(runs)
        studio.draw(undone, f"drawing {', '.join(names)}")
        for run in of_names if not args.keep_checkpoints else ():
            run.delete_checkpoints()


class Curves:
    """What the pictures come to.

    Args:
        gallery: the true face by name.
        threshold: cosine from which a face counts as the person.
    """

    def __init__(self, plan: AttackPlan, prefix: Path, frozen: Run, runs: Sequence[Run], people: Mapping[str, NewPerson],
                 gallery: Mapping[str, np.ndarray], analyzer: FaceAnalyzer, threshold: float) -> None:
        self.plan, self.prefixes = plan, {NONE: NONE, prefix.stem: str(prefix)}
        self.frozen, self.runs, self.people = frozen, runs, people
        self.gallery, self.analyzer, self.threshold = gallery, analyzer, threshold
        self._embeddings: dict[Path, np.ndarray | None] = {}  # of pictures; those before any attack count for every person

    def write(self, out_dir: Path) -> list[Row]:
        """A row for each attack, prefix and iteration; every file of the figure."""
        rows, people = [], []
        for attack, settings in self.plan.attacks.items():
            published = dict(zip(self.prefixes, map(settings.get("published", {}).get, ("without", "with")), strict=True))
            for label, file in self.prefixes.items():
                for iteration in (0, *self.plan.checkpoints):
                    what = {"attack": attack, "prefix": file, "iteration": iteration}
                    scores = image_scores(self._observations(attack, label, iteration), self.gallery)
                    measured = id_acc(scores, threshold=self.threshold)
                    rows.append(what | {column: measured[column] for column in COLUMNS}
                                | {"published": published[label] if iteration == self.plan.iterations else None})
                    people += [what | row for row in identity_scores(scores)]
        write_results(rows, out_dir, name="figure5")
        write_json(out_dir / "results.json", rows)
        write_csv(people, out_dir / "figure5-identities.csv")
        draw_curves(rows, out_dir / "figure5a.png")
        write_atomically(out_dir / "figure5b.png", self.pictures().save)
        return rows

    def pictures(self) -> Image.Image:
        """A column a person: a held-out photo, then of each attack the last iteration without and with the prefix."""
        names, last = list(self.people)[:PEOPLE_SHOWN], self.plan.checkpoints[-1]
        rows = {"photo": [read_image(self.people[name].held_out[0]) for name in names]}
        for attack in self.plan.attacks:
            for label in self.prefixes:
                title = f"{attack.replace('_', ' ')} {'without' if label == NONE else 'with'} prefix"
                rows[title] = [read_image(self._paths(attack, label, last, name)[0]) for name in names]
        return picture_grid(list(rows.values()), list(rows), names)

    def _observations(self, attack: str, label: str, iteration: int) -> list[Observation]:
        return [Observation(name, str(path), self._embedding(path)) for name in self.people
                for path in self._paths(attack, label, iteration, name)]

    def _paths(self, attack: str, label: str, iteration: int, name: str) -> list[Path]:
        return (self.frozen if iteration == 0 else self._run_of[attack, label, name]).paths(label, iteration)

    @cached_property
    def _run_of(self) -> dict[tuple[str, str, str], Run]:
        return {(run.attack, label, run.name): run for run in self.runs for label in run.prefixes}

    def _embedding(self, path: Path) -> np.ndarray | None:
        if path not in self._embeddings:
            face = self.analyzer.analyze(read_image(path))
            self._embeddings[path] = None if face is None else face.embedding
        return self._embeddings[path]
