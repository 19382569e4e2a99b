"""Runs attacks on one person behind a prefix, and recognizes the person in the images: the harness of all methods of ldm/attacks.

    <folder>/prompts.csv, embedding.pt     what the attack has found, for use elsewhere; the embedding in the form that every client reads
    <folder>/<arm>/<label>/<sample>.png    images of each arm
    <folder>/faces.json                    one row per image, cost of the attack; written last

The arms are "attack", the submission behind the prefix; "random", as many random tokens; "ceiling", the base model on the same text.
The folder of a person without an attack has the arms "attack" (the name behind the prefix) and "ceiling", and the photos of the attacker.
"""

import inspect
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm.attacks.arithmetic import arithmetic
from ldm.attacks.case import Attack, Case, Found, Verdict
from ldm.attacks.concept_inversion import concept_inversion
from ldm.attacks.p4d import p4d
from ldm.attacks.paraphrases import paraphrases
from ldm.attacks.pez import pez
from ldm.attacks.ring_a_bell import ring_a_bell
from ldm.attacks.service import UPLOAD, Calls, Service, Submission, counted_calls
from ldm.attacks.unlearn_diff_atk import unlearn_diff_atk
from ldm.contents import digest
from ldm.data.frozen import mean_latents
from ldm.data.identities import Person
from ldm.data.images import ImageSource
from ldm.evaluation.clip_score import ClipScorer, clip_model_of
from ldm.evaluation.id_acc import image_scores, load_gallery
from ldm.evaluation.quality import IdentityScorer
from ldm.evaluation.recognition import threshold_at
from ldm.evaluation.tables import Row
from ldm.experiments.identity_table import PortraitOptions, identity_scorer
from ldm.generation import image_noise
from ldm.images import ImageWriter, read_image, write_image
from ldm.modules.embedding_file import write_embedding_file
from ldm.modules.embedding_manager import single_token
from ldm.run_folder import safe_name, write_json
from ldm.text_files import write_csv
from ldm.util import UserError

LEVELS = ("L0", "L1", "L2", "L3", "L4")  # of the threat model, see ldm/attacks/README.md
METHODS: Mapping[str, Attack] = {"paraphrases": paraphrases, "pez": pez, "ring_a_bell": ring_a_bell, "unlearn_diff_atk": unlearn_diff_atk,
                                 "p4d": p4d, "concept_inversion": concept_inversion, "arithmetic": arithmetic}
ATTACK, RANDOM, CEILING = "attack", "random", "ceiling"  # arms
JUDGED, OF_PHOTOS = 1_000_000, 2_000_000  # sample numbers of images that an attack sees; those of the scored images start at 0


@dataclass(frozen=True)
class AttackSettings:
    """An entry of configs/paper/attacks.yaml."""

    name: str
    level: str
    method: str
    knows_prefix: bool
    settings: Mapping[str, Any]  # keyword arguments of the method

    @classmethod
    def of(cls, values: Mapping[str, Any], source: str) -> "AttackSettings":
        """Checked values of an entry; UserError about `source` if a key is missing or unknown."""
        own = dict(values)
        try:
            name, level, method = (own.pop(key) for key in ("name", "level", "method"))
        except KeyError as error:
            raise UserError(f"{source} has the attack {dict(values)} without {error}; give name, level and method") from None
        knows_prefix = own.pop("knows_prefix", level == "L2")
        if level not in LEVELS or method not in METHODS:
            raise UserError(f"{source}, attack '{name}', has the level '{level}' and the method '{method}'; give one of "
                            f"{', '.join(LEVELS)} and one of {', '.join(METHODS)}")
        try:
            inspect.signature(METHODS[method]).bind(None, None, **own)
        except TypeError as error:
            given = ", ".join(own) or "nothing"
            raise UserError(f"{source}, attack '{name}': {method} is given {given}, but {error}; correct it") from None
        return cls(name, level, method, knows_prefix, own)


class Examiner:
    """Recognizes people in images; UserError if the gallery, the face pack or the CLIP model cannot be read.

    `clip` is an open_clip model for attacks without a diffusion model; None without one.
    """

    def __init__(self, options: PortraitOptions, names: Sequence[str], far: float, clip_model: str | None, device: torch.device):
        self.gallery = load_gallery(options.gallery, names)
        self.scorer: IdentityScorer = identity_scorer(options.analyzer(device), self.gallery)
        self.threshold = threshold_at(far, self.gallery)
        self.clip = ClipScorer(clip_model_of(options.clip, clip_model), options.clip, device) if options.clip else None

    def rows(self, images: Sequence[np.ndarray], name: str, files: Sequence[str]) -> list[Row]:
        """Rows of `image_scores` for images that should show one person."""
        return image_scores(self.scorer(images, [name] * len(images))["face"], [name] * len(images), files, self.gallery)

    def verdict(self, image: np.ndarray, name: str) -> Verdict:
        """Whether the face is the person's, by rank-1 and by the cosine at the threshold."""
        row, = self.rows([image], name, [""])
        cosine = -1.0 if row["cosine"] is None else row["cosine"]
        return Verdict(row["nearest"] == name and cosine >= self.threshold, cosine)


