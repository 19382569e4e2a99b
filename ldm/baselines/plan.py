"""From the flags of train.py to a competing method or an attack, ready to be trained."""

import argparse
import hashlib
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.baselines import uce
from ldm.baselines.concept_ablation import ConceptAblation
from ldm.baselines.dreambooth import DreamBooth
from ldm.baselines.esd import ESD, PARAMETERS_OF
from ldm.baselines.forget_me_not import PROMPT, ForgetMeNot
from ldm.baselines.samples import PictureLatents, drawn_latents
from ldm.baselines.textual_inversion import TextualInversion, TokenVectors, tokens_of_names
from ldm.baselines.trainer import Settings, train
from ldm.baselines.weights import Weights, parameters_of
from ldm.data.benchmarks import different_prompts
from ldm.data.identities import IdentityImage, identity_images, read_people
from ldm.data.images import ImageSource, read_text
from ldm.data.templates import fill, read_templates
from ldm.device import same_devices
from ldm.edited_weights import write_edited_weights
from ldm.fabric import Fabric
from ldm.loading import ModelFiles, file_hash, read_edited_weights
from ldm.logbook import Logbook
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.pictures import picture_files
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


def build_esd(args: argparse.Namespace, names: list[str], _fabric: Fabric, model: LatentDiffusion) -> ESD:
    """ESD in the variant asked for."""
    pictures = pictures_of_names(args, names, model) if args.z_t == "noised" else None
    return ESD(model, Weights(model, parameters_of(model, PARAMETERS_OF[args.variant])), names, eta=args.negative_guidance,
               start_guidance=args.start_guidance, bins=args.ddim_steps, seed=args.seed, pictures=pictures)


