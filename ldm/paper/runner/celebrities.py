"""The celebrity protocol, "erase these names, keep those": its config, and one piece of work per row.

    <out_dir>/celebrities/<model>/<result>/<hash of the settings>/faces.json    one row per image; written last
    .../id/images/, id/scores/                                                  see ldm/experiments/quality.py

The protocol is MACE's (arXiv 2403.06135): two lists of names, five templates, five seeds, 50 DDIM steps, guidance 7.5. Its detector of
celebrities is replaced by the nearest person of an ArcFace gallery. The base model's piece ends the command if its people are not
recognized, see `ldm.evaluation.celebrity.BaseCheck`.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import cycle, product, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from args import test_id_args
from args.common import as_flags, options_of
from args.paths import found
from ldm.attacks.paraphrases import past_a_gate
from ldm.contents import digest, digest_of
from ldm.data.benchmarks import fill
from ldm.data.celebrities import CelebrityPrompt, is_celebrity_table, read_celebrity_table
from ldm.data.identities import KEEP, read_people
from ldm.evaluation.celebrity import COLUMNS, ERASED, KEPT, OPEN, BaseCheck
from ldm.evaluation.id_acc import image_scores, load_gallery
from ldm.evaluation.tables import Row
from ldm.experiments.identity_table import PortraitOptions, identity_scorer
from ldm.experiments.quality import HalfFolder
from ldm.experiments.variants import BASE, ImageSettings, load_variants
from ldm.loading import ModelFiles
from ldm.paper.config import COSTS, of_preset, slug
from ldm.paper.runner.evaluations import label_of
from ldm.paper.runner.processes import Tools
from ldm.paper.runner.trainings import Source, Training, Transfer, file_of, made_for
from ldm.run_folder import image_path, read_json, write_json
from ldm.sharing import OneDevice
from ldm.util import UserError, first_line

KIND = "celebrities"  # of such a YAML file
GROUP_OF = {"train": ERASED, KEEP: KEPT, "test": OPEN}  # in people.csv
CALLS = 2       # U-Net evaluations per sampling step of an image, with guidance
SHOWN = 2       # names per group in the image grid
NOT_COUNTED = ("out_dir", "devices", "num_nodes", "resume", "preset", "embedding", "models", "images", "group", "n_names", "n_samples",
               "prompt_template", "drift_prompts", "clip", "c2", "target", "threshold", "people")  # they do not affect the rows of faces


@dataclass(frozen=True)
class ProtocolRow:
    """A row: the result of a training, or the base model. With `gate`, prompts for which the gate opens show the base model's images."""

    name: str
    train: Mapping[str, Any] | None = None  # flags of train.py
    gate: bool = False
    seeds: int | None = None                # maximum number of trainings


@dataclass(frozen=True)
class Protocol:
    """Settings of configs/paper/celebrity100.yaml on a preset."""

    name: str
    title: str
    section: str
    remark: str
    columns: Sequence[str]
    photo_templates: Sequence[str]  # with {}; those of the check of the base model
    art_templates: Sequence[str]
    samples: int                    # per name and template
    rows: Sequence[ProtocolRow]
    table: str | None = None        # MACE's table of prompts; None: the groups of people.csv
    distractors: str | None = None  # a gallery of further people
    score: Mapping[str, object] = field(default_factory=dict)  # flags of test_id.py


