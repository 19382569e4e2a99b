"""Table 1: identity accuracy of people in S_ID and S_test, without and with prefixes (paper sections 4.1 and 4.2)."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from ldm.edited_weights import edited, is_edited_weights
from ldm.evaluation.attributes import attributes_kept
from ldm.evaluation.id_acc import Row
from ldm.evaluation.portraits import Analyzer, IdentityTable
from ldm.generation import Job, batches_of, generate, warn_of_cut_texts
from ldm.loading import ModelFiles, file_hash, read_edited_weights, safetensors_metadata, shapes_of
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import DualEmbeddingManager, EmbeddingManager, manager_for
from ldm.pictures import ImageWriter, read_image
from ldm.run_folder import RunFolder
from ldm.sharing import Devices, gather, share
from ldm.util import UserError

C2 = "c2"           # label of pictures whose prompt has the attributes where the others have the name

FeaturesOf = Callable[[Sequence[np.ndarray]], Any]  # pictures (H, W, 3) uint8 RGB -> unit attribute features (N, D)


@dataclass(frozen=True)
class Drawing:
    """How portraits are drawn: what an image depends on beside the name, the number of the sample and the prefix."""

    model_hash: str   # of the checkpoint
    config_hash: str
    prompt: str  # with {name}
    seed: int
    scale: float
    ddim_steps: int
    precision: str  # of the U-Net, "fp32" or "bf16"


@dataclass(frozen=True)
class Prefix:
    """A learned prefix, or edited weights in its place; without arguments: none, the model as it is."""

    label: str = "none"  # of its pictures' folder
    file: str = "none"
    hash: str | None = None
    manager: EmbeddingManager | DualEmbeddingManager | None = None
    read_weights: Callable[[], Mapping[str, Tensor]] | None = None  # of edited weights, which may be as large as the model

    def in_place(self, model: LatentDiffusion) -> AbstractContextManager[None]:
        """While it lasts, the model computes with the edited weights, if that is what this is; afterwards it is what it was."""
        return edited(model, self.read_weights()) if self.read_weights else nullcontext()


def load_prefixes(model: LatentDiffusion, paths: Sequence[Path], files: ModelFiles, labels: Sequence[str] | None = None) -> list[Prefix]:
    """"none", then the prefix of each file, on the model's device; files of edited weights are read, checked and let go.

    Args:
        files: of the model.
        labels: of the pictures' folders; None: the names of the files.

    Raises:
        UserError: a file cannot be used with this model, or two have one label.
    """
    prefixes = [Prefix()]
    for path, label in zip(paths, labels or [path.stem for path in paths], strict=True):
        if label in (C2, *(prefix.label for prefix in prefixes)):
            raise UserError(f"{path} has the name of another row, '{label}', and their pictures would share a "
                            "folder; rename one of the files")
        if is_edited_weights(path):
            prefixes.append(Prefix(label, str(path), file_hash(path), read_weights=_edited_weights(path, model, files)))
        else:
            manager = manager_for(model.cond_stage_model)
            manager.load(path)
            prefixes.append(Prefix(label, str(path), file_hash(path), manager.requires_grad_(False)))
    return prefixes


def _edited_weights(path: Path, model: LatentDiffusion, files: ModelFiles) -> Callable[[], Mapping[str, Tensor]]:
    """Reads a file of edited weights, which has been read once and fits the model."""
    read = partial(read_edited_weights, path, shapes_of(model), files.ckpt_path)
    read()
    if files.edited_weights and safetensors_metadata(path).get("beneath") != file_hash(files.edited_weights):
        raise UserError(f"{path} holds edited weights, but not on top of those that the model has, of --edited_weights "
                        f"{files.edited_weights}; leave out one of them")
    return read


def identity_rows(fabric: Devices, model: LatentDiffusion, analyzer: Analyzer, gallery: Mapping[str, np.ndarray],
                  people: Mapping[str, Sequence[str]], prefixes: Sequence[Prefix], *, model_name: str, drawing: Drawing,
                  n_samples: int, batch_size: int, threshold: float, out_dir: Path, resume: bool = True,
                  arguments: Mapping[str, Any] | None = None, attributes: Mapping[str, str] | None = None,
                  features_of: FeaturesOf | None = None) -> list[Row]:
    """A row for each group and prefix; pictures, per-image and per-person CSV and a picture grid in `out_dir`.

    Args:
        fabric: its devices share drawing and scoring; each returns all rows.
        gallery: the true face of everybody in `people`, and of whom else rank-1 should choose from.
        people: group ("train", "test") -> names.
        prefixes: see `load_prefixes`.
        threshold: cosine from which a face counts as the person.
        resume: keep pictures that an earlier run finished; they must have been made in the same way.
        arguments: of the command, written beside the pictures.
        attributes: name -> c2; adds the rows "c2", the model as it is with attributes instead of the name.
        features_of: adds attr_kept and attr_random, see `attributes_kept`; needs two samples.

    Returns:
        Rows with model, prefix, group and what `id_acc` returns.

    Raises:
        UserError: `out_dir` holds pictures that were made in another way, or somebody's attributes are asked for and empty.
    """
    unknown = [name for names in people.values() for name in names if attributes is not None and not attributes.get(name)]
    if unknown:
        raise UserError(f"there are no attributes (c2) for {', '.join(unknown[:3])}; add them to --people, or leave out --c2")
    shown = [*prefixes, Prefix(C2, C2)] if attributes else list(prefixes)
    folder = RunFolder.shared(fabric, out_dir, asdict(drawing), {prefix.label: prefix.hash for prefix in shown}, resume=resume,
                              arguments=arguments)
    table = IdentityTable(fabric, analyzer, gallery, threshold, folder.path)
    prompts = [drawing.prompt.replace("{name}", name) for names in people.values() for name in names]
    warn_of_cut_texts(model, prompts, [prefix.manager for prefix in prefixes], what="prompts with names")
    base: dict[str, np.ndarray] = {}  # group -> attribute features of the first prefix's pictures
    for prefix in shown:
        for group, names in people.items():
            described = {name: attributes[name] if prefix.label == C2 else name for name in names}
            portraits = draw_portraits(fabric, model, folder, prefix, described, drawing=drawing, n_samples=n_samples,
                                       batch_size=batch_size, label=f"drawing {model_name}, {group}, {prefix.label}")
            table.add(portraits, model=model_name, prefix=prefix.file, group=group)
            if features_of and n_samples > 1 and len(names) > 1:
                features = portrait_features(fabric, portraits, features_of)
                kept, random = attributes_kept(features, base.setdefault(group, features))
                table.rows[-1] |= {"attr_kept": kept, "attr_random": random}
    table.write_details()
    return table.rows


def portrait_features(fabric: Devices, portraits: Mapping[str, Sequence[Path]], features_of: FeaturesOf) -> np.ndarray:
    """Attribute features of the pictures of each person, (people, samples, D)."""
    people = share(fabric, lambda: list(portraits.values()))
    return np.stack(gather(fabric, [np.asarray(features_of([read_image(path) for path in paths])) for paths in people]))


def draw_portraits(fabric: Devices, model: LatentDiffusion, folder: RunFolder, prefix: Prefix, described: Mapping[str, str], *,
                   drawing: Drawing, n_samples: int, batch_size: int, label: str) -> dict[str, list[Path]]:
    """Files of `n_samples` pictures of each person; those that are not there yet are drawn, by all devices together.

    `described` says by which words the prompt calls each name: by the name itself, or by attributes.
    """
    portraits = {name: [folder.image_path(prefix.label, name, sample) for sample in range(n_samples)] for name in described}
    paths: dict[Job, Path] = {}
    for name, files in portraits.items():
        for sample, path in enumerate(files):  # people with equal attributes take further samples of the same prompt
            prompt = drawing.prompt.replace("{name}", described[name])
            paths[prompt, next(number for number in itertools.count(sample) if (prompt, number) not in paths)] = path
    mine = list(itertools.chain(*share(fabric, lambda: unfinished_batches(list(paths), lambda job: paths[job].exists(), batch_size))))
    weights = prefix.in_place(model) if mine else nullcontext()
    with tqdm(total=len(mine), desc=label, unit="image", disable=not fabric.is_global_zero) as bar, ImageWriter() as writer, weights:
        for _ in draw_jobs(model, mine, paths, prefix, drawing=drawing, batch_size=batch_size, writer=writer, bar=bar):
            pass
    fabric.barrier()
    return portraits


def unfinished_batches(jobs: Sequence[Job], is_finished: Callable[[Job], bool], batch_size: int) -> list[Sequence[Job]]:
    """Which pictures to draw, in batches of `batch_size`, because they are not finished yet.

    With one unfinished picture its whole batch is drawn again, so that a resumed run ends with the same bytes: the last
    bit of an image can depend on the batch that it is computed in.
    """
    return [batch for batch in batches_of(jobs, batch_size) if not all(map(is_finished, batch))]


def draw_jobs(model: LatentDiffusion, jobs: Sequence[Job], paths: Mapping[Job, Path], prefix: Prefix, *, drawing: Drawing,
              batch_size: int, writer: ImageWriter, bar: tqdm) -> Iterator[tuple[Job, np.ndarray]]:
    """The pictures that are not there yet, each on its way into its file; edited weights are `in_place` already."""
    images = generate(model, jobs, embedding_manager=prefix.manager, ddim_steps=drawing.ddim_steps, scale=drawing.scale,
                      seed=drawing.seed, batch_size=batch_size)
    for job, image in images:
        bar.update()
        if not paths[job].exists():
            writer.write(paths[job], image)
            yield job, image
