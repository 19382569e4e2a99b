"""What the page computes, for all users: images of prompts without and with prefixes from the same noise, and the faces in them."""

import functools
import io
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.apl.launch import set_precision
from ldm.device import pick_precision
from ldm.evaluation.faces import FaceAnalyzer
from ldm.experiments.variants import BASE, load_variants
from ldm.generation import generate, with_prefix
from ldm.loading import ModelFiles, file_hash
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import Manager
from ldm.names import NamesInText
from ldm.util import UserError

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # of the curve; the last is the largest
MAX_SCALE, MAX_SEED = 20, 2**53 - 1                 # the latter is JavaScript's largest whole number
NEAREST = 3                                         # people of the gallery per face
KEPT = 128                                          # finished images in memory

ImageSpec = tuple[str, str, float]  # prompt, label of a prefix file or "none", strength


@dataclass(frozen=True)
class Limits:
    """Largest numbers of a request: images, characters per prompt, DDIM steps."""

    images: int
    length: int
    steps: int


@dataclass(frozen=True)
class Request:
    """A user's request; strength 0 is without a prefix, 1 with the file's."""

    model: str
    prompts: tuple[str, ...]
    prefixes: tuple[str, ...]  # labels of files
    strength: float
    seed: int
    ddim_steps: int
    scale: float


@dataclass(frozen=True)
class ScoredImage:
    """An image and the face in it."""

    prompt: str
    prefix: str
    strength: float
    image: np.ndarray       # (H, W, 3) uint8 RGB
    name: str | None        # person of the gallery whom the prompt names
    face_found: bool
    id_acc: float | None    # cosine of the face and that person's reference face; None without a face or a name
    nearest: Sequence[tuple[str, float]]  # people of the gallery with the largest cosines

    @functools.cached_property
    def png(self) -> bytes:
        """The image as a file."""
        buffer = io.BytesIO()
        Image.fromarray(self.image).save(buffer, "PNG")
        return buffer.getvalue()


class BlendedModel:
    """A model whose prompts have the context (1 - s) tau(c) + s tau_AP(c), of strength s; in all else the model itself.

    The formula holds for prefixes, context maps and SDXL; s = 0 gives tau(c) and s = 1 tau_AP(c), bit for bit.
    """

    def __init__(self, model: LatentDiffusion, manager: Manager | None, strength: float) -> None:
        self._model, self._manager, self._strength = model, manager, strength

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def get_learned_conditioning(self, texts: Sequence[str], _: None = None) -> Tensor:
        """The blended context of prompts without the placeholder."""
        context = self._model.get_learned_conditioning(texts)
        if self._manager is None:
            return context
        prefixed = self._model.get_learned_conditioning(with_prefix(texts, self._manager), self._manager)
        return torch.lerp(context, prefixed, self._strength)


