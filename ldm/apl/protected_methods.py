"""Methods that `AnonymizationPrompt.attach` puts in the place of a model's own: the text encoder sees every prompt behind the prefix."""

import copy
import functools
import inspect
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.apl.allow_list import Gate, chosen, opened
from ldm.apl.guard import Guard, Insertion, inserting
from ldm.generation import with_prefix
from ldm.modules.embedding_manager import Manager
from ldm.util import UserError

GIVEN_EMBEDS = ("refuse", "allow", "prefix")


class ProtectedEncodePrompt:
    """A pipeline's `encode_prompt`: encodes the prompt alone, with the prefix or the map, and passes the result to the original.

    A deep copy belongs to the copied pipeline, to which the same anonymization prompt is attached.
    """

    def __init__(self, pipeline: Any, encoders: Sequence[tuple[Any, Tensor | None, int]], attachment: tuple[Any, str, bool]):
        """Guard the text encoders of a pipeline.

        Args:
            encoders: each with the vectors that it takes (None with a context map), and its end-of-text token.
            attachment: the AnonymizationPrompt, and given_embeds and allow_unprotected of its `attach`.
        """
        self.pipeline, self.original, self.attachment = pipeline, pipeline.encode_prompt, attachment
        functools.update_wrapper(self, self.original)
        self.fronts = [(Guard.of(encoder), vectors, end_of_text) for encoder, vectors, end_of_text in encoders]
        self._own: weakref.WeakValueDictionary[tuple[int, int], Tensor] = weakref.WeakValueDictionary()  # outputs, see `_identity`
        self._use()

    def _use(self) -> None:
        prompt, _, allow_unprotected = self.attachment
        for guard, _, _ in self.fronts:
            guard.users.add(self)
            guard.prompt, guard.strict = prompt, guard.strict or not allow_unprotected
            prompt.guards.add(guard)
        prompt.attached[self.pipeline] = "encode_prompt"

    def release(self) -> None:
        """Remove the guards that no other pipeline uses."""
        for guard, _, _ in self.fronts:
            guard.release(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "ProtectedEncodePrompt":
        copied = memo[id(self)] = object.__new__(type(self))
        vars(copied).update(copy.deepcopy(vars(self), memo))
        copied._use()
        return copied

    def __call__(self, *args: Any, **kwargs: Any) -> Sequence[Tensor]:
        prompt, given_embeds, _ = self.attachment
        call = inspect.signature(self.original).bind(*args, **kwargs)
        embeds = call.arguments.get("prompt_embeds")
        foreign = [given for given in (embeds, call.arguments.get("pooled_prompt_embeds"))
                   if given is not None and self._own.get(_identity(given)) is not given]
        if foreign and given_embeds == "refuse":
            raise UserError("prompt_embeds were given that this pipeline's encode_prompt did not return, and the anonymization prompt "
                            "cannot be put in front of their text; give the text as prompt, or attach with given_embeds='allow'")
        finish = (lambda context: context) if prompt.context_map is None else prompt.context_map.finish
        if embeds is None:
            context, *pooled = self._encode(call)[::2]
            rows = [finish(context), *pooled]
            if (are_open := opened(prompt.gate, call.arguments.get("prompt"), call.arguments.get("prompt_2"))).any():
                rows = [chosen(are_open, *pair) for pair in zip(self._encode(call, plain=True)[::2], rows, strict=True)]
            call.arguments |= dict(zip(("prompt_embeds", "pooled_prompt_embeds"), rows, strict=False))
        elif foreign and given_embeds == "prefix":
            if prompt.context_map is None:
                front = self._encode(call, prompt="", prompt_embeds=None)[0][:, :1 + len(prompt.vectors[0])].to(embeds)
                embeds = torch.cat([front.expand(len(embeds), -1, -1), embeds[:, 1:1 + embeds.shape[1] - front.shape[1]]], dim=1)
            call.arguments["prompt_embeds"] = finish(embeds)
        with inserting({guard: Insertion() for guard, _, _ in self.fronts}):  # what is left to encode is the negative prompt
            encoded = self.original(**call.arguments)
        self._own.update((_identity(output), output) for output in encoded[::2])
        return encoded

    def _encode(self, call: inspect.BoundArguments, *, plain: bool = False, **changed: Any) -> Sequence[Tensor]:
        """Call the original for the prompt without guidance, so that everything it encodes is the prompt; with `plain` without vectors."""
        insertions = {guard: Insertion(None if plain else vectors, end_of_text) for guard, vectors, end_of_text in self.fronts}
        with inserting(insertions):
            encoded = self.original(**call.arguments | {"do_classifier_free_guidance": False, "num_images_per_prompt": 1} | changed)
        if not all(insertion.reached for insertion in insertions.values()):
            raise UserError("the anonymization prompt did not reach the text encoder, which was compiled or exchanged after attach, "
                            "so nothing is generated; call detach() and attach it again")
        return encoded


def _identity(tensor: Tensor) -> tuple[int, int]:
    """Key of a tensor that changes when the tensor is changed in place; inference tensors do not count their changes."""
    return id(tensor), 0 if tensor.is_inference() else tensor._version


def protected_conditioning(original: Callable, manager: Manager, gate: Gate | None) -> Callable:
    """LatentDiffusion's `get_learned_conditioning` that prefixes, or maps, every text but the empty one and those that the gate opens."""
    @functools.wraps(original)
    def get_learned_conditioning(texts: str | Sequence[str], embedding_manager: Any = None) -> Any:
        if embedding_manager is not None:
            raise UserError("an embedding_manager was given to a model to which an anonymization prompt is attached; leave it out, or "
                            "call the prompt's detach() first")
        texts = [texts] if isinstance(texts, str) else list(texts)
        are_plain = torch.tensor([text == "" for text in texts]) | opened(gate, texts)
        if are_plain.all():
            return original(texts)
        prefixed = original(with_prefix(texts, manager), manager)
        return chosen(are_plain, original(texts), prefixed) if are_plain.any() else prefixed

    return get_learned_conditioning
