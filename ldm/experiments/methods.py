"""Training with a baseline or an attack: the plan checks the options of train.py, describes the run and executes it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from args.common import PORTRAIT
from args.train_methods import CLOSED_FORM
from ldm.attacks.textual_inversion import TextualInversion
from ldm.contents import digest, hashes_of
from ldm.data.identities import KEEP, Person, read_people
from ldm.data.images import load_image
from ldm.device import same_devices
from ldm.edited_weights import edited, write_edited_weights
from ldm.experiments.method_builders import Material, MethodOptions, build_method, edit_in_closed_form
from ldm.experiments.variants import BASE, Variant, checkpoint_weights, load_variants
from ldm.finetuning.trainer import FinetuningSettings, train
from ldm.finetuning.weights import Weights
from ldm.generation import generate, to_uint8
from ldm.images import image_grid
from ldm.left_out import LeftOut
from ldm.loading import (
    file_hash,
    has_two_encoders,
    read_edited_weights,
    read_state_dict,
    safetensors_metadata,
    shapes_of,
    weights_hash,
)
from ldm.logbook import Logbook
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.run_folder import versions, write_json
from ldm.sharing import Devices
from ldm.util import UserError, warn, write_atomically

# Weight decay and maximum gradient norm of AdamW, as published.
OPTIMIZERS = {**dict.fromkeys(("concept_ablation", "forget_me_not", "dreambooth"), (1e-2, 1.0)), "textual_inversion": (1e-2, float("inf")),
              "esd": (0.0, float("inf"))}
# Flags that determine the result. Files enter `arguments` by the hash of their content.
LEARNED_FROM = ("train_method", "iterations", "lr", "batch_size", "num_nodes", "seed", "variant", "parameters", "negative_guidance",
                "start_guidance", "z_t", "ddim_steps", "anchor", "augment", "prior_weight", "n_prior_images", "scale", "erase_scale",
                "preserve_scale", "lamb", "ti_iterations", "token", "class_word", "train_text_encoder", "num_vectors", "log_every")
PHOTOS_SHOWN = 4


class MethodPlan:
    """Plan of a training, from checked options; `flags` are all flags of the command, for arguments.json.

    Raises:
        UserError: the training data is missing or invalid (see `Material`), a photo cannot be decoded, or the method does not support
            two text encoders.
    """

    def __init__(self, options: MethodOptions, flags: Mapping[str, Any]):
        self.method = options.train_method
        if (self.method == "textual_inversion" or options.variant == "with-ti") and has_two_encoders(options.files.config_path):
            raise UserError(f"--train_method {self.method} learns the vectors of a token for one text encoder, and "
                            f"{options.files.config_path} has two; give another model"
                            f"{', or --variant without-ti' if options.variant else ''}")
        self.left_out = LeftOut(strict=True)
        self.material = Material.read(options, self.left_out)
        for photo in self.material.photos:  # finds an unreadable one before a long training
            load_image(photo, size=8)
        self.options = options
        if options.iters_per_concept:
            self.options = replace(options, iterations=options.iters_per_concept * len(self.material.names))
        self.flags = {**flags, "iterations": self.options.iterations}

    def describe(self) -> str:
        """Summary of the plan for the console."""
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
        files = [options.anchor_prompts, options.templates, *(options.preserve_prompts or ()), options.keep_names]
        files += [options.embedding] if self.method == "textual_inversion" else []
        images = [image.name for image in self.material.images], hashes_of(self.material.sources, options.out_dir / "hashes.json")
        return {name: getattr(options, name) for name in LEARNED_FROM} | {
            "devices": same_devices(options.devices), "precision": precision,
            "images": digest(images), "texts": digest(self.material.names, [file_hash(path) for path in files if path]),
            "config": file_hash(options.files.config_path), "base_model": options.files.hash()}

    def path(self, step: int | None) -> Path:
        """File of the result after a step; None gives the name without a step."""
        suffix = ".pt" if self.method == "textual_inversion" else ".safetensors"
        return self.options.out_dir / f"{self.options.prompt}{'' if step is None else f'-{step}'}{suffix}"

    def run(self, fabric: Devices, weights: Weights, logbook: Logbook) -> Path:
        """Train `weights`, or resume, and return the file of the result. The logbook records the cost.

        Raises UserError if the result file of a closed form exists and was made with other settings.
        """
        options, result = self.options, self.path(self.options.iterations)
        record = {"names": self.material.names} | logbook.arguments | {"base_model": file_hash(options.files.ckpt_path)}
        beneath: dict[str, Tensor] = {}
        if options.files.edited_weights:
            beneath = read_edited_weights(options.files.edited_weights, shapes_of(weights.model), options.files.ckpt_path)
            record["beneath"] = file_hash(options.files.edited_weights)
        if fabric.is_global_zero:
            if self.method in CLOSED_FORM and options.resume and result.exists():  # a training compares its saved state instead
                there, asked = safetensors_metadata(result), json.loads(json.dumps(record, default=str))
                if different := [key for key, value in asked.items() if there.get(key) != value]:
                    raise UserError(f"{result} was made with another {', '.join(different)}; use another --out_dir, or --no-resume to "
                                    "replace it")
            written = {"arguments": self.flags, "learned_from": logbook.arguments, "versions": versions()}
            write_json(options.out_dir / "arguments.json", written)
            self.left_out.announce(options.out_dir)
            record["base_weights"] = weights_hash(read_state_dict(options.files.ckpt_path), shapes_of(weights.model))
        if self.method in CLOSED_FORM:
            tensors, condition = edit_in_closed_form(options, self.material, weights)
            if fabric.is_global_zero:
                print(f"condition number of the inverted matrix: {condition:.3g}")
                write_edited_weights(result, beneath | tensors, condition=condition, **record)
        else:
            method = build_method(options, self.material, weights, fabric, logbook.note_cost)

            def save(step: int) -> None:
                if isinstance(method, TextualInversion):
                    method.trained.save(self.path(step), step=step, **record)
                else:
                    write_edited_weights(self.path(step), beneath | method.trained.state_dict(), step=step, **record)

            settings = FinetuningSettings(options.iterations, options.batch_size, options.lr, *OPTIMIZERS[self.method],
                                          options.log_every, options.save_every)
            train(fabric, method, settings, logbook, save)
        if fabric.is_global_zero:
            logbook.write_cost(result)
        return result


def people_of(plan: MethodPlan) -> Mapping[str, Person]:
    """People of --people for the final table; with --names_file, erased names are the group train, and others but S_keep the group test."""
    options = plan.options
    people = read_people(options.people) if options.people else {}
    if not options.names_file:
        return people
    if unknown := [name for name in plan.material.names if name not in people]:
        warn(f"{', '.join(unknown[:3])} of {options.names_file} {'is' if len(unknown) == 1 else 'are'} not in --people {options.people}, "
             "and will not be in the final table and images")
    groups = dict.fromkeys(people, "test") | dict.fromkeys(plan.material.kept_names, KEEP) | dict.fromkeys(plan.material.names, "train")
    return {name: person if person.group == KEEP else replace(person, group=groups[name]) for name, person in people.items()}


def attack_report(plan: MethodPlan, fabric: Devices, model: LatentDiffusion, result: Path) -> str:
    """Write `pictures.png`: photos, and images of the person before the attack, after it, and with the prefix of --embedding.

    Returns:
        A sentence for the console, empty except on rank 0, which alone generates the images.
    """
    if not fabric.is_global_zero:
        return ""
    options, photos = plan.options, plan.material.photos[:PHOTOS_SHOWN]
    jobs = [(PORTRAIT.replace("{name}", options.phrase), sample) for sample in range(len(photos))]

    def images_of(variant: Variant) -> list[np.ndarray]:
        return [image for _, image in generate(model, jobs, embedding_manager=variant.manager, ddim_steps=options.eval_ddim_steps,
                                               scale=options.scale, seed=0)]

    rows = {"photos": [to_uint8(load_image(source, 8 * model.image_size)[None])[0] for source in photos],
            "before the attack": images_of(BASE)}
    _, *variants = load_variants(model, [options.embedding] if options.embedding else [], options.files)
    with edited(model, checkpoint_weights(model, result, options.token, options.files.ckpt_path)):
        rows |= {"after it": images_of(BASE), **{f"after it, with {variant.label}": images_of(variant) for variant in variants}}
    sheet = image_grid(list(rows.values()), list(rows), [prompt for prompt, _ in jobs])
    write_atomically(options.out_dir / "pictures.png", sheet.save)
    return f"photos and generated images of '{options.phrase}' side by side: {options.out_dir / 'pictures.png'}"
