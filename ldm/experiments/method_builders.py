"""Builds each method from the options of train.py, with the images and texts that it needs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.attacks.dreambooth import DreamBooth
from ldm.attacks.textual_inversion import TextualInversion, TokenVectors, tokens_of_names
from ldm.baselines import uce
from ldm.baselines.concept_ablation import ConceptAblation
from ldm.baselines.esd import ESD, PARAMETERS_OF
from ldm.baselines.forget_me_not import PROMPT, ForgetMeNot
from ldm.data.identities import IdentityImage, identity_images, read_people
from ldm.data.images import CAPTION_FIELDS, ImageSource
from ldm.data.prompts import different_prompts, fill, read_templates
from ldm.experiments.method_options import MethodOptions
from ldm.finetuning.samples import ImageLatents, Work, generated_latents
from ldm.finetuning.weights import Weights, parameters_of
from ldm.image_files import image_files
from ldm.left_out import ELSEWHERE, Report, besides
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.context_map import context_map_for, is_map_file
from ldm.modules.embedding_manager import EmbeddingManager, MappedManager
from ldm.text_files import read_lines
from ldm.util import UserError


@dataclass(frozen=True)
class Material:
    """Training data of a method, read once."""

    names: list[str] = field(default_factory=list)             # names to erase
    images: list[IdentityImage] = field(default_factory=list)  # images of these people
    photos: list[ImageSource] = field(default_factory=list)    # photos of the person that an attack learns

    @property
    def sources(self) -> list[ImageSource]:
        """Training images: the photos of an attack, or the images of the names."""
        return self.photos or [image.source for image in self.images]


def weights_to_train(options: MethodOptions, model: LatentDiffusion) -> Weights:
    """Float32 copies of the parameters that the method trains; empty for a token. Call it before the model's precision is changed."""
    of_method = {"esd": PARAMETERS_OF.get(options.variant), "uce": "xattn-kv", "dreambooth": "full"}
    group = of_method.get(options.train_method, options.parameters)
    return Weights(model, parameters_of(model, group, text_encoder=bool(options.train_text_encoder)) if group else [])


def build_esd(options: MethodOptions, material: Material, weights: Weights, _work: Work) -> ESD:
    """ESD of --variant.

    Raises:
        UserError: --ddim_steps does not divide the number of training timesteps.
    """
    if weights.model.num_timesteps % options.ddim_steps:
        raise UserError(f"--ddim_steps {options.ddim_steps} does not divide the {weights.model.num_timesteps} timesteps of training; give "
                        "a number that does, such as 50")
    photos = latents_of_names(material, weights.model) if options.z_t == "noised" else None
    return ESD(weights, material.names, eta=options.negative_guidance, start_guidance=options.start_guidance, bins=options.ddim_steps,
               seed=options.seed, photos=photos)


