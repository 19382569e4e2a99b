"""Builds each baseline and attack from the options of train.py, with the images and texts that it needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from args.train_methods import ERASERS
from ldm.attacks.dreambooth import DreamBooth
from ldm.attacks.textual_inversion import TextualInversion, TokenVectors, tokens_of_names
from ldm.baselines import speed, uce
from ldm.baselines.concept_ablation import ConceptAblation
from ldm.baselines.esd import ESD, PARAMETERS_OF
from ldm.baselines.forget_me_not import PROMPT, ForgetMeNot
from ldm.data.benchmarks import different_prompts, fill, read_templates
from ldm.data.celebrities import read_erased_names, read_kept_names, refuse_both
from ldm.data.identities import IdentityImage, identity_images, read_people
from ldm.data.images import CAPTION_FIELDS, ImageSource
from ldm.finetuning.samples import ImageLatents, generated_latents
from ldm.finetuning.trainer import Method
from ldm.finetuning.weights import Weights, parameters_of
from ldm.image_files import image_files
from ldm.left_out import ELSEWHERE, Report, besides
from ldm.loading import ModelFiles
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.context_map import context_map_for, is_map_file
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.sharing import Devices
from ldm.text_files import read_lines
from ldm.util import UserError


@dataclass(frozen=True)
class MethodOptions:
    """Options of a baseline or an attack, named like the flags of train.py; those that the method does not read are None."""

    files: ModelFiles  # of the frozen model
    train_method: str
    prompt: str        # name of the run and of its result files
    out_dir: Path
    resume: bool
    devices: str
    num_nodes: int
    precision: str
    seed: int
    iterations: int | None  # of the optimizer, see ldm/finetuning/trainer.py
    iters_per_concept: int | None
    lr: float | None
    batch_size: int | None
    log_every: int | None
    save_every: int | None
    people: Path | None  # training data, and names for it
    names_file: Path | None
    keep_names: Path | None
    identity_images: Path | None
    photos: Path | None
    templates: Path | None
    token: str | None
    class_word: str | None
    placeholder: str | None
    embedding: Path | None
    variant: str | None  # settings of the methods, as published
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
    n_prior_images: int | None  # images that the frozen model generates: of the prior, and at the end
    prior_weight: float | None
    scale: float
    eval_ddim_steps: int

    @property
    def phrase(self) -> str:
        """Phrase for the person in an attacker's prompts: the token and the class word."""
        return f"{self.token} {self.class_word}".strip()


@dataclass(frozen=True)
class Material:
    """Training data of a method, read once.

    Raises:
        UserError: a list cannot be read, a name is listed twice or has no image, or there are no names and no photos.
    """

    names: list[str]             # names to erase
    kept_names: list[str]        # names that may be shown
    images: list[IdentityImage]  # images of these people
    photos: list[ImageSource]    # photos of the person that an attack learns

    @classmethod
    def read(cls, options: MethodOptions, report: Report) -> "Material":
        """Read the data that the options name."""
        names = _names_to_erase(options) if options.train_method in ERASERS else []
        kept_names = read_kept_names(options.keep_names) if options.keep_names else []
        refuse_both(names, kept_names, options.keep_names)
        images = identity_images(options.identity_images, read_people(options.people), report) if options.identity_images else []
        erased = set(names)
        images = [image for image in images if image.name in erased]
        if options.identity_images and (without := sorted(erased - {image.name for image in images})):
            raise UserError(f"{options.identity_images} has no image of {', '.join(without[:3])}, to be erased; add some, or leave the "
                            "name out")
        return cls(names, kept_names, images, _photos_in(options.photos, report) if options.photos else [])

    @property
    def sources(self) -> list[ImageSource]:
        """Training images: the photos of an attack, or the images of the names."""
        return self.photos or [image.source for image in self.images]

    def latents(self, model: LatentDiffusion) -> tuple[ImageLatents, dict[str, list[int]]]:
        """Images of the names, and per name their indices."""
        of_name = {name: [number for number, image in enumerate(self.images) if image.name == name] for name in self.names}
        return ImageLatents(model, self.sources), of_name


def weights_to_train(options: MethodOptions, model: LatentDiffusion) -> Weights:
    """Float32 copies of the parameters that the method trains; empty for a token. Call it before the model's precision is changed."""
    of_method = {"esd": PARAMETERS_OF.get(options.variant), "uce": "xattn-kv", "speed": "xattn-v", "dreambooth": "full"}
    group = of_method.get(options.train_method, options.parameters)
    return Weights(model, parameters_of(model, group, text_encoder=bool(options.train_text_encoder)) if group else [])


