"""Plan of a training with a baseline or an attack: checks the options of train.py, describes the run and executes it."""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from args.train_methods import ERASERS
from ldm.attacks.textual_inversion import TextualInversion
from ldm.contents import digest, hashes_of
from ldm.data.attribute_sentences import read_names
from ldm.data.identities import read_people
from ldm.data.images import load_image
from ldm.device import same_devices
from ldm.edited_weights import write_edited_weights
from ldm.experiments.method_builders import BUILDERS, Material, edit_by_uce, images_of, photos_of
from ldm.experiments.method_options import MethodOptions
from ldm.finetuning.samples import Work
from ldm.finetuning.trainer import FinetuningSettings, train
from ldm.finetuning.weights import Weights
from ldm.left_out import LeftOut
from ldm.loading import file_hash, has_two_encoders, read_edited_weights, safetensors_metadata, shapes_of
from ldm.logbook import Logbook
from ldm.run_folder import versions, write_json
from ldm.sharing import Devices
from ldm.util import UserError

# Weight decay and maximum gradient norm of AdamW, as published.
OPTIMIZERS = {**dict.fromkeys(("concept_ablation", "forget_me_not", "dreambooth"), (1e-2, 1.0)), "textual_inversion": (1e-2, float("inf"))}
# Flags that determine the result. Files enter `arguments` by the hash of their content.
LEARNED_FROM = ("train_method", "iterations", "lr", "batch_size", "num_nodes", "seed", "variant", "parameters",
                "negative_guidance", "start_guidance", "z_t", "ddim_steps", "anchor", "augment", "prior_weight", "n_prior_images", "scale",
                "erase_scale", "preserve_scale", "lamb", "ti_iterations", "token", "class_word", "train_text_encoder", "num_vectors",
                "log_every")
FILES = ("anchor_prompts", "templates")


