"""Enforce the prefix in a service: attached to a pipeline, it precedes every prompt (paper section 3.3, Eq. 2).

There is no trigger word: the vectors are inserted as embeddings after the begin-of-text token. Guarantees and limits:

- Every prompt that `encode_prompt` encodes is prefixed; negative prompts, including empty ones, keep their bits. Attach to each pipeline
  that the service calls, also to one that is built from another's components.
- Threads may encode at the same time, also through a shared text encoder. As without a prefix, each thread needs its own scheduler and
  tokenizer, which keep state. Do not attach or detach during generation.
- Only texts are protected. Image prompts (IP-Adapter, img2img), phrases that a pipeline encodes elsewhere (GLIGEN), and service code that
  calls the text encoder itself bypass the prefix.
"""

import functools
import inspect
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ldm.generation import with_prefix
from ldm.modules.context_map import ContextMap, is_map_file
from ldm.modules.embedding_file import read_embedding_file
from ldm.modules.embedding_manager import Manager, longest_prefix, manager_for
from ldm.util import UserError

GIVEN_EMBEDS = ("refuse", "allow", "prefix")
# Requirements for a pipeline of Stable Diffusion v1 or SDXL: names and classes of its parts, parameters of its encode_prompt.
ENCODERS = {"text_encoder": ("tokenizer", CLIPTextModel), "text_encoder_2": ("tokenizer_2", CLIPTextModelWithProjection)}
PARAMETERS = {"prompt", "num_images_per_prompt", "do_classifier_free_guidance", "negative_prompt", "prompt_embeds"}


