"""Table 2: what a prefix does to images of people and to all other images, in numbers (paper section 4.3).

Identity half: images of S_test without and with the prefix (--group takes S_ID too). Non-identity half: images of COCO's prompts. FID and
KID are always taken against the images of the model as it is, from the same noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm.data.benchmarks import read_benchmark
from ldm.data.captions import caption_of, no_caption
from ldm.data.identities import read_people
from ldm.data.images import read_collection
from ldm.evaluation.attributes import AttributeEncoder, FaRL
from ldm.evaluation.clip_score import ClipScorer, clip_model_of
from ldm.evaluation.faces import FaceAnalyzer
from ldm.evaluation.id_acc import load_gallery
from ldm.evaluation.inception import InceptionFeatures
from ldm.evaluation.portraits import portraits_in
from ldm.evaluation.quality import IdentityScorer, PromptScorer, Scores, identity_row, prompt_row, score_files
from ldm.evaluation.tables import Row
from ldm.experiments.identity_table import people_asked_for
from ldm.experiments.quality import Half, HalfFolder
from ldm.experiments.variants import ImageSettings, Variant
from ldm.left_out import ARCHIVE, NO_CAPTION, NO_FID, LeftOut, Report
from ldm.loading import ModelFiles, file_hash
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.run_folder import versions, write_json
from ldm.sharing import Devices
from ldm.util import UserError

COLUMNS = ("model", "prefix", "half", "fid", "kid", "clip", "attr_acc", "id_acc_mean", "n_images", "fid_protocol")  # of every row
IN_PAPERS_TABLE = {"id": {"fid": "FID (id)", "id_acc_mean": "ID-ACC", "attr_acc": "Attr-ACC", "n_images": "N (id)"},
                   "non_id": {"fid": "FID (non-id)", "clip": "CLIP", "clip_x100": "CLIP x100", "n_images": "N (non-id)"}}

CAPTIONED = "N (CLIP)"  # column of the paper's table where some images have no caption


@dataclass(frozen=True)
class QualityOptions:
    """What is generated and how it is scored, named as the flags of test_fid_clip_score.py."""

    half: Sequence[str]  # of "id" and "non_id"
    benchmark: Sequence[Path] | None
    n_prompts: int
    prompt_template: str
    group: str
    n_names: int | None
    n_samples: int
    ddim_steps: int
    scale: float
    seed: int
    batch_size: int
    fid_protocol: str
    inception_weights: Path | None
    clip: Path | None
    clip_model: str | None
    apl_compat: bool
    count_faces: bool
    attribute_features: str
    farl_weights: Path | None
    people: Path | None
    gallery: Path | None
    face_pack: Path | None
    det_size: Sequence[int]
    det_thresh: float
    threshold: float


class QualityTable:
    """The scorers of Table 2 and the rows that they give.

    Args:
        device: where the scorers run.

    Raises:
        UserError: a file is not what it should be.
    """

    def __init__(self, options: QualityOptions, device: torch.device) -> None:
        self.options = options
        people = read_people(options.people) if "id" in options.half else {}
        self.everybody = list(people)
        self.names = [name for names in people_asked_for(people, options.group, options.n_names).values() for name in names]
        if "id" in options.half and not self.names:
            raise UserError(f"{options.people} has nobody of the group '{options.group}'; give another --group or --people")
        self.texts = {"id": portraits_of(self.names, options.n_samples),
                      "non_id": read_benchmark(options.benchmark, options.n_prompts) if options.benchmark else []}
        self.gallery = load_gallery(options.gallery, self.names) if "id" in options.half else {}
        self.clip = ClipScorer(clip_model_of(options.clip, options.clip_model), options.clip, device) if options.clip else None
        self.features_of = self._clip_features
        if options.fid_protocol != "clip":
            self.features_of = InceptionFeatures(options.inception_weights, options.fid_protocol, device)
        self.scorers: dict[str, PromptScorer | IdentityScorer] = {}
        analyzer = FaceAnalyzer(options.face_pack, options.det_size, options.det_thresh, device=str(device)) if options.face_pack else None
        if "non_id" in options.half:
            self.scorers["non_id"] = PromptScorer(self.features_of, self.clip, analyzer if options.count_faces else None,
                                                  apl_compat=options.apl_compat)
        if "id" in options.half:
            self.scorers["id"] = IdentityScorer(self.features_of, analyzer, self._attribute_encoder(device),
                                                width=len(next(iter(self.gallery.values()))))

    def generated(self, fabric: Devices, model: LatentDiffusion, files: ModelFiles, variants: Sequence[Variant], precision: str,
                  out_dir: Path, arguments: Mapping[str, Any], *, keep_images: int | None = None, resume: bool = True) -> list[Row]:
        """A row for each half and variant, from images that are generated into `out_dir`; none but on rank 0.

        Args:
            arguments: of the command, written beside the images.
            keep_images, resume: see `HalfFolder`.
        """
        rows = []
        if fabric.is_global_zero:
            write_json(out_dir / "arguments.json", {"arguments": arguments, "versions": versions()})
        for name in self.options.half:
            half = self.half(name, self.texts[name], files, precision)
            folder = HalfFolder(fabric, half, variants, out_dir, keep_images=keep_images, resume=resume)
            folder.generate_and_score(model, self.options.batch_size)
            if fabric.is_global_zero:
                base = folder.scores_of(variants[0])
                for variant in variants:
                    scores = base if variant is variants[0] else folder.scores_of(variant)
                    rows.append(self.row(name, scores, None if scores is base else base, [text for text, _ in self.texts[name]],
                                         model=files.name, prefix=variant.file))
                folder.write_pairs()
        return rows

    def half(self, half: str, texts: Sequence[tuple[str, int]], files: ModelFiles, precision: str) -> Half:
        """One half's images of these texts, as the options have them generated and scored."""
        options, prompt = self.options, self.options.prompt_template if half == "id" else "{name}"
        settings = ImageSettings.of(files, prompt=prompt, seed=options.seed, scale=options.scale, ddim_steps=options.ddim_steps,
                                    precision=precision)
        return Half(half, texts, settings, self.scorers[half], self._scored_with(half))

    def existing(self, base_folder: Path, folder: Path, out_dir: Path, arguments: Mapping[str, Any]) -> list[Row]:
        """A row for each of two folders of images that somebody else made; the distances are those from the first.

        Raises:
            UserError: `out_dir` holds images that this program generated, or a folder has nothing to score.
        """
        half, = self.options.half
        if any((out_dir / generated / "manifest.json").exists() for generated in IN_PAPERS_TABLE):
            raise UserError(f"{out_dir} holds a run that drew its images, and its results would be overwritten; "
                            "use another --out_dir")
        left_out, folders = LeftOut(strict=True), (base_folder, folder)
        pictures: Sequence[tuple[Sequence[Path], Sequence[Any]]] = (
            self._people_in(*folders, report=left_out) if half == "id" else
            [_with_captions(one, left_out, scores_captions=self.clip is not None) for one in folders])
        for place, (files, _) in zip(folders, pictures, strict=True):
            if len(files) < 2:
                left_out(NO_FID, f"{place} has one image to score, and FID and KID compare sets of two or more")
        write_json(out_dir / "arguments.json", {"arguments": arguments, "versions": versions()})
        left_out.announce(out_dir)
        base: Scores | None = None
        rows = []
        for place, (files, texts) in zip(folders, pictures, strict=True):
            scores = score_files(files, texts, self.scorers[half], str(place))
            rows.append(self.row(half, scores, base, texts, model=str(place), prefix="unknown"))
            base = base or scores
        return rows

    def row(self, half: str, scores: Scores, base: Scores | None, texts: Sequence[str], *, model: str, prefix: str) -> Row:
        """The row of a set of pictures; `texts`: the prompt or name of each, `base`: see `prompt_row`."""
        measured = prompt_row(scores, base) if half == "non_id" else identity_row(scores, base, texts, self.gallery, self.options.threshold)
        clip_model = self.clip and self.clip.name + (", preprocessing of the released code" if self.options.apl_compat else "")
        used = {"clip_model": clip_model} if half == "non_id" else {"attribute_features": self.options.attribute_features}
        what = {"model": model, "prefix": prefix, "half": half, "fid_protocol": self.options.fid_protocol}
        return dict.fromkeys(COLUMNS) | what | measured | used

    def _people_in(self, *folders: Path, report: Report) -> list[tuple[list[Path], list[str]]]:
        """Files and names of the people who are in all the folders, everybody as often as where there are fewest."""
        found = [portraits_in(folder, self.everybody, report) for folder in folders]
        both = [name for name in self.names if all(name in portraits for portraits in found)]
        if not both:
            raise UserError(f"no person asked for is in both {' and '.join(map(str, folders))}; give another --group or --n_names")
        counts = {name: min(len(portraits[name]) for portraits in found) for name in both}
        names = [name for name in both for _ in range(counts[name])]
        return [([path for name in both for path in portraits[name][:counts[name]]], names) for portraits in found]

    def _clip_features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return self.clip.encode(images).numpy()

    def _attribute_encoder(self, device: torch.device) -> AttributeEncoder | None:
        if self.options.attribute_features == "farl":
            return AttributeEncoder(FaRL(self.options.farl_weights, device), on_face=True)
        return AttributeEncoder(self.clip, on_face=False) if self.options.attribute_features == "clip" else None

    def _scored_with(self, half: str) -> Mapping[str, Any]:
        """Everything that the scores of a half depend on, beside the images."""
        options = self.options
        files = {"inception": options.inception_weights, "clip": options.clip, "farl": options.farl_weights if half == "id" else None}
        settings = {"fid_protocol": options.fid_protocol, "clip_model": self.clip and self.clip.name,
                    **{name: file_hash(path) if path else None for name, path in files.items()}}
        if half == "non_id":
            faces = {"faces_by": self.scorers["non_id"].analyzer.fingerprint()} if options.count_faces else {}
            return settings | {"apl_compat": options.apl_compat} | faces
        return settings | {"attribute_features": options.attribute_features, "faces_by": self.scorers["id"].analyzer.fingerprint()}