def build_method(options: MethodOptions, material: Material, weights: Weights, fabric: Devices, kept: Callable[[], None]) -> Method:
    """The method of --train_method, with the images and texts that it needs; not for a closed form, see `edit_in_closed_form`.

    All devices share the work of this preparation; `kept` is called on rank 0 after each part of it that is saved.

    Raises:
        UserError: --ddim_steps does not divide the number of training timesteps, or a prompt lacks the anchor.
    """
    model, seed, phrase = weights.model, options.seed, options.phrase
    templates = read_templates(options.templates) if options.templates else [PROMPT]
    saved: dict[str, Any] = {"folder": options.out_dir, "model_hash": options.files.hash(), "seed": seed, "kept": kept}

    def prior_latents(jobs: list[tuple[str, int]]) -> Tensor:
        """Latents (N, 4, h, w) that the frozen model generates for the prompts of the anchor or of the class."""
        return generated_latents(fabric, model, jobs, scale=options.scale, **saved)

    match options.train_method:
        case "esd":
            if model.num_timesteps % options.ddim_steps:
                raise UserError(f"--ddim_steps {options.ddim_steps} does not divide the {model.num_timesteps} timesteps of training; give "
                                "a number that does, such as 50")
            return ESD(weights, material.names, options.negative_guidance, options.start_guidance, bins=options.ddim_steps, seed=seed,
                       photos=material.latents(model) if options.z_t == "noised" else None)
        case "concept_ablation":
            prompts = anchor_prompts(options, templates)
            jobs = [(prompts[number % len(prompts)], number // len(prompts)) for number in range(options.n_prior_images)]
            return ConceptAblation(weights, material.names, options.anchor, [prompt for prompt, _ in jobs], prior_latents(jobs),
                                   noise_based=options.variant == "noise-based", anchor_weight=options.prior_weight,
                                   augment=options.augment, seed=seed)
        case "forget_me_not":
            photos, of_name = material.latents(model)
            tokens = {} if options.variant != "with-ti" else tokens_of_names(
                fabric, photos, of_name, template=PROMPT, iterations=options.ti_iterations, **saved)
            return ForgetMeNot(weights, photos, of_name, tokens, seed)
        case "dreambooth":
            class_prompt = f"a photo of a {options.class_word}"
            jobs = [(class_prompt, number) for number in range(options.n_prior_images if options.prior_weight else 0)]
            return DreamBooth(weights, ImageLatents(model, material.photos), f"a photo of {phrase}", class_prompt, prior_latents(jobs),
                              options.prior_weight, seed)
        case "textual_inversion":
            vectors = TokenVectors(token_manager(options, model), options.token)
            prefixed = options.embedding is not None and vectors.manager.finish is None
            return TextualInversion(model, vectors, ImageLatents(model, material.photos), templates, phrase, prefixed, seed)
    raise AssertionError(options.train_method)


def edit_in_closed_form(options: MethodOptions, material: Material, weights: Weights) -> tuple[dict[str, Tensor], float]:
    """Edited matrices of uce or speed by their keys, and the largest condition number of the inverted matrices."""
    preserve = [text for path in options.preserve_prompts or () for text in different_prompts(path)] + material.kept_names
    given: dict[str, Any] = {"guide": options.anchor, "preserve": preserve, "lamb": options.lamb}
    if options.train_method == "speed":
        return speed.edit(weights, material.names, filtered=options.variant == "filtered", seed=options.seed, **given)
    return uce.edit(weights, material.names, to_end=options.variant == "to-end", erase_scale=options.erase_scale,
                    preserve_scale=options.preserve_scale, **given)


def token_manager(options: MethodOptions, model: LatentDiffusion) -> EmbeddingManager:
    """Manager with the prefix or context map of --embedding, if any, and a new token initialized with the vectors of the class word."""
    def manager_of(*placeholders: str) -> EmbeddingManager:
        words = [options.class_word or "person"] * len(placeholders)
        return EmbeddingManager(model.cond_stage_model, placeholders, initializer_words=words, num_vectors_per_token=1)

    if not options.embedding or is_map_file(options.embedding):
        manager = manager_of(options.token)
        if options.embedding:
            manager.finish = context_map_for(model.cond_stage_model, options.embedding).finish
        return manager
    prefix, manager = manager_of(options.placeholder), manager_of(options.placeholder, options.token)
    prefix.load(options.embedding)  # alone: a manager with one placeholder accepts a file with any placeholder
    manager.string_to_param_dict[options.placeholder] = next(prefix.embedding_parameters())
    return manager


def anchor_prompts(options: MethodOptions, templates: Sequence[str]) -> list[str]:
    """Prompts of --anchor_prompts, or else the templates, with the anchor."""
    if not options.anchor_prompts:
        return [fill(template, options.anchor) for template in dict.fromkeys(templates)]
    prompts = read_lines(options.anchor_prompts, CAPTION_FIELDS)
    wrong = [f"the prompt '{prompt}' without the anchor '{options.anchor}'" for prompt in prompts if options.anchor not in prompt]
    if wrong or not prompts:
        raise UserError(f"{options.anchor_prompts} has {wrong[0] if wrong else 'no prompts'}; write prompts in which a name can take the "
                        "anchor's place")
    return prompts


def _names_to_erase(options: MethodOptions) -> list[str]:
    """Names of --names_file, or else those of S_ID in --people."""
    names, repeated = read_erased_names(options.names_file) if options.names_file else (
        [person.name for person in read_people(options.people).values() if person.group == "train"], 0)
    if repeated or not names:
        what = f"has {repeated} names twice" if repeated else "has nobody of the group train"
        raise UserError(f"{options.names_file or options.people} {what}; give names to erase, each once")
    return names


def _photos_in(folder: Path, report: Report) -> list[ImageSource]:
    """Photos of one person directly in a folder; other image files below it are reported."""
    files = image_files(folder, report)
    photos, people = [path for path in files if path.parent == folder], list(dict.fromkeys(path.parent for path in files))
    if not photos and people:
        raise UserError(f"{folder} holds photos of {len(people)} people, one folder each; give the folder of one, such as {people[0]}")
    if not photos:
        raise UserError(f"{folder} holds no photos{besides(report)}; give a folder with a few photos of one person")
    for path in (path for path in files if path.parent != folder):
        report(ELSEWHERE, f"{path} is not in {folder} itself, which has photos of its own; move it there or remove it")
    return [ImageSource(path) for path in photos]