class AnonymizationPrompt:
    """A learned prefix that `attach` inserts in front of every prompt of a model, or a context map that it applies to every prompt."""

    def __init__(self, *vectors: Tensor, context_map: ContextMap | None = None, source: str = "the prefix"):
        """Create it from vectors (m, d) for one text encoder or for each of SDXL's two, or from a map; `source` names it in messages."""
        self.vectors = tuple(matrix.detach().clone() for matrix in vectors)
        self.context_map, self.source = context_map, source
        # Method that encodes prompts, and fronts, of each attached model.
        self._attached: weakref.WeakKeyDictionary[Any, tuple[str, list[_EncoderFront]]] = weakref.WeakKeyDictionary()

    @property
    def _form(self) -> str:
        if self.context_map is not None:
            return f"is a context map {self.context_map.width} wide"
        return f"has the shape {_listed(tuple(matrix.shape) for matrix in self.vectors)}"

    def __repr__(self) -> str:
        return f"AnonymizationPrompt({self.source} {self._form})"

    @classmethod
    def load(cls, path: str | Path) -> "AnonymizationPrompt":
        """Load a prefix, from a file with one entry or with clip_l and clip_g, or a context map; UserError for other files."""
        if is_map_file(path):
            return cls(context_map=ContextMap.of_file(path), source=str(path))
        file = read_embedding_file(path)
        if file.pair is None and len(file.vectors) > 1:
            raise UserError(f"{path} holds vectors for {', '.join(file.vectors)}, and nothing says which of them are the prefix; "
                            "give a file with one entry, or with clip_l and clip_g")
        return cls(*(file.pair or file.vectors.values()), source=str(path))

    def interpolate(self, other: "AnonymizationPrompt", weight: float) -> "AnonymizationPrompt":
        """The prefix, or context map, (1 - weight) * self + weight * other; UserError if their shapes differ."""
        if self._form != other._form:
            raise UserError(f"{self.source} {self._form} and {other.source} {other._form}, and nothing is between them; give two prefixes, "
                            "or two context maps, of one shape, such as two checkpoints of one training")
        source = f"{1 - weight:g} * {self.source} + {weight:g} * {other.source}"
        if self.context_map is not None and other.context_map is not None:
            return AnonymizationPrompt(context_map=self.context_map.interpolate(other.context_map, weight), source=source)
        return AnonymizationPrompt(*((1 - weight) * own + weight * its for own, its in zip(self.vectors, other.vectors, strict=True)),
                                   source=source)

    def attach(self, target: Any, given_embeds: str = "refuse") -> "AnonymizationPrompt":
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
        """
        if given_embeds not in GIVEN_EMBEDS:
            raise UserError(f"there is no given_embeds '{given_embeds}'; give one of {', '.join(GIVEN_EMBEDS)}")
        name = next((name for name in ("get_learned_conditioning", "encode_prompt") if callable(getattr(target, name, None))), None)
        if name is None:
            raise UserError(f"{type(target).__name__} has no method encode_prompt; give a diffusers pipeline of Stable Diffusion v1 or "
                            "SDXL, or a LatentDiffusion")
        attached = getattr(vars(target).get(name), "attached", None)
        if attached == (self, given_embeds):
            return self
        if attached is not None:
            raise UserError(f"{attached[0].source} is attached to this {type(target).__name__} already, with "
                            f"given_embeds='{attached[1]}'; call its detach() first")
        original, encoders = getattr(target, name), _text_encoders(target, name)
        vectors = self._checked(type(target).__name__, encoders)
        fronts: list[_EncoderFront] = []
        if name == "encode_prompt":
            if given_embeds == "prefix" and len(encoders) > 1:
                raise UserError(f"given_embeds='prefix' was asked of {type(target).__name__}, whose pooled embedding cannot be prefixed "
                                "afterwards; give 'refuse' or 'allow'")
            fronts = [_EncoderFront(encoder, matrix, tokenizer.eos_token_id)
                      for (encoder, tokenizer), matrix in zip(encoders, vectors, strict=False)]
            finish = (lambda context: context) if self.context_map is None else self.context_map.finish
            method = _prefixed_encode_prompt(original, fronts, given_embeds, finish)
        else:
            manager: Manager | None = self.context_map
            if manager is None:
                manager = manager_for(target.cond_stage_model, num_vectors_per_token=len(vectors[0])).requires_grad_(False)
                for own, matrix in zip(manager.embedding_parameters(), vectors, strict=True):
                    own.data = matrix.to(own)
            method = _prefixed_conditioning(original, manager)
        method.attached = (self, given_embeds)  # type: ignore[attr-defined]
        setattr(target, name, method)
        self._attached[target] = name, fronts
        return self

    def detach(self, target: Any = None) -> None:
        """Restore `target`, or everything that this prefix is attached to; does nothing if it is not attached."""
        for model in list(self._attached) if target is None else [target]:
            if model not in self._attached:
                continue
            name, fronts = self._attached.pop(model)
            for front in fronts:
                for handle in front.handles:
                    handle.remove()
            original = vars(model)[name].__wrapped__
            delattr(model, name)
            if getattr(model, name) != original:  # an instance attribute of the caller
                setattr(model, name, original)

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


# Per thread: the text encoders that currently encode a prompt, and whether the vectors were inserted.
_serving: ContextVar[dict["_EncoderFront", bool]] = ContextVar("_serving")


class _EncoderFront:
    """Insert vectors (m, d) into a pipeline's text encoder while that pipeline encodes a prompt in this thread.

    The token ids are shifted first, so that positions, padding and the pooled output (at the end of text) are those of the longer text.
    """

    def __init__(self, encoder: Any, vectors: Tensor, end_of_text: int):
        self.encoder, self.vectors, self.end_of_text = encoder, vectors, end_of_text
        self.table: nn.Module | None = None
        self.handles = [encoder.register_forward_pre_hook(self._make_room)]

    def follow_table(self) -> None:
        """Hook the table of token embeddings again if `load_textual_inversion` has replaced it."""
        table = self.encoder.get_input_embeddings()
        if table is not self.table:
            self.table = table
            self.handles.append(table.register_forward_hook(self._put_vectors))

    def _make_room(self, _encoder: nn.Module, arguments: tuple) -> tuple | None:
        if self not in _serving.get(()):
            return None
        token_ids, *others = arguments
        return shifted(token_ids, len(self.vectors), self.end_of_text), *others

    def _put_vectors(self, _table: nn.Module, _arguments: tuple, token_embeddings: Tensor) -> Tensor | None:
        if self not in _serving.get(()):
            return None
        _serving.get()[self] = True
        vectors = self.vectors.to(token_embeddings).expand(len(token_embeddings), -1, -1)
        return torch.cat([token_embeddings[:, :1], vectors, token_embeddings[:, 1 + vectors.shape[1]:]], dim=1)


def shifted(token_ids: Tensor, m: int, end_of_text: int) -> Tensor:
    """Token ids (B, L) with room for m vectors after the first; the end of a text that no longer fits takes the last position."""
    first, rest, dropped = token_ids.split([1, token_ids.shape[1] - 1 - m, m], dim=1)
    moved = torch.cat([first.expand(-1, 1 + m), rest], dim=1)
    moved[:, -1].masked_fill_((dropped == end_of_text).any(1), end_of_text)
    return moved


def _prefixed_encode_prompt(original: Callable, fronts: Sequence[_EncoderFront], given_embeds: str,
                            finish: Callable[[Tensor], Tensor]) -> Callable:
    """Wrap a pipeline's `encode_prompt`: encode the prompt alone, with the prefix or the map, and pass the result to the original."""
    signature = inspect.signature(original)
    own: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()  # outputs of this method, by id

    def encode(call: inspect.BoundArguments, **changed: Any) -> Sequence[Tensor]:
        """Call the original for the prompt without guidance, so that everything it encodes is the prompt."""
        for front in fronts:
            front.follow_table()
        alone = call.arguments | {"do_classifier_free_guidance": False, "num_images_per_prompt": 1} | changed
        served = dict.fromkeys(fronts, False)
        token = _serving.set(served)
        try:
            encoded = original(**alone)
        finally:
            _serving.reset(token)
        if not all(served.values()):
            raise UserError("the anonymization prompt did not reach the text encoder, which was compiled or exchanged after attach, "
                            "so nothing is generated; call detach() and attach it again")
        return encoded

    @functools.wraps(original)
    def encode_prompt(*args: Any, **kwargs: Any) -> Sequence[Tensor]:
        call = signature.bind(*args, **kwargs)
        embeds = call.arguments.get("prompt_embeds")
        foreign = [given for given in (embeds, call.arguments.get("pooled_prompt_embeds"))
                   if given is not None and own.get(id(given)) is not given]
        if foreign and given_embeds == "refuse":
            raise UserError("prompt_embeds were given that this pipeline's encode_prompt did not return, and the anonymization prompt "
                            "cannot be put in front of their text; give the text as prompt, or attach with given_embeds='allow'")
        if embeds is None:
            context, _, *pooled = encode(call)
            call.arguments |= dict(zip(("prompt_embeds", "pooled_prompt_embeds"), [finish(context), *pooled], strict=False))
        elif foreign and given_embeds == "prefix":
            if fronts:
                front = encode(call, prompt="", prompt_embeds=None)[0][:, :1 + len(fronts[0].vectors)].to(embeds)
                embeds = torch.cat([front.expand(len(embeds), -1, -1), embeds[:, 1:1 + embeds.shape[1] - front.shape[1]]], dim=1)
            call.arguments["prompt_embeds"] = finish(embeds)
        encoded = original(**call.arguments)
        own.update((id(output), output) for output in encoded[::2])
        return encoded

    return encode_prompt


def _prefixed_conditioning(original: Callable, manager: Manager) -> Callable:
    """Wrap LatentDiffusion's `get_learned_conditioning`: prefix, or map, every text except the empty one."""
    @functools.wraps(original)
    def get_learned_conditioning(texts: str | Sequence[str], embedding_manager: Any = None) -> Any:
        if embedding_manager is not None:
            raise UserError("an embedding_manager was given to a model to which an anonymization prompt is attached; leave it out, or "
                            "call the prompt's detach() first")
        texts = [texts] if isinstance(texts, str) else list(texts)
        empty = torch.tensor([text == "" for text in texts])
        if empty.all():
            return original(texts)
        prefixed = original(with_prefix(texts, manager), manager)
        return torch.where(empty[:, None, None].to(prefixed.device), original(texts), prefixed) if empty.any() else prefixed

    return get_learned_conditioning


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
    return [(found[name], getattr(target, tokenizer)) for name, (tokenizer, _) in ENCODERS.items() if name in found]


def _listed(values: Iterable[Any]) -> str:
    return " and ".join(map(str, values))