def portraits_of(names: Sequence[str], n_samples: int) -> list[tuple[str, int]]:
    """The first image of everybody, then the second: what is kept shows many people, and more samples come at the end."""
    return [(name, sample) for sample in range(n_samples) for name in names]


def papers_table(rows: Sequence[Row]) -> list[Row]:
    """The rows in the paper's layout: one a prefix, the identity half on the left and the other on the right."""
    methods: dict[tuple[str, str], Row] = {}
    captioned = any("n_clip" in row for row in rows)
    for row in rows:
        method = methods.setdefault((row["model"], row["prefix"]), {"model": row["model"], "prefix": row["prefix"]})
        method |= {title: row[column] for column, title in IN_PAPERS_TABLE[row["half"]].items()}
        if captioned and row.get("clip") is not None:
            method[CAPTIONED] = f"{row.get('n_clip', row['n_images'])} of {row['n_images']}"
    columns = ["model", "prefix", *(title for half in IN_PAPERS_TABLE for title in IN_PAPERS_TABLE[half].values()), CAPTIONED]
    return [{column: method[column] for column in columns if column in method} for method in methods.values()]


def _with_captions(folder: Path, report: Report, *, scores_captions: bool) -> tuple[list[Path], list[str | None]]:
    """The image files of a folder and the caption of each, None where it has none."""
    found = read_collection(folder, report)
    records = [record for record in found if not record.source.member]
    for shard in dict.fromkeys(record.source.path for record in found if record.source.member):
        report(ARCHIVE, f"{shard} is an archive, which is not scored; unpack it")
    if not records:
        raise UserError(f"{folder} has no image files outside .tar archives; unpack the archives, or give another folder to --images")
    captions = [caption_of(record.fields) for record in records]
    for record, caption in zip(records, captions, strict=True):
        if scores_captions and caption is None:
            report(NO_CAPTION, f"{no_caption(record.source)}; the CLIP score is that of the others")
    return [record.source.path for record in records], captions