def build_concept_ablation(options: MethodOptions, material: Material, weights: Weights, work: Work) -> ConceptAblation:
    """Concept Ablation, with generated images of the anchor."""
    prompts = anchor_prompts(options)
    jobs = [(prompts[number % len(prompts)], number // len(prompts)) for number in range(options.n_prior_images)]
    return ConceptAblation(weights, material.names, anchor=options.anchor, prompts=[prompt for prompt, _ in jobs],
                           latents=prior_latents(options, weights.model, jobs, work), noise_based=options.variant == "noise-based",
                           anchor_weight=options.prior_weight, augment=options.augment, seed=options.seed)


def build_forget_me_not(options: MethodOptions, material: Material, weights: Weights, work: Work) -> ForgetMeNot:
    """Forget-Me-Not; the variant with-ti runs its textual inversion stage here."""
    photos, of_name = latents_of_names(material, weights.model)
    tokens = {}
    if options.variant == "with-ti":
        tokens = tokens_of_names(work, photos, of_name, template=PROMPT, iterations=options.ti_iterations, seed=options.seed,
                                 model_hash=options.files.hash(), folder=options.out_dir)
    return ForgetMeNot(weights, photos, of_name, seed=options.seed, tokens=tokens)


def build_dreambooth(options: MethodOptions, material: Material, weights: Weights, work: Work) -> DreamBooth:
    """DreamBooth, with generated images of the class."""
    class_prompt = f"a photo of a {options.class_word}"
    jobs = [(class_prompt, number) for number in range(options.n_prior_images if options.prior_weight else 0)]
    return DreamBooth(weights, ImageLatents(weights.model, material.photos), prompt=f"a photo of {options.phrase}",
                      class_prompt=class_prompt, class_latents=prior_latents(options, weights.model, jobs, work),
                      prior_weight=options.prior_weight, seed=options.seed)


def build_textual_inversion(options: MethodOptions, material: Material, weights: Weights, _work: Work) -> TextualInversion:
    """Textual inversion, with the prefix of --embedding in front of the prompts if given."""
    model = weights.model
    vectors = TokenVectors(token_manager(options, model), options.token)
    prefixed = options.embedding is not None and not isinstance(vectors.manager, MappedManager)
    return TextualInversion(model, vectors, ImageLatents(model, material.photos), templates=templates_of(options),
                            phrase=options.phrase, prefixed=prefixed, seed=options.seed)


def edit_by_uce(options: MethodOptions, names: list[str], weights: Weights) -> tuple[dict[str, Tensor], float]:
    """Edited tensors of --train_method uce, and the condition number of the inverted matrix."""
    preserve = [text for path in options.preserve_prompts or () for text in different_prompts(path)]
    to_end = options.variant == "to-end"
    return uce.edit(weights, names, guide=options.anchor, preserve=[*preserve, *[""] * to_end], to_end=to_end,
                    erase_scale=options.erase_scale, preserve_scale=options.preserve_scale, lamb=options.lamb)


def token_manager(options: MethodOptions, model: LatentDiffusion) -> EmbeddingManager:
    """Manager with the prefix or context map of --embedding, if any, and a new token initialized with the vectors of the class word."""
    def manager_of(*placeholders: str, kind: Callable[..., EmbeddingManager] = EmbeddingManager) -> EmbeddingManager:
        words = [options.class_word or "person"] * len(placeholders)
        return kind(model.cond_stage_model, placeholders, initializer_words=words, num_vectors_per_token=1)

    if not options.embedding:
        return manager_of(options.token)
    if is_map_file(options.embedding):
        return manager_of(options.token, kind=partial(MappedManager, context_map_for(model.cond_stage_model, options.embedding)))
    prefix, manager = manager_of(options.placeholder), manager_of(options.placeholder, options.token)
    prefix.load(options.embedding)  # alone: a manager with one placeholder accepts a file with any placeholder
    manager.string_to_param_dict[options.placeholder] = next(prefix.embedding_parameters())
    return manager


def anchor_prompts(options: MethodOptions) -> list[str]:
    """Prompts that contain the anchor.

    Raises:
        UserError: a prompt does not contain it, or there is no prompt.
    """
    if not options.anchor_prompts:
        return [fill(template, options.anchor) for template in dict.fromkeys(templates_of(options))]
    prompts = read_lines(options.anchor_prompts, CAPTION_FIELDS)
    wrong = [f"the prompt '{prompt}' without the anchor '{options.anchor}'" for prompt in prompts if options.anchor not in prompt]
    if wrong or not prompts:
        raise UserError(f"{options.anchor_prompts} has {wrong[0] if wrong else 'no prompts'}; write prompts in which a name can take the "
                        "anchor's place")
    return prompts


def templates_of(options: MethodOptions) -> list[str]:
    """Templates of --templates, or else "a photo of {}"."""
    return read_templates(options.templates) if options.templates else [PROMPT]


def prior_latents(options: MethodOptions, model: LatentDiffusion, jobs: list[tuple[str, int]], work: Work) -> Tensor:
    """Latents (N, 4, h, w) that the frozen model generates for the prompts of the anchor or of the class."""
    return generated_latents(work, model, jobs, options.out_dir, model_hash=options.files.hash(), scale=options.scale, seed=options.seed)


def latents_of_names(material: Material, model: LatentDiffusion) -> tuple[ImageLatents, dict[str, list[int]]]:
    """Images of the names, and per name their indices."""
    of_name: dict[str, list[int]] = {name: [] for name in material.names}
    for number, image in enumerate(material.images):
        of_name[image.name].append(number)
    return ImageLatents(model, material.sources), of_name


def images_of(options: MethodOptions, names: list[str], report: Report) -> list[IdentityImage]:
    """Images of --identity_images that show the names.

    Raises:
        UserError: a name has no image.
    """
    erased = set(names)
    images = [image for image in identity_images(options.identity_images, read_people(options.people), report) if image.name in erased]
    without = sorted(erased - {image.name for image in images})
    if without:
        raise UserError(f"{options.identity_images} has no image of {', '.join(without[:3])}, to be erased; add some, or leave the name "
                        "out")
    return images


def photos_of(folder: Path, report: Report) -> list[ImageSource]:
    """Photos of one person.

    Raises:
        UserError: the folder holds photos of several people, or none.
    """
    files = image_files(folder, report)
    photos, people = [path for path in files if path.parent == folder], list(dict.fromkeys(path.parent for path in files))
    if photos:
        for path in (path for path in files if path.parent != folder):
            report(ELSEWHERE, f"{path} is not in {folder} itself, which has photos of its own; move it there or remove it")
        return [ImageSource(path) for path in photos]
    if people:
        raise UserError(f"{folder} holds photos of {len(people)} people, one folder each; give the folder of one, such as {people[0]}")
    raise UserError(f"{folder} holds no photos{besides(report)}; give a folder with a few photos of one person")


# --train_method -> function (flags, material, weights, work) -> method; uce is a closed form without training.
BUILDERS: dict[str, Callable[..., Any]] = {
    "esd": build_esd, "concept_ablation": build_concept_ablation, "forget_me_not": build_forget_me_not,
    "dreambooth": build_dreambooth, "textual_inversion": build_textual_inversion}
