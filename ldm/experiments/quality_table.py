"""Table 2: metrics of a prefix on images of people and on other images (paper section 4.3).

The identity half has images of S_test without and with the prefix (--group selects S_ID). The non-identity half has images of COCO prompts.
FID and KID always compare with the base model's images from the same noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ldm.data.benchmarks import read_benchmark
from ldm.data.captions import no_caption
from ldm.data.identities import read_people
from ldm.data.images import caption_of, read_collection
from ldm.evaluation.attributes import AttributeEncoder, FaRL
from ldm.evaluation.clip_score import ClipScorer, clip_model_of
from ldm.evaluation.gallery import portraits_in
from ldm.evaluation.id_acc import load_gallery
from ldm.evaluation.inception import InceptionFeatures
from ldm.evaluation.quality import (
    FeaturesOf,
    IdentityScorer,
    PromptScorer,
    Scores,
    identity_row,
    identity_units,
    prompt_row,
    prompt_units,
    score_files,
)
from ldm.evaluation.tables import Row
from ldm.experiments.identity_table import PortraitOptions, people_asked_for
from ldm.experiments.quality import HalfFolder
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
CAPTIONED = "N (CLIP)"  # column of the paper's table if some images have no caption


@dataclass(frozen=True)
class QualityOptions(PortraitOptions):
    """Settings of the images and their scores, named like the flags of test_fid_clip_score.py."""

    half: Sequence[str]  # of "id" and "non_id"
    benchmark: Sequence[Path] | None
    n_prompts: int
    group: str
    n_names: int | None
    fid_protocol: str
    inception_weights: Path | None
    clip_model: str | None
    apl_compat: bool
    count_faces: bool
    attribute_features: str
    farl_weights: Path | None
    people: Path | None


class QualityTable:
    """Scorers and rows of Table 2; raises UserError if an input file is missing or invalid."""

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
        features_of: FeaturesOf = ((lambda images: self.clip.encode(images).numpy()) if options.fid_protocol == "clip" else
                                   InceptionFeatures(options.inception_weights, options.fid_protocol, device))
        self.scorers: dict[str, PromptScorer | IdentityScorer] = {}
        analyzer = options.analyzer(device) if options.face_pack else None
        if "non_id" in options.half:
            self.scorers["non_id"] = PromptScorer(features_of, self.clip, analyzer if options.count_faces else None,
                                                  apl_compat=options.apl_compat)
        if "id" in options.half:
            attributes = None
            if options.attribute_features == "farl":
                attributes = AttributeEncoder(FaRL(options.farl_weights, device), on_face=True)
            elif options.attribute_features == "clip":
                attributes = AttributeEncoder(self.clip, on_face=False)
            self.scorers["id"] = IdentityScorer(features_of, analyzer, attributes, width=len(next(iter(self.gallery.values()))))

    def generated(self, fabric: Devices, model: LatentDiffusion, files: ModelFiles, variants: Sequence[Variant], precision: str,
                  out_dir: Path, arguments: Mapping[str, Any], *, keep_images: int | None = None, resume: bool = True) -> list[Row]:
        """One row per half and variant, from images generated to `out_dir`; empty except on rank 0.

        Args:
            variants: see `load_variants`; the first is the base model.
            arguments: arguments of the command, written next to the images.
            keep_images, resume: see `HalfFolder`.
        """
        rows = []
        if fabric.is_global_zero:
            write_json(out_dir / "arguments.json", {"arguments": arguments, "versions": versions()})
        for half in self.options.half:
            folder = self.folder(fabric, half, self.texts[half], files, precision, variants, out_dir, keep_images, resume)
            folder.generate_and_score(model, self.options.batch_size)
            if fabric.is_global_zero:
                base: Scores | None = None
                for variant in variants:
                    scores = folder.scores_of(variant)
                    rows.append(self.row(half, scores, base, [text for text, _ in folder.texts], model=files.name, file=variant.file))
                    base = base or scores
                folder.write_pairs()
        return rows

    def folder(self, fabric: Devices, half: str, texts: Sequence[tuple[str, int]], files: ModelFiles, precision: str,
               variants: Sequence[Variant], out_dir: Path, keep_images: int | None = None, resume: bool = True) -> HalfFolder:
        """Folder of a half with these texts and the settings of the options; see `HalfFolder`."""
        options, paths = self.options, {"inception": self.options.inception_weights, "clip": self.options.clip}
        settings = ImageSettings.of(files, options, precision, options.prompt_template if half == "id" else "{name}")
        paths["farl"] = options.farl_weights if half == "id" else None
        scored_with: dict[str, Any] = {name: path and file_hash(path) for name, path in paths.items()}
        scored_with |= {"fid_protocol": options.fid_protocol, "clip_model": self.clip and self.clip.name}
        scored_with |= {"attribute_features": options.attribute_features} if half == "id" else {"apl_compat": options.apl_compat}
        if half == "id" or options.count_faces:
            scored_with["faces_by"] = self.scorers[half].analyzer.fingerprint()
        return HalfFolder(fabric, half, texts, settings, self.scorers[half], scored_with, variants, out_dir, keep_images, resume)

    def existing(self, base_folder: Path, folder: Path, out_dir: Path, arguments: Mapping[str, Any]) -> list[Row]:
        """One row for each of two folders of existing images, with distances to the first.

        Raises UserError if `out_dir` holds images that this program generated, or a folder has no images to score.
        """
        half, = self.options.half
        if any((out_dir / generated / "manifest.json").exists() for generated in IN_PAPERS_TABLE):
            raise UserError(f"{out_dir} holds a run with generated images, whose results would be overwritten; use another --out_dir")
        left_out, folders = LeftOut(strict=True), (base_folder, folder)
        found: Sequence[tuple[Sequence[Path], Sequence[Any]]] = (
            self._people_in(*folders, report=left_out) if half == "id" else
            [_with_captions(one, left_out, scores_captions=self.clip is not None) for one in folders])
        for place, (files, _) in zip(folders, found, strict=True):
            if len(files) < 2:
                left_out(NO_FID, f"{place} has one image to score, and FID and KID compare sets of two or more")
        write_json(out_dir / "arguments.json", {"arguments": arguments, "versions": versions()})
        left_out.announce(out_dir)
        base: Scores | None = None
        rows = []
        for place, (files, texts) in zip(folders, found, strict=True):
            scores = score_files(files, texts, self.scorers[half], str(place))
            rows.append(self.row(half, scores, base, texts, model=str(place), file="unknown"))
            base = base or scores
        return rows

    def row(self, half: str, scores: Scores, base: Scores | None, texts: Sequence[str], *, model: str, file: str) -> Row:
        """The row of a set of images. `texts` are their prompts or names; for `base` see `prompt_row`."""
        measured = prompt_row(scores, base) if half == "non_id" else identity_row(scores, base, texts, self.gallery, self.options.threshold)
        clip_model = self.clip and self.clip.name + (", preprocessing of the released code" if self.options.apl_compat else "")
        used = {"clip_model": clip_model} if half == "non_id" else {"attribute_features": self.options.attribute_features}
        what = {"model": model, "prefix": file, "half": half, "fid_protocol": self.options.fid_protocol}
        return dict.fromkeys(COLUMNS) | what | measured | used

    def units(self, half: str, scores: Scores, base: Scores | None, texts: Sequence[str]) -> Mapping[str, Sequence[float | None]]:
        """Metrics of the row for each person, or image without one, by the row's key; arguments as in `row`."""
        return prompt_units(scores) if half == "non_id" else identity_units(scores, base, texts, self.gallery)

    def _people_in(self, *folders: Path, report: Report) -> list[tuple[list[Path], list[str]]]:
        """Files and names of the people in all folders, with equal numbers of images per person in each folder."""
        found = [portraits_in(folder, self.everybody, report) for folder in folders]
        both = [name for name in self.names if all(name in portraits for portraits in found)]
        if not both:
            raise UserError(f"no person asked for is in both {' and '.join(map(str, folders))}; give another --group or --n_names")
        counts = {name: min(len(portraits[name]) for portraits in found) for name in both}
        names = [name for name in both for _ in range(counts[name])]
        return [([path for name in both for path in portraits[name][:counts[name]]], names) for portraits in found]


def portraits_of(names: Sequence[str], n_samples: int) -> list[tuple[str, int]]:
    """Pairs (name, sample number): the first sample of every name, then the second, so that the first images show many people."""
    return [(name, sample) for sample in range(n_samples) for name in names]


def papers_table(rows: Sequence[Row]) -> list[Row]:
    """The rows in the paper's layout: one per prefix, the identity half on the left and the other on the right."""
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
    """Image files of a folder and their captions, None for an image without one."""
    found = read_collection(folder, report)
    captions = {source: caption_of(fields) for source, fields in found.items() if not source.member}
    for shard in dict.fromkeys(source.path for source in found if source.member):
        report(ARCHIVE, f"{shard} is an archive, which is not scored; unpack it")
    if not captions:
        raise UserError(f"{folder} has no image files outside .tar archives; unpack the archives, or give another folder to --images")
    for source, caption in captions.items():
        if scores_captions and caption is None:
            report(NO_CAPTION, f"{no_caption(source)}; the CLIP score is that of the others")
    return [source.path for source in captions], list(captions.values())