class Studio:
    """The model in memory, its prefixes and the face recognizer. Images are generated one at a time, and the last ones are kept.

    Args:
        models: files of the models to choose from; the first is loaded here, and another one replaces it when a request asks for it.
        embedding: files of prefixes or context maps.
        analyzer: face detector and recognizer.
        gallery: reference face (512,) by name.
        device: device of the model.
        precision: see `pick_precision`.
        limits: limits of a request.

    Raises:
        UserError: a file cannot be used with the first model, two files have the same name, or a file holds edited weights.
    """

    def __init__(self, models: Sequence[ModelFiles], embedding: Sequence[Path], analyzer: FaceAnalyzer, gallery: Mapping[str, np.ndarray],
                 device: torch.device, precision: str, limits: Limits) -> None:
        self.models, self.embedding = {files.name: files for files in models}, {path.stem: path for path in embedding}
        if len(self.models) < len(models):
            raise UserError("two models have the same name; rename the file of one of them")
        self.gallery, self.limits = gallery, limits
        self._analyzer, self._device, self._precision = analyzer, device, pick_precision(precision, device)
        self._people = NamesInText(gallery)
        self._lock, self._remembered = threading.Lock(), functools.lru_cache(KEPT)(self._generate)
        self._load(models[0].name)

    def check(self, model: str, prompts: str | None, prefixes: Sequence[str], strength: float, seed: int, ddim_steps: int,
              scale: float) -> Request:
        """The request with the page's values, where `prompts` has one prompt per line.

        Raises:
            UserError: a value is missing, unknown, or above the limits.
        """
        lines = tuple(dict.fromkeys(" ".join(line.split()) for line in (prompts or "").splitlines() if line.strip()))
        if not lines:
            raise UserError(f"There is no prompt; write one, such as 'A close-up portrait of {next(iter(self.gallery))}'.")
        if (longest := max(map(len, lines))) > self.limits.length:
            raise UserError(f"A prompt has {longest} characters; shorten it to {self.limits.length}.")
        if not prefixes:
            raise UserError("No prefix is chosen; choose at least one.")
        if model not in self.models or set(prefixes) - set(self.embedding):
            raise UserError("This page does not have that model or prefix; reload the page.")
        for what, value, low, high in (("strength", strength, 0, STRENGTHS[-1]), ("seed", seed, 0, MAX_SEED),
                                       ("number of steps", ddim_steps, 1, self.limits.steps), ("guidance scale", scale, 0, MAX_SCALE)):
            if not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
                raise UserError(f"The {what} is {'missing' if value is None else value}; give a number from {low} to {high}.")
        return Request(model, lines, tuple(dict.fromkeys(prefixes)), round(strength, 4), int(seed), int(ddim_steps), scale)

    def comparison(self, request: Request) -> list[ImageSpec]:
        """Images of each prompt, without a prefix and with each; UserError if there are too many."""
        return self._limited([(prompt, prefix, request.strength if prefix != BASE.label else 0.0)
                              for prompt in request.prompts for prefix in (BASE.label, *request.prefixes)])

    def curve(self, request: Request) -> list[ImageSpec]:
        """Images of the first prompt that names a person, per prefix and strength; UserError if there is none, or too many."""
        named = next(filter(self._people.find, request.prompts), None)
        if named is None:
            raise UserError(f"No prompt names a person of the gallery, who is needed for ID-ACC; write one, such as "
                            f"'A close-up portrait of {next(iter(self.gallery))}'.")
        return self._limited([(named, prefix, strength) for prefix in request.prefixes for strength in STRENGTHS])

    def portrait(self, request: Request, spec: ImageSpec) -> ScoredImage:
        """The image and its face; waits while another request's image is generated."""
        prompt, prefix, strength = spec
        with self._lock:
            if request.model != self._loaded:
                self._load(request.model)
            portrait = self._remembered(request.model, prompt, prefix if strength else BASE.label, strength, request.seed,
                                        request.ddim_steps, request.scale)
        return replace(portrait, prefix=prefix)

    def about(self, request: Request) -> dict[str, Any]:
        """Settings that determine the request's images."""
        files, prefixes = self.models[request.model], {label: file_hash(self.embedding[label]) for label in request.prefixes}
        return asdict(request) | {"prefixes": prefixes, "model_hash": files.hash(), "config_hash": file_hash(files.config_path),
                                  "precision": self._precision}

    def _limited(self, specs: list[ImageSpec]) -> list[ImageSpec]:
        if len(specs) > self.limits.images:
            raise UserError(f"This needs {len(specs)} images, and a request may have {self.limits.images}; give fewer prompts or prefixes.")
        return specs

    def _load(self, name: str) -> None:
        self._loaded, self._model, self._managers = "", cast(LatentDiffusion, None), {}  # released before the next is read
        model = self.models[name].load(self._device)
        set_precision(model, self._precision)
        variants = load_variants(model, list(self.embedding.values()), self.models[name])
        if edited := [variant.file for variant in variants if variant.read_weights]:
            raise UserError(f"{edited[0]} holds edited weights, which have no strength; give files of prefixes or context maps")
        self._loaded, self._model, self._managers = name, model, {variant.label: variant.manager for variant in variants}

    def _generate(self, _model: str, prompt: str, prefix: str, strength: float, seed: int, ddim_steps: int, scale: float) -> ScoredImage:
        model = BlendedModel(self._model, self._managers[prefix], strength)
        [(_, image)] = generate(model, [(prompt, 0)], ddim_steps=ddim_steps, scale=scale, seed=seed)
        face, name = self._analyzer.analyze(image), self._people.find(prompt)
        if face is None:
            return ScoredImage(prompt, prefix, strength, image, name, False, None, ())
        cosines = {other: float(reference @ face.embedding) for other, reference in self.gallery.items()}
        nearest = sorted(cosines.items(), key=lambda item: -item[1])[:NEAREST]
        return ScoredImage(prompt, prefix, strength, image, name, True, cosines[name] if name else None, nearest)