def read_protocol(path: Path, preset: str) -> Protocol:
    """The protocol of a YAML file on a preset; UserError if the file is not a valid one."""
    try:
        content = of_preset(yaml.safe_load(path.read_text(encoding="utf-8")), preset)
        entries = [of_preset(entry, preset) for entry in content.pop("rows")]
        rows = [ProtocolRow(**entry | {"train": of_preset(entry["train"], preset)} if "train" in entry else entry) for entry in entries]
        content |= {"score": of_preset(content.get("score", {}), preset), "rows": rows, "name": path.stem}
        protocol = Protocol(**{key: value for key, value in content.items() if key not in ("kind", "lists")})
        templates = [*protocol.photo_templates, *protocol.art_templates]
        if rows[0].train is not None or not protocol.photo_templates or any(template.count("{}") != 1 for template in templates):
            raise ValueError("the first row is the base model, and each template has one {}")
        if unknown := [column for column in protocol.columns if column not in (*COLUMNS, *COSTS)]:
            raise ValueError(f"there is no column '{unknown[0]}'; give some of {', '.join((*COLUMNS, *COSTS))}")
    except (TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        raise UserError(f"{path} is no celebrity protocol ({first_line(error)}); give keys as in configs/paper/celebrity100.yaml") from None
    return protocol


@dataclass(frozen=True)
class Probe:
    """An image to generate and to recognize."""

    name: str
    group: str
    template: str
    photo: bool  # the template asks for a photo; False for attacks on a gate
    seed: int
    text: str    # in the template: the name, or a text that attacks a gate

    @property
    def prompt(self) -> str:
        return fill(self.template, self.text)


@dataclass(frozen=True)
class Study:
    """Everything that all rows of a protocol share on a preset."""

    probes: Sequence[Probe]
    files: ModelFiles
    precision: str
    options: PortraitOptions
    distractors: Path | None
    digest: str  # of all settings

    @classmethod
    def of(cls, protocol: Protocol, preset: str) -> "Study":
        """Read the lists; UserError if one is invalid or has no names, SystemExit for a wrong flag of `score`."""
        parser = test_id_args.build_parser()
        typed = as_flags(parser, protocol.score, f"{protocol.name}.yaml", ("out_dir", "devices", "images", "models", "embedding", "group"))
        args = test_id_args.parse_test_id_args(["--preset", preset, *typed])
        probes = probes_of(protocol, args.people, args.n_names)
        distractors = found(protocol.distractors) if protocol.distractors else None
        settings = {flag: value for flag, value in vars(args).items() if flag not in NOT_COUNTED} | {"distractors": distractors}
        return cls(probes, options_of(ModelFiles, args), args.precision, options_of(PortraitOptions, args), distractors,
                   digest_of(settings | {"probes": digest(*probes)}))

    def names(self, group: str) -> list[str]:
        """Names of a group, each once."""
        return list(dict.fromkeys(probe.name for probe in self.probes if probe.group == group))

    @cached_property
    def gallery(self) -> dict[str, np.ndarray]:
        """Reference faces of all names, and of the distractors: further people of the gallery, and those of `distractors`."""
        gallery = load_gallery(self.options.gallery, list(dict.fromkeys(probe.name for probe in self.probes)))
        further = load_gallery(self.distractors) if self.distractors else {}
        return gallery | {f"distractor {name}": face for name, face in further.items()}


def probes_of(protocol: Protocol, people: Path, n_names: int | None) -> list[Probe]:
    """All images of a row: of MACE's table if the protocol has one, of groups of people.csv that it does not list, of attacks on a gate.

    The first images show the first names of each group. UserError if a list is invalid, or there is nobody to erase or to keep.
    """
    templates = {template: template in protocol.photo_templates for template in (*protocol.photo_templates, *protocol.art_templates)}
    names: dict[str, list[str]] = {group: [] for group in GROUP_OF.values()}
    rows: list[CelebrityPrompt] = []
    if protocol.table:
        if not found(protocol.table).is_file() or not is_celebrity_table(found(protocol.table)):
            raise UserError(f"{protocol.table} is not MACE's table of celebrity prompts; put its celebrity_100_concepts.csv there, see "
                            "configs/README.md")
        rows = read_celebrity_table(found(protocol.table))
        if other := next((row.template for row in rows if row.template not in templates), None):
            raise UserError(f"{protocol.table} has prompts of the form '{other}', which {protocol.name}.yaml does not list; add it to its "
                            "photo_templates or art_templates")
        for row in rows:
            names[KEPT if row.kept else ERASED].append(row.name)
    listed = {name for group in names.values() for name in group}
    for person in read_people(people).values():
        group = GROUP_OF[person.group]
        if not rows or (group == OPEN and person.name not in listed):
            names[group].append(person.name)
    chosen = {group: list(dict.fromkeys(own))[:n_names] for group, own in names.items()}
    for group, wanted in ((ERASED, "train"), (KEPT, KEEP)):
        if not chosen[group]:
            raise UserError(f"{protocol.table or people} has nobody of the group {wanted}, whose names are {group}; add them")
    in_groups = ([(group, name) for name in own] for group, own in chosen.items())
    turns = [turn for turns in zip_longest(*in_groups) for turn in turns if turn]
    asked_for = {(row.name, row.template, row.seed) for row in rows}
    asked_for |= {(name, template, seed) for group, name in turns if group == OPEN or not rows
                  for template, seed in product(templates, range(1, 1 + protocol.samples))}
    seeds = sorted({seed for _, _, seed in asked_for})
    probes = [Probe(name, group, template, photo, seed, name) for seed, (template, photo), (group, name)
              in product(seeds, templates.items(), turns) if (name, template, seed) in asked_for]
    attacked = zip(chosen[ERASED], cycle(chosen[KEPT]), strict=False)
    return probes + [Probe(name, kind, protocol.photo_templates[0], False, seeds[0], text) for name, kept in attacked
                     for kind, text in past_a_gate(name, kept).items()]


@dataclass(frozen=True)
class Celebrities:
    """Images of all prompts, generated by a model with a result, and the faces in them."""

    folder: Path
    study: Study
    result: Source  # prefix or edited weights; None is the base model
    base: "Celebrities | None"

    @property
    def needs(self) -> "list[Celebrities | Training | Transfer]":
        return [*([self.base] if self.base else []), *made_for(self.result)]

    @property
    def size(self) -> float:
        return CALLS * self.study.options.ddim_steps * len(self.study.probes)

    def is_done(self) -> bool:
        return (self.folder / "faces.json").exists()

    def make(self, tools: Tools) -> None:
        """Generate and recognize what is missing; UserError if the base model's people are not recognized."""
        began, study, file = time.monotonic(), self.study, file_of(self.result)
        model, precision = tools.model(study.files, study.precision), tools.precision(study.precision)
        analyzer = study.options.analyzer(tools.device)
        variant = load_variants(model, [file], study.files, ["result"])[1] if file else BASE
        prompts = [(probe.prompt, probe.seed) for probe in study.probes]
        images = HalfFolder(OneDevice(), "id", prompts, ImageSettings.of(study.files, study.options, precision, "{name}"),
                            identity_scorer(analyzer, study.gallery), {"faces_by": analyzer.fingerprint()}, [variant], self.folder,
                            keep_images=SHOWN * len(GROUP_OF))
        images.generate_and_score(model, study.options.batch_size)
        scores = image_scores(images.scores_of(variant)["face"], [probe.name for probe in study.probes],
                              [probe.prompt for probe in study.probes], study.gallery)
        rows = [asdict(probe) | row for probe, row in zip(study.probes, scores, strict=True)]
        write_json(self.folder / "faces.json", {"seconds": time.monotonic() - began, "faces": rows})
        if self.base is None:
            refuse_weak_base(BaseCheck.of(rows))

    @cached_property
    def found(self) -> Mapping[str, Any]:
        """"faces", one row per probe in order, and "seconds"; UserError if the file is damaged."""
        found_there = read_json(self.folder / "faces.json", {"seconds", "faces"})
        wanted = [asdict(probe) for probe in self.study.probes]
        if [{key: row.get(key) for key in wanted[0]} for row in found_there["faces"]] != wanted:
            raise UserError(f"{self.folder / 'faces.json'} is damaged; delete it, and the same command creates it again")
        return found_there

    @property
    def faces(self) -> list[Row]:
        """Rows of `image_scores` with the fields of `Probe`."""
        return self.found["faces"]

    def image(self, probe: Probe) -> Path:
        """Path of one of the first images, which are kept."""
        return image_path(self.folder / "id", "none" if self.result is None else "result", probe.prompt, probe.seed)


def celebrities(out_dir: Path, preset: str, study: Study, result: Source = None, base: Celebrities | None = None) -> Celebrities:
    """The piece of a result; `preset` names the model."""
    return Celebrities(out_dir / "celebrities" / slug(Path(preset).stem) / label_of(result) / study.digest, study, result, base)


def refuse_weak_base(check: BaseCheck) -> None:
    """Raise UserError if the base model failed the check."""
    if check.has_failed:
        raise UserError(f"{check}; both lists need 95%, so methods cannot be compared with this recognizer; give a better --face_pack, "
                        "gallery or base model")