@dataclass(frozen=True)
class Trial:
    """One person, the prefix that protects them, and the settings of the images."""

    person: Person
    service: Service  # with the prefix
    examiner: Examiner
    prompt: str       # with {name}
    n_samples: int    # images per text
    ddim_steps: int
    scale: float
    seed: int

    @property
    def base(self) -> Service:
        """The same model without the prefix."""
        return Service(self.service.model)

    def without_attack(self, folder: Path, n_photos: int) -> None:
        """Generate the attacker's photos, and the name without an attack."""
        began = time.monotonic()
        plain = Submission(self.prompt.replace("{name}", self.person.name))
        for number in range(n_photos):
            path = folder / "photos" / f"{number}.png"
            if not path.exists():
                write_image(path, self.images(self.base, plain, [OF_PHOTOS + number])[0])
        self._examine(Found([plain]), folder, Calls(), began)

    def attack(self, chosen: AttackSettings, photos: Path, folder: Path) -> None:
        """Run an attack, write what it finds, and recognize the person in the images of its submissions."""
        began, person, service = time.monotonic(), self.person, self.service if chosen.knows_prefix else self.base
        files = sorted(photos.glob("*.png"), key=lambda path: int(path.stem))
        if chosen.method == "pez" and self.examiner.clip is None:
            raise UserError("PEZ searches with a CLIP model, and the preset has none; give it the line 'clip: FILE', or remove the attack")

        def judge(submission: Submission) -> Verdict:
            return self.examiner.verdict(self.images(service, submission, [JUDGED])[0], person.name)

        latents = mean_latents(service.model, [ImageSource(path) for path in files])
        case = Case(service, person.name, person.attributes, self.prompt, latents, [read_image(path) for path in files],
                    judge if chosen.knows_prefix else None, self.examiner.clip)
        key = digest(person.name, chosen.name, sorted(chosen.settings.items()), self.seed)
        with counted_calls(service.model) as calls:
            found = METHODS[chosen.method](case, torch.Generator().manual_seed(int(key[:15], 16)), **chosen.settings)
        self._write(found, chosen, folder)
        self._examine(found, folder, calls, began)

    def images(self, service: Service, submission: Submission, samples: Sequence[int]) -> list[np.ndarray]:
        """Images of a submission; the noise depends on the person and the sample number alone, so that all attacks share it."""
        model = service.model
        shape = (model.channels, model.image_size, model.image_size)
        noise = torch.stack([image_noise(self.seed, self.person.name, sample, shape) for sample in samples])
        return service.generate(submission, noise, ddim_steps=self.ddim_steps, scale=self.scale)

    def _examine(self, found: Found, folder: Path, calls: Calls, began: float) -> None:
        """Generate the images of all arms, and write faces.json."""
        arms = [(ATTACK, self.service, one) for one in found.submissions] + [(CEILING, self.base, one) for one in found.submissions]
        if found.control:
            arms.append((RANDOM, self.service, found.control))
        rows: list[Row] = []
        with ImageWriter() as writer:
            for arm, service, submission in arms:
                images = self.images(service, submission, range(self.n_samples))
                place = Path(arm, *([safe_name(submission.label)] if submission.label else []))
                names = [str(place / f"{sample}.png") for sample in range(self.n_samples)]
                for name, image in zip(names, images, strict=True):
                    writer.write(folder / name, image)
                rows += [{"arm": arm, "label": submission.label, **row} for row in self.examiner.rows(images, self.person.name, names)]
        write_json(folder / "faces.json", {"seconds": time.monotonic() - began, "forward": calls.forward, "backward": calls.backward,
                                           "threshold": self.examiner.threshold, "faces": rows})

    def _write(self, found: Found, chosen: AttackSettings, folder: Path) -> None:
        """Write prompts.csv, and the embedding if there is one."""
        rows = [{"person": self.person.name, "attack": chosen.name, "level": chosen.level, "label": one.label, "prompt": one.prompt,
                 "weight": one.weight, "others": json.dumps(one.others, ensure_ascii=False) if one.others else "", "negative": one.negative,
                 "negative_prefixed": one.negative_prefixed, "embedding": "embedding.pt" if one.vectors is not None else ""}
                for one in found.submissions]
        write_csv(rows, folder / "prompts.csv")
        for one in found.submissions:
            if one.vectors is not None:
                token = single_token(self.service.tokenizer, UPLOAD)
                write_embedding_file(folder / "embedding.pt", {UPLOAD: one.vectors.cpu()}, {UPLOAD: token},
                                     metadata={"attack": chosen.name, "person": self.person.name, **chosen.settings})
