"""Enforce the prefix in a service: attached to a pipeline, it precedes every prompt (paper section 3.3, Eq. 2).

There is no trigger word: the vectors are inserted as embeddings after the begin-of-text token. Guarantees and limits:

- Every prompt that `encode_prompt` encodes is prefixed; negative prompts, including empty ones, keep their bits.
- The text encoder of a protected pipeline refuses every other call, such as one from a pipeline built from its components. Attach to
  each pipeline that the service calls.
- Threads may encode at the same time, also through a shared text encoder. As without a prefix, each thread needs its own scheduler and
  tokenizer, which keep state. Do not attach or detach during generation.
- With `allow`, prompts that name people who may be shown, and nobody else, are not prefixed (ldm/apl/allow_list.py).
- Only texts are protected, not image prompts (IP-Adapter, img2img). README.md lists every known way around the prefix.
"""

import inspect
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelHubMixin
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ldm.apl.allow_list import Gate, gate_of
from ldm.apl.guard import Guard
from ldm.apl.protected_methods import GIVEN_EMBEDS, ProtectedEncodePrompt, protected_conditioning
from ldm.hub import asking_the_hub
from ldm.model_card import Described, model_card
from ldm.modules.context_map import ContextMap, is_map_file
from ldm.modules.embedding_file import carried_metadata, read_embedding_file
from ldm.modules.embedding_manager import Manager, longest_prefix, manager_for
from ldm.modules.prefix_folder import FILE, form_of, prefix_file_of, write_prefix_folder
from ldm.util import UserError

# Requirements for a pipeline of Stable Diffusion v1 or SDXL: names and classes of its parts, parameters of its encode_prompt.
ENCODERS = {"text_encoder": ("tokenizer", CLIPTextModel), "text_encoder_2": ("tokenizer_2", CLIPTextModelWithProjection)}
PARAMETERS = {"prompt", "num_images_per_prompt", "do_classifier_free_guidance", "negative_prompt", "prompt_embeds"}


