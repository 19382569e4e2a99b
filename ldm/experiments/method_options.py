"""Options of a baseline or an attack, named like the flags of train.py; args/train_methods.py lists the flags of each method."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.loading import ModelFiles


@dataclass(frozen=True)
class MethodOptions:
    """Options of a method; those that it does not read are None."""

    files: ModelFiles  # of the frozen model
    train_method: str
    prompt: str        # name of the run and of its result files
    out_dir: Path
    resume: bool
    devices: str
    num_nodes: int
    precision: str
    seed: int
    # the optimizer; see ldm/finetuning/trainer.py
    iterations: int | None
    iters_per_concept: int | None
    lr: float | None
    batch_size: int | None
    log_every: int | None
    save_every: int | None
    # training data, and names for it
    people: Path | None
    names_file: Path | None
    identity_images: Path | None
    photos: Path | None
    templates: Path | None
    token: str | None
    class_word: str | None
    placeholder: str | None
    embedding: Path | None
    # settings of the methods, as published
    variant: str | None
    parameters: str | None
    negative_guidance: float | None
    start_guidance: float | None
    z_t: str | None
    ddim_steps: int | None
    anchor: str | None
    anchor_prompts: Path | None
    augment: bool | None
    preserve_prompts: Sequence[Path] | None
    erase_scale: float | None
    preserve_scale: float | None
    lamb: float | None
    ti_iterations: int | None
    num_vectors: int | None
    train_text_encoder: bool | None
    # images that the frozen model generates: of the prior, and at the end
    n_prior_images: int | None
    prior_weight: float | None
    scale: float
    eval_ddim_steps: int

    @property
    def phrase(self) -> str:
        """Phrase for the person in an attacker's prompts: the token and the class word."""
        return f"{self.token} {self.class_word}".strip()
