"""Variants of a model (base model, with a learned prefix, or with edited weights), and the settings that determine an image."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from ldm.contents import digest
from ldm.edited_weights import edited, is_edited_weights
from ldm.experiments.identity_table import PortraitOptions
from ldm.generation import Target
from ldm.loading import ModelFiles, file_hash, read_edited_weights, safetensors_metadata, shapes_of
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import EmbeddingManager, Manager, manager_of_file
from ldm.util import UserError

TOKEN_TABLE = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
C2 = "c2"  # label of images whose prompt has the attributes instead of the name
TARGET = "target, alpha "  # begin of the labels of images sampled by Eq. 5's prediction


@dataclass(frozen=True)
class ImageSettings:
    """Settings that determine an image, together with its prompt, sample number and variant; the keys of manifest.json."""

    model_hash: str   # of the checkpoint
    config_hash: str
    prompt: str       # with {name}
    seed: int
    scale: float
    ddim_steps: int
    precision: str    # of the U-Net, "fp32" or "bf16"

    @classmethod
    def of(cls, files: ModelFiles, options: PortraitOptions, precision: str, prompt: str | None = None) -> "ImageSettings":
        """Settings for images of the model with these files; None is the prompt of the options."""
        return cls(files.hash(), file_hash(files.config_path), prompt or options.prompt_template, options.seed, options.scale,
                   options.ddim_steps, precision)


@dataclass(frozen=True)
class Variant:
    """A learned prefix, a context map, edited weights or Eq. 5's target; without arguments the base model."""

    label: str = "none"  # folder of its images
    file: str = "none"
    hash: str | None = None
    manager: Manager | None = None
    read_weights: Callable[[], Mapping[str, Tensor]] | None = None  # reads edited weights, which may be as large as the model
    target: Target | None = None

    def in_place(self, model: LatentDiffusion) -> AbstractContextManager[None]:
        """Temporarily replace the model's parameters by the edited weights, if the variant has any; restore them on exit."""
        return edited(model, self.read_weights()) if self.read_weights else nullcontext()


BASE = Variant()


def target_variant(template: str, attributes: Mapping[str, str], alpha: float) -> Variant:
    """Images sampled by Eq. 5's prediction without a prefix; `attributes` maps names to c2."""
    prompts = {template.replace("{name}", name): template.replace("{name}", text) for name, text in attributes.items()}
    label = f"{TARGET}{alpha:g}"
    return Variant(label, label, digest(sorted(attributes.items())), target=Target(prompts, alpha))


def load_variants(model: LatentDiffusion, paths: Sequence[Path], files: ModelFiles, labels: Sequence[str] | None = None) -> list[Variant]:
    """`BASE`, then the variant of each file. Prefixes are loaded on the model's device; edited weights are checked and released.

    Args:
        paths: files of prefixes or edited weights.
        files: files of the model.
        labels: labels of the variants and of their image folders; None uses the stems of the files.

    Raises:
        UserError: a file cannot be used with this model, or two files have the same label.
    """
    variants = [BASE]
    for path, label in zip(paths, labels or [path.stem for path in paths], strict=True):
        if label.startswith(TARGET) or label in (C2, *(variant.label for variant in variants)):
            raise UserError(f"{path} has the name of another row, '{label}', and their images would share a folder; rename one of the "
                            "files")
        if is_edited_weights(path):
            read = partial(read_edited_weights, path, shapes_of(model), files.ckpt_path)
            read()  # to check that they fit the model
            if files.edited_weights and safetensors_metadata(path).get("beneath") != file_hash(files.edited_weights):
                raise UserError(f"{path} holds edited weights that were not made on top of --edited_weights {files.edited_weights}; leave "
                                "out one of them")
            variants.append(Variant(label, str(path), file_hash(path), read_weights=read))
        else:
            manager = manager_of_file(model.cond_stage_model, path)
            variants.append(Variant(label, str(path), file_hash(path), manager.requires_grad_(False)))
    return variants


def checkpoint_weights(model: LatentDiffusion, checkpoint: Path, token: str, ckpt_path: Path) -> Mapping[str, Tensor]:
    """Tensors that an attack's checkpoint changes: its edited weights, or the token table with the token's learned row."""
    if is_edited_weights(checkpoint):
        return read_edited_weights(checkpoint, shapes_of(model), ckpt_path)
    manager = EmbeddingManager(model.cond_stage_model, [token], num_vectors_per_token=1)
    manager.load(checkpoint)
    table = model.get_parameter(TOKEN_TABLE).clone()
    table[manager.string_to_token_dict[token]] = manager.string_to_param_dict[token].detach()[0].to(table)
    return {TOKEN_TABLE: table}