class AnonymizationPrompt(ModelHubMixin):
    """A learned prefix that `attach` inserts in front of every prompt of a model, or a context map that it applies to every prompt.

    `save_pretrained(folder)` and `push_to_hub(repo_id)` are those of huggingface_hub's ModelHubMixin.
    """

    _hub_mixin_config = {}  # not the mixin's config, which holds the arguments of __init__

    def __init__(self, *vectors: Tensor, context_map: ContextMap | None = None, source: str = "the prefix",
                 metadata: Mapping[str, Any] | None = None, allow: Iterable[str] | Gate = ()):
        """Create it from vectors (m, d) for one text encoder or for each of SDXL's two, or from a map.

        `source` names it in messages; `metadata` are JSON values of its training. `allow` are names that may be shown (S_keep), or a gate
        such as `ldm.apl.allow_list.AllowList`, which decides for each prompt; it is not saved.
        """
        self.vectors = tuple(matrix.detach().clone() for matrix in vectors)
        self.context_map, self.source, self.metadata, self.gate = context_map, source, dict(metadata or {}), gate_of(allow)
        self.attached: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()  # models, and their methods that encode prompts
        self.guards: weakref.WeakSet[Guard] = weakref.WeakSet()  # of their text encoders, which may outlive them

    @property
    def _form(self) -> str:
        if self.context_map is not None:
            return f"is a context map {self.context_map.width} wide"
        return f"has the shape {_listed(tuple(matrix.shape) for matrix in self.vectors)}"

    def __repr__(self) -> str:
        return f"AnonymizationPrompt({self.source} {self._form})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "AnonymizationPrompt":
        """This prompt itself, so that a deep copy of a protected pipeline is attached to the same one."""
        return self

    @classmethod
    def load(cls, path: str | Path, *, allow: Iterable[str] | Gate = ()) -> "AnonymizationPrompt":
        """Load a prefix, from a file with one entry or with clip_l and clip_g, or a context map; UserError for other files."""
        if is_map_file(path):
            context_map = ContextMap.of_file(path)
            return cls(context_map=context_map, source=str(path), metadata=context_map.metadata, allow=allow)
        file = read_embedding_file(path)
        if file.pair is None and len(file.vectors) > 1:
            raise UserError(f"{path} holds vectors for {', '.join(file.vectors)}, and nothing says which of them are the prefix; "
                            "give a file with one entry, or with clip_l and clip_g")
        carried = carried_metadata(Path(path), file)
        return cls(*(file.pair or file.vectors.values()), source=str(path), metadata=carried["metadata"] | {"step": carried["step"]},
                   allow=allow)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *, revision: str | None = None,  # type: ignore[override]
                        token: str | bool | None = None, cache_dir: str | Path | None = None, local_files_only: bool = False,
                        force_download: bool = False, allow: Iterable[str] | Gate = ()) -> "AnonymizationPrompt":
        """Load a prefix or a context map from a folder of `save_pretrained`, or from the model `owner/name` of the Hugging Face Hub.

        Only one .safetensors file is read. Raises UserError if there is none, it cannot be downloaded, or it holds something else.
        """
        file = prefix_file_of(pretrained_model_name_or_path, revision=revision, token=token, cache_dir=cache_dir,
                              local_files_only=local_files_only, force_download=force_download)
        prompt = cls.load(file, allow=allow)
        prompt.source = str(pretrained_model_name_or_path)
        return prompt

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes, with the options of ModelHubMixin; returns the commit's URL. UserError if it cannot be."""
        with asking_the_hub(repo_id):
            return super().push_to_hub(repo_id, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        write_prefix_folder(save_directory, self.context_map or self.vectors, self.metadata)

    def generate_model_card(self, **options: Any) -> ModelCard:
        """The model card, without results; `options` are further fields of `ldm.model_card.Described`."""
        kind, form = form_of(self.context_map or self.vectors)
        return model_card(Described(kind=kind, form=form, file=FILE, training=self.metadata, **options))

    def interpolate(self, other: "AnonymizationPrompt", weight: float) -> "AnonymizationPrompt":
        """The prefix, or context map, (1 - weight) * self + weight * other, with the gate of self; UserError if their shapes differ."""
        if self._form != other._form:
            raise UserError(f"{self.source} {self._form} and {other.source} {other._form}, and nothing is between them; give two prefixes, "
                            "or two context maps, of one shape, such as two checkpoints of one training")
        named: dict[str, Any] = {"source": f"{1 - weight:g} * {self.source} + {weight:g} * {other.source}", "allow": self.gate or ()}
        if self.context_map is not None and other.context_map is not None:
            return AnonymizationPrompt(context_map=self.context_map.interpolate(other.context_map, weight), **named)
        vectors = ((1 - weight) * own + weight * its for own, its in zip(self.vectors, other.vectors, strict=True))
        return AnonymizationPrompt(*vectors, **named)

    def attach(self, target: Any, given_embeds: str = "refuse", *, allow_unprotected: bool = False) -> "AnonymizationPrompt":
        """Insert the vectors in front of every prompt of `target` from now on; long texts are truncated. Returns this prefix.

        UserError if the prefix is of another model, if there is no such model, or if `target` has another prefix already.

        Args:
            target: a diffusers pipeline of Stable Diffusion v1 or SDXL (text to image, img2img, inpainting, ControlNet, ...), or
                LatentDiffusion, whose `get_learned_conditioning` then prefixes every text except the empty one, which scripts use
                for guidance; use its `get_negative_conditioning` for negative prompts with words.
            given_embeds: treatment of `prompt_embeds` that the pipeline's own `encode_prompt` has not returned.
                "refuse": UserError. "allow": they pass unprotected.
                "prefix": for one text encoder, insert the contexts of begin of text and of the vectors in front, and drop as many at the
                end. This protects less: on 16 people of the miniature ID-ACC is 0.68 without the prefix, 0.32 in this way, and 0.14
                with the prefix in front of the text; rank-1 0.93, 0.47, 0.19. A context map is applied exactly as to prompts.
            allow_unprotected: let the text encoders of a pipeline encode prompts that do not come through a protected pipeline, such as one
                built from its components. Without it such calls raise UserError, until `detach`.
        """
        if given_embeds not in GIVEN_EMBEDS:
            raise UserError(f"there is no given_embeds '{given_embeds}'; give one of {', '.join(GIVEN_EMBEDS)}")
        name = next((name for name in ("get_learned_conditioning", "encode_prompt") if callable(getattr(target, name, None))), None)
        if name is None:
            raise UserError(f"{type(target).__name__} has no method encode_prompt; give a diffusers pipeline of Stable Diffusion v1 or "
                            "SDXL, or a LatentDiffusion")
        attachment = getattr(vars(target).get(name), "attachment", None)
        if attachment == (self, given_embeds, allow_unprotected):
            return self
        if attachment is not None:
            raise UserError(f"{attachment[0].source} is attached to this {type(target).__name__} already, with given_embeds="
                            f"'{attachment[1]}' and allow_unprotected={attachment[2]}; call its detach() first")
        encoders = _text_encoders(target, name)
        vectors = self._checked(type(target).__name__, encoders)
        attachment = self, given_embeds, allow_unprotected
        if name == "encode_prompt":
            if given_embeds == "prefix" and len(encoders) > 1:
                raise UserError(f"given_embeds='prefix' was asked of {type(target).__name__}, whose pooled embedding cannot be prefixed "
                                "afterwards; give 'refuse' or 'allow'")
            inserted: Sequence[Tensor | None] = vectors or [None]
            fronts = [(encoder, matrix, tokenizer.eos_token_id) for (encoder, tokenizer), matrix in zip(encoders, inserted, strict=True)]
            target.encode_prompt = ProtectedEncodePrompt(target, fronts, attachment)
        else:
            manager: Manager | None = self.context_map
            if manager is None:
                manager = manager_for(target.cond_stage_model, num_vectors_per_token=len(vectors[0])).requires_grad_(False)
                for own, matrix in zip(manager.embedding_parameters(), vectors, strict=True):
                    own.data = matrix.to(own)
            target.get_learned_conditioning = protected_conditioning(target.get_learned_conditioning, manager, self.gate)
            target.get_learned_conditioning.attachment = attachment
            self.attached[target] = name
        return self

    def detach(self, target: Any = None) -> None:
        """Restore `target`, or everything that this prompt is attached to; does nothing if it is not attached."""
        for model in list(self.attached) if target is None else [target]:
            if model not in self.attached:
                continue
            name = self.attached.pop(model)
            method = vars(model)[name]
            delattr(model, name)
            if getattr(model, name) != method.__wrapped__:  # an instance attribute of the caller
                setattr(model, name, method.__wrapped__)
            if isinstance(method, ProtectedEncodePrompt):
                method.release()
        for guard in list(self.guards) if target is None else []:  # of pipelines that are gone, and of copied text encoders
            guard.release()

    def _checked(self, kind: str, encoders: Sequence[tuple[Any, Any]]) -> Sequence[Tensor]:
        """The vectors for each text encoder, () with a context map; UserError if this prompt belongs to another model than a `kind`."""
        widths = [encoder.get_input_embeddings().weight.shape[1] for encoder, _ in encoders]
        without_first = isinstance(encoders[0][0], CLIPTextModelWithProjection)  # as SDXL's refiner
        if self.context_map is not None:
            if len(encoders) > 1 or without_first:
                raise UserError(f"{self.source} is a context map, for a model with the one text encoder of Stable Diffusion v1, and {kind} "
                                "has those of SDXL; give a prefix of both text encoders")
            if widths != [self.context_map.width]:
                raise UserError(f"the context map of {self.source} is {self.context_map.width} wide but the text encoder of {kind} is "
                                f"{widths[0]} wide; give a map learned for this text encoder")
            return ()
        vectors = self.vectors[-1:] if without_first else self.vectors
        if len(widths) > len(vectors):
            raise UserError(f"{self.source} is a prefix of one text encoder and {kind} has two; make the pair of prefixes that it needs "
                            "with 'python -m ldm.apl.transfer IN OUT --to PRESET', such as sdxl")
        if len(widths) < len(vectors):
            raise UserError(f"{self.source} is a prefix for the two text encoders of SDXL, and {kind} has one; where it was transferred "
                            "from a prefix of this model, its first part is that: python -m ldm.export IN OUT.pt --format universal "
                            "--part clip_l")
        if [matrix.shape[1] for matrix in vectors] != widths:
            raise UserError(f"the vectors of {self.source} are {_listed(matrix.shape[1] for matrix in self.vectors)} wide but the text "
                            f"encoder of {kind} takes {_listed(widths)}; give a prefix made for this model")
        for matrix, (_, tokenizer) in zip(vectors, encoders, strict=True):
            longest = longest_prefix(tokenizer.model_max_length)
            if len(matrix) > longest:
                raise UserError(f"the {len(matrix)} vectors of {self.source} leave no room for the prompt in "
                                f"{tokenizer.model_max_length} tokens; give a prefix of at most {longest}")
        return vectors


def _text_encoders(target: Any, method: str) -> list[tuple[Any, Any]]:
    """One or two text encoders with their tokenizers; UserError for a pipeline of another architecture."""
    if method == "get_learned_conditioning":
        embedders = getattr(target.cond_stage_model, "embedders", [target.cond_stage_model])
        return [(embedder, embedder.tokenizer) for embedder in embedders]
    parts = {name: part for name, part in vars(target).items() if "text_encoder" in name}
    found = {name: part for name, part in parts.items() if part is not None}
    missing = PARAMETERS - set(inspect.signature(target.encode_prompt).parameters)
    strange = [name if name not in ENCODERS else f"{name} of class {type(part).__name__}" for name, part in parts.items()
               if name not in ENCODERS or not isinstance(part, (ENCODERS[name][1], type(None)))]
    if missing or strange or not found:
        reason = f"encode_prompt without {', '.join(sorted(missing))}" if missing else ", ".join(strange) or "no text_encoder"
        raise UserError(f"{type(target).__name__} has {reason}, but an anonymization prompt attaches only to pipelines with the CLIP "
                        "text encoders of Stable Diffusion v1 or SDXL; give one of those")
    if any(module._compiled_call_impl is not None for encoder in found.values() for module in encoder.modules()):
        raise UserError(f"the text encoder of {type(target).__name__} is compiled, and what is compiled already would not see the "
                        "anonymization prompt; attach first, and then compile")
    return [(found[name], getattr(target, tokenizer)) for name, (tokenizer, _) in ENCODERS.items() if name in found]


def _listed(values: Iterable[Any]) -> str:
    return " and ".join(map(str, values))