class MethodPlan:
    """Plan of a training, from checked options.

    Args:
        flags: all flags of the command, for arguments.json.

    Raises:
        UserError: a list cannot be read, there are no names to erase and no photos to learn from, a photo cannot be decoded, or the
            method does not support two text encoders.
    """

    def __init__(self, options: MethodOptions, flags: Mapping[str, Any]):
        self.method = options.train_method
        if (self.method == "textual_inversion" or options.variant == "with-ti") and has_two_encoders(options.files.config_path):
            raise UserError(f"--train_method {self.method} learns the vectors of a token for one text encoder, and "
                            f"{options.files.config_path} has two; give another model"
                            f"{', or --variant without-ti' if options.variant else ''}")
        names = names_to_erase(options) if self.method in ERASERS else []
        self.left_out = LeftOut(strict=True)
        self.material = Material(names, images=images_of(options, names, self.left_out) if options.identity_images else [],
                                 photos=photos_of(options.photos, self.left_out) if options.photos else [])
        for photo in self.material.photos:  # finds an unreadable one before a long training
            load_image(photo, size=8)
        self.options = options
        if options.iters_per_concept:
            self.options = replace(options, iterations=options.iters_per_concept * len(names))
        self.flags = {**flags, "iterations": self.options.iterations}

    def describe(self) -> str:
        """Summary of the plan for --dry_run."""
        options, files = self.options, self.options.files
        lines = {"model": f"{files.edited_weights or files.ckpt_path} in {files.config_path}, on {options.devices}, {options.precision}",
                 "method": f"{self.method}{f', {options.variant}' if options.variant else ''}",
                 "of": f"{len(self.material.names)} names" if self.material.names else
                       f"{len(self.material.photos)} photos in {options.photos}, called '{options.phrase}'",
                 "training": "closed form" if options.lr is None else
                             f"{options.iterations} steps of {options.batch_size} samples, learning rate {options.lr:g}",
                 "result": f"{self.path(options.iterations)}"}
        return "\n".join(f"{name:9} {text}" for name, text in lines.items())

    def arguments(self, precision: str) -> dict[str, Any]:
        """Everything that determines the result, as JSON values: flags, and hashes of images, lists and weights."""
        options = self.options
        files = [getattr(options, flag) for flag in FILES if getattr(options, flag)] + [*(options.preserve_prompts or ())]
        files += [options.embedding] if self.method == "textual_inversion" and options.embedding else []
        images = [image.name for image in self.material.images], hashes_of(self.material.sources, options.out_dir / "hashes.json")
        return {name: getattr(options, name) for name in LEARNED_FROM} | {
            "devices": same_devices(options.devices), "precision": precision,
            "images": digest(images), "texts": digest(self.material.names, [file_hash(path) for path in files]),
            "config": file_hash(options.files.config_path), "base_model": options.files.hash()}

    def path(self, step: int | None) -> Path:
        """File of the result after a step; None gives the name without a step."""
        suffix = ".pt" if self.method == "textual_inversion" else ".safetensors"
        return self.options.out_dir / f"{self.options.prompt}{'' if step is None else f'-{step}'}{suffix}"

    def run(self, fabric: Devices, weights: Weights, logbook: Logbook) -> Path:
        """Train `weights`, or resume, and return the file of the result. The logbook records the cost.

        Raises:
            UserError: the result file exists and was made with other settings.
        """
        options, result = self.options, self.path(self.options.iterations)
        record = {"names": self.material.names} | logbook.arguments | {"base_model": file_hash(options.files.ckpt_path)}
        beneath: dict[str, Tensor] = {}
        if options.files.edited_weights:
            beneath = read_edited_weights(options.files.edited_weights, shapes_of(weights.model), options.files.ckpt_path)
            record["beneath"] = file_hash(options.files.edited_weights)
        if fabric.is_global_zero:
            self.refuse_another(result, record)
            written = {"arguments": self.flags, "learned_from": logbook.arguments, "versions": versions()}
            write_json(options.out_dir / "arguments.json", written)
            self.left_out.announce(options.out_dir)
        if self.method == "uce":
            edited, condition = edit_by_uce(options, self.material.names, weights)
            if fabric.is_global_zero:
                print(f"condition number of the inverted matrix: {condition:.3g}")
                write_edited_weights(result, beneath | edited, condition=condition, **record)
        else:
            method = BUILDERS[self.method](options, self.material, weights, Work(fabric, logbook.note_cost))

            def save(step: int) -> None:
                if isinstance(method, TextualInversion):
                    method.trained.save(self.path(step), step=step, **record)
                else:
                    write_edited_weights(self.path(step), beneath | method.trained.state_dict(), step=step, **record)

            train(fabric, method, self.settings(), logbook, save)
        if fabric.is_global_zero:
            logbook.write_cost(result)
        return result

    def refuse_another(self, result: Path, record: dict[str, Any]) -> None:
        """Raise UserError if a closed form would overwrite a result of other settings; for trainings the saved state is checked."""
        if self.method == "uce" and self.options.resume and result.exists():
            there, asked = safetensors_metadata(result), json.loads(json.dumps(record, default=str))
            if different := [key for key, value in asked.items() if there.get(key) != value]:
                raise UserError(f"{result} was made with another {', '.join(different)}; use another --out_dir, or --no-resume to "
                                "replace it")

    def settings(self) -> FinetuningSettings:
        """Settings of the trainer."""
        weight_decay, max_grad_norm = OPTIMIZERS.get(self.method, (0.0, float("inf")))
        flags = {field.name: getattr(self.options, field.name) for field in fields(FinetuningSettings) if hasattr(self.options, field.name)}
        return FinetuningSettings(**flags, weight_decay=weight_decay, max_grad_norm=max_grad_norm)


def names_to_erase(options: MethodOptions) -> list[str]:
    """Names of --names_file, or else those of S_ID in --people.

    Raises:
        UserError: there is no name, or one is listed twice.
    """
    if options.names_file:
        names, repeated = read_names(options.names_file)
    else:
        names, repeated = [person.name for person in read_people(options.people).values() if person.group == "train"], 0
    if repeated or not names:
        what = f"has {repeated} names twice" if repeated else "has nobody of the group train"
        raise UserError(f"{options.names_file or options.people} {what}; give names to erase, each once")
    return names
