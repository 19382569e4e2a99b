"""From the flags of train.py to a competing method or an attack, ready to be trained."""

import argparse
import hashlib
from dataclasses import fields
from pathlib import Path
from typing import Any

from ldm.baselines.builders import BUILDERS, edit_by_uce, images_of, lines_of, photos_of, phrase_of
from ldm.baselines.textual_inversion import TextualInversion
from ldm.baselines.trainer import Settings, train
from ldm.data.identities import read_people
from ldm.data.images import ImageSource
from ldm.device import same_devices
from ldm.edited_weights import write_edited_weights
from ldm.fabric import Fabric
from ldm.loading import ModelFiles, file_hash, read_edited_weights
from ldm.logbook import Logbook
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.run_folder import versions, write_json
from ldm.util import UserError

ERASERS = ("esd", "concept_ablation", "uce", "forget_me_not")
# Weight decay and largest gradient norm of AdamW, as published.
OPTIMIZERS = {**dict.fromkeys(("concept_ablation", "forget_me_not", "dreambooth"), (1e-2, 1.0)), "textual_inversion": (1e-2, float("inf"))}
# Flags on which the result depends; the files behind the path flags enter by their content.
LEARNED_FROM = ("train_method", "iterations", "lr", "batch_size", "num_nodes", "seed", "variant", "parameters",
                "negative_guidance", "start_guidance", "z_t", "ddim_steps", "anchor", "augment", "prior_weight", "n_prior_images", "scale",
                "erase_scale", "preserve_scale", "lamb", "ti_iterations", "token", "class_word", "train_text_encoder", "num_vectors",
                "log_every")
FILES = ("anchor_prompts", "templates", "embedding")


class Plan:
    """What will be trained from checked flags of train.py.

    Raises:
        UserError: a list cannot be read, or there is nobody to erase and no photo to learn from.
    """

    def __init__(self, args: argparse.Namespace):
        self.args, self.method = args, args.train_method
        self.names = names_to_erase(args) if self.method in ERASERS else []
        self.pictures: list[ImageSource] = []
        if args.photos:
            self.pictures = photos_of(args.photos)
        elif args.identity_images:
            self.pictures = [image.source for image in images_of(args, self.names)]
        if args.iters_per_concept:
            args.iterations = args.iters_per_concept * len(self.names)

    def describe(self) -> str:
        """The plan in a few lines."""
        args = self.args
        lines = {"model": f"{args.edited_weights or args.ckpt_path} in {args.config_path}, on {args.devices}, {args.precision}",
                 "method": f"{self.method}{f', {args.variant}' if args.variant else ''}",
                 "of": f"{len(self.names)} names" if self.names else
                       f"{len(self.pictures)} photos in {args.photos}, called '{phrase_of(args)}'",
                 "training": "closed form" if args.lr is None else
                             f"{args.iterations} steps of {args.batch_size} samples, learning rate {args.lr:g}",
                 "result": f"{self.path(args.iterations)}"}
        return "\n".join(f"{name:9} {text}" for name, text in lines.items())

    def arguments(self, precision: str) -> dict[str, Any]:
        """What the result depends on, as JSON values: flags, names of S_ID's pictures, and the content of lists, photos and weights."""
        args = self.args
        files = [getattr(args, flag) for flag in FILES if getattr(args, flag)] + (args.preserve_prompts or [])
        pictures = [file_hash(source.path) if args.photos else str(source) for source in self.pictures]  # S_ID has thousands
        data = [self.names, pictures, [file_hash(path) for path in files]]
        return {name: getattr(args, name) for name in LEARNED_FROM} | {
            "devices": same_devices(args.devices), "precision": precision,
            "data": hashlib.sha256(repr(data).encode()).hexdigest()[:16], "config": file_hash(args.config_path),
            "base_model": ModelFiles.of(args).hash()}

    def path(self, step: int | None) -> Path:
        """File of the result after a step."""
        suffix = ".pt" if self.method == "textual_inversion" else ".safetensors"
        return self.args.out_dir / f"{self.args.prompt}{'' if step is None else f'-{step}'}{suffix}"

    def run(self, fabric: Fabric, model: LatentDiffusion, logbook: Logbook) -> Path:
        """Trains, or goes on, and returns the file of the result; the logbook notes the cost."""
        args, result = self.args, self.path(self.args.iterations)
        record = {"names": self.names} | logbook.arguments | {"base_model": file_hash(args.ckpt_path)}
        if fabric.is_global_zero:
            written = {"arguments": vars(args), "learned_from": logbook.arguments, "versions": versions()}
            write_json(args.out_dir / "arguments.json", written)
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        beneath = read_edited_weights(args.edited_weights, shapes, args.ckpt_path) if args.edited_weights else {}
        if self.method == "uce":
            weights, condition = edit_by_uce(args, self.names, model)
            if fabric.is_global_zero:
                print(f"condition number of the matrix that is inverted: {condition:.3g}")
                write_edited_weights(result, beneath | weights, condition=condition, **record)
        else:
            method = BUILDERS[self.method](args, self.names, fabric, model)

            def save(step: int) -> None:
                if isinstance(method, TextualInversion):
                    method.trained.save(self.path(step), step=step, **record)
                else:
                    write_edited_weights(self.path(step), beneath | method.trained.state_dict(), step=step, **record)

            train(fabric, method, self.settings(), logbook, save)
        fabric.barrier()
        if fabric.is_global_zero:
            logbook.write_cost(result)
        return result

    def settings(self) -> Settings:
        """What the trainer needs."""
        weight_decay, max_grad_norm = OPTIMIZERS.get(self.method, (0.0, float("inf")))
        flags = {field.name: getattr(self.args, field.name) for field in fields(Settings) if hasattr(self.args, field.name)}
        return Settings(**flags, weight_decay=weight_decay, max_grad_norm=max_grad_norm)


def names_to_erase(args: argparse.Namespace) -> list[str]:
    """The names of --names_file, or S_ID's of --people; UserError if there is none, or one stands there twice."""
    if args.names_file:
        names = lines_of(args.names_file)
    else:
        names = [person.name for person in read_people(args.people).values() if person.group == "train"]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if not names or twice:
        what = f"names '{twice[0]}' twice" if twice else "names nobody to be erased"
        raise UserError(f"{args.names_file or args.people} {what}; give each name once, one a line, or people of the group train")
    return names