def build_concept_ablation(args: argparse.Namespace, names: list[str], fabric: Fabric, model: LatentDiffusion) -> ConceptAblation:
    """Concept Ablation, with the anchor's pictures drawn."""
    prompts = anchor_prompts(args)
    jobs = [(prompts[number % len(prompts)], number // len(prompts)) for number in range(args.n_prior_images)]
    return ConceptAblation(model, Weights(model, parameters_of(model, args.parameters)), names, anchor=args.anchor,
                           prompts=[prompt for prompt, _ in jobs], latents=prior_latents(args, fabric, model, jobs),
                           noise_based=args.variant == "noise-based", anchor_weight=args.prior_weight, augment=args.augment,
                           seed=args.seed)


def build_forget_me_not(args: argparse.Namespace, names: list[str], fabric: Fabric, model: LatentDiffusion) -> ForgetMeNot:
    """Forget-Me-Not, after its first stage where there is one."""
    pictures, of_name = pictures_of_names(args, names, model)
    tokens = {}
    if args.variant == "with-ti":
        tokens = tokens_of_names(fabric, model, pictures, of_name, template=PROMPT, iterations=args.ti_iterations, seed=args.seed,
                                 model_hash=ModelFiles.of(args).hash(), folder=args.out_dir)
    return ForgetMeNot(model, Weights(model, parameters_of(model, args.parameters)), pictures, of_name, seed=args.seed, tokens=tokens)


def build_dreambooth(args: argparse.Namespace, _names: list[str], fabric: Fabric, model: LatentDiffusion) -> DreamBooth:
    """DreamBooth, with the class's pictures drawn."""
    class_prompt = f"a photo of a {args.class_word}"
    jobs = [(class_prompt, number) for number in range(args.n_prior_images if args.prior_weight else 0)]
    weights = Weights(model, parameters_of(model, "full", text_encoder=args.train_text_encoder))
    return DreamBooth(model, weights, PictureLatents(model, photos_of(args.photos)), prompt=f"a photo of {phrase_of(args)}",
                      class_prompt=class_prompt, class_latents=prior_latents(args, fabric, model, jobs), prior_weight=args.prior_weight,
                      seed=args.seed)


def build_textual_inversion(args: argparse.Namespace, _names: list[str], _fabric: Fabric, model: LatentDiffusion) -> TextualInversion:
    """Textual inversion, behind the prefix of --embedding if there is one."""
    vectors = TokenVectors(token_manager(args, model), args.token)
    return TextualInversion(model, vectors, PictureLatents(model, photos_of(args.photos)), templates=templates_of(args),
                            phrase=phrase_of(args), prefixed=args.embedding is not None, seed=args.seed)


def edit_by_uce(args: argparse.Namespace, names: list[str], model: LatentDiffusion) -> tuple[dict[str, Tensor], float]:
    """Edited weights of --train_method uce, and the condition number."""
    preserve = [text for path in args.preserve_prompts or () for text in different_prompts(path)]
    to_end = args.variant == "to-end"
    return uce.edit(model, names, guide=args.anchor, preserve=[*preserve, *[""] * to_end], to_end=to_end, erase_scale=args.erase_scale,
                    preserve_scale=args.preserve_scale, lamb=args.lamb)


def token_manager(args: argparse.Namespace, model: LatentDiffusion) -> EmbeddingManager:
    """The prefix of --embedding, if any, and a new token whose vectors start as the class word's."""
    placeholders = [args.placeholder, args.token] if args.embedding else [args.token]
    manager = EmbeddingManager(model.cond_stage_model, placeholders, num_vectors_per_token=args.num_vectors,
                               initializer_words=[args.class_word] * len(placeholders))
    if args.embedding:
        manager.load(args.embedding)
    return manager


def anchor_prompts(args: argparse.Namespace) -> list[str]:
    """Prompts with the anchor in them; UserError for one without."""
    if not args.anchor_prompts:
        return [fill(template, args.anchor) for template in dict.fromkeys(templates_of(args))]
    prompts = lines_of(args.anchor_prompts)
    wrong = [f"the prompt '{prompt}' without the anchor '{args.anchor}'" for prompt in prompts if args.anchor not in prompt]
    if wrong or not prompts:
        raise UserError(f"{args.anchor_prompts} has {wrong[0] if wrong else 'no prompts'}; write prompts in which a name can take the "
                        "anchor's place")
    return prompts


def templates_of(args: argparse.Namespace) -> list[str]:
    """Those of --templates, or the one of DreamBooth."""
    return read_templates(args.templates) if args.templates else [PROMPT]


def phrase_of(args: argparse.Namespace) -> str:
    """What an attacker calls the person: the token and the class word."""
    return f"{args.token} {args.class_word}".strip()


def prior_latents(args: argparse.Namespace, fabric: Fabric, model: LatentDiffusion, jobs: list[tuple[str, int]]) -> Tensor:
    """What the frozen model draws for the prompts of the anchor or of the class."""
    return drawn_latents(fabric, model, jobs, args.out_dir, model_hash=ModelFiles.of(args).hash(), scale=args.scale, seed=args.seed)


def pictures_of_names(args: argparse.Namespace, names: list[str], model: LatentDiffusion) -> tuple[PictureLatents, dict[str, list[int]]]:
    """The pictures of --identity_images that show the names, and the numbers of each name's."""
    images = images_of(args, names)
    of_name = {name: [number for number, image in enumerate(images) if image.name == name] for name in names}
    return PictureLatents(model, [image.source for image in images]), of_name


def images_of(args: argparse.Namespace, names: list[str]) -> list[IdentityImage]:
    """The pictures of --identity_images that show the names; UserError where a name has none."""
    images = [image for image in identity_images(args.identity_images, read_people(args.people)) if image.name in set(names)]
    without = sorted(set(names) - {image.name for image in images})
    if without:
        raise UserError(f"{args.identity_images} has no picture of {', '.join(without[:3])}, to be erased; add some, or leave the name out")
    return images


def photos_of(folder: Path) -> list[ImageSource]:
    """The photos of one person; UserError where the folder holds those of several, or none."""
    photos = picture_files(folder)
    people = [path for path in folder.iterdir() if path.is_dir() and picture_files(path)]
    if photos:
        return [ImageSource(path) for path in photos]
    if people:
        raise UserError(f"{folder} holds photos of {len(people)} people, a folder each; give the folder of one, such as {people[0]}")
    raise UserError(f"{folder} holds no photos; give a folder with a few photos of one person")


def lines_of(path: Path) -> list[str]:
    """The lines of a text file that are neither empty nor start with #."""
    lines = [line.strip() for line in read_text(path).split("\n")]
    return [line for line in lines if line and not line.startswith("#")]


# (flags, names, fabric, model) -> the method, by --train_method; uce has nothing to train.
BUILDERS = {"esd": build_esd, "concept_ablation": build_concept_ablation, "forget_me_not": build_forget_me_not,
            "dreambooth": build_dreambooth, "textual_inversion": build_textual_inversion}
