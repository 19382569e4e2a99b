"""Guards the text encoders of a protected pipeline: they refuse every prompt that comes around the anonymization prompt.

The hooks belong to the text encoder, so that they also hold in pipelines built from its pipeline's components, and in deep copies.
"""

import contextlib
import copy
import functools
import weakref
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.util import UserError, warn

SAVED = "anonymization_prompt"  # sub-folder of a saved text encoder
ATTRIBUTE = "_anonymization_guard"  # of a text encoder
AROUND = ("a prompt came around the anonymization prompt that protects its text encoder, as from a pipeline that was built with from_pipe "
          "or from components, or from code that calls the text encoder itself; attach the anonymization prompt to that pipeline too, or "
          "attach it with allow_unprotected=True")


@dataclass(eq=False)
class Insertion:
    """What one call inserts into one text encoder: vectors (m, d) after the begin-of-text token; None: nothing, and the call passes."""

    vectors: Tensor | None = None
    end_of_text: int = 0
    reached: bool = False  # whether the text encoder was called and the vectors were inserted


_current: ContextVar[Mapping["Guard", Insertion]] = ContextVar("_current")  # per thread


@contextlib.contextmanager
def inserting(insertions: Mapping["Guard", Insertion]) -> Iterator[None]:
    """Temporarily let this thread call these text encoders, with their insertions."""
    token = _current.set(insertions)
    try:
        yield
    finally:
        _current.reset(token)


class Guard:
    """Hooks of a text encoder that insert vectors, and refuse calls outside of `inserting`, until the last user has released it.

    The token ids are shifted first, so that positions, padding and the pooled output (at the end of text) are those of the longer text.
    """

    def __init__(self, encoder: Any):
        self.encoder, self.strict = encoder, False
        self.prompt: Any = None  # the AnonymizationPrompt that was attached last
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()
        self.table = encoder.get_input_embeddings()
        # Every way through the text encoder and its parts leads through the owner of the table, which load_textual_inversion keeps.
        owner = next(module for module in encoder.modules() if any(child is self.table for child in module.children()))
        self.handles = [encoder.register_forward_pre_hook(self._make_room), owner.register_forward_pre_hook(self._check),
                        self.table.register_forward_hook(self._put_vectors)]
        setattr(encoder, ATTRIBUTE, self)
        encoder.save_pretrained = functools.update_wrapper(functools.partial(self._save_pretrained), encoder.save_pretrained)

    @classmethod
    def of(cls, encoder: Any) -> "Guard":
        """The guard of a text encoder, created if there is none."""
        return vars(encoder).get(ATTRIBUTE) or cls(encoder)

    def release(self, *users: Any) -> None:
        """Remove the hooks if no pipeline but those of `users` still uses them."""
        self.users.difference_update(users)
        if not self.users:
            for handle in self.handles:
                handle.remove()
            for name in (ATTRIBUTE, "save_pretrained"):
                vars(self.encoder).pop(name, None)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Guard":
        copied = memo[id(self)] = object.__new__(type(self))
        vars(copied).update(copy.deepcopy({name: value for name, value in vars(self).items() if name != "users"}, memo),
                            users=weakref.WeakSet())
        self.prompt.guards.add(copied)
        return copied

    def __reduce__(self) -> Any:
        raise UserError("a text encoder with an anonymization prompt cannot be pickled, and its copy would be unprotected; call detach() "
                        "first, and attach to the copy")

    def _insertion(self) -> Insertion | None:
        return _current.get({}).get(self)

    # torch.compile would evaluate the hooks once and keep the result.
    @torch.compiler.disable
    def _check(self, _owner: nn.Module, _arguments: tuple) -> None:
        insertion = self._insertion()
        if insertion is None and self.strict:
            raise UserError(AROUND)
        if insertion is not None and insertion.vectors is None:
            insertion.reached = True

    @torch.compiler.disable
    def _make_room(self, _encoder: nn.Module, arguments: tuple) -> tuple | None:
        insertion = self._insertion()
        if insertion is None or insertion.vectors is None:
            return None
        if (table := self.encoder.get_input_embeddings()) is not self.table:  # load_textual_inversion has replaced it
            self.table = table
            self.handles.append(table.register_forward_hook(self._put_vectors))
        token_ids, *others = arguments
        return shifted(token_ids, len(insertion.vectors), insertion.end_of_text), *others

    @torch.compiler.disable
    def _put_vectors(self, _table: nn.Module, _arguments: tuple, token_embeddings: Tensor) -> Tensor | None:
        insertion = self._insertion()
        if insertion is None or insertion.vectors is None:
            return None
        insertion.reached = True
        vectors = insertion.vectors.to(token_embeddings).expand(len(token_embeddings), -1, -1)
        return torch.cat([token_embeddings[:, :1], vectors, token_embeddings[:, 1 + vectors.shape[1]:]], dim=1)

    def _save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Save the text encoder, which is unprotected when it is loaded, with the anonymization prompt in a sub-folder."""
        saved = self.encoder.save_pretrained.__wrapped__(save_directory, *args, **kwargs)
        folder = Path(save_directory) / SAVED
        self.prompt.save_pretrained(folder)
        warn(f"the model saved in {save_directory} is not protected when it is loaded; call "
             f"AnonymizationPrompt.from_pretrained({str(folder)!r}).attach(pipeline) then")
        return saved


def shifted(token_ids: Tensor, m: int, end_of_text: int) -> Tensor:
    """Token ids (B, L) with room for m vectors after the first; the end of a text that no longer fits takes the last position."""
    first, rest, dropped = token_ids.split([1, token_ids.shape[1] - 1 - m, m], dim=1)
    moved = torch.cat([first.expand(-1, 1 + m), rest], dim=1)
    moved[:, -1].masked_fill_((dropped == end_of_text).any(1), end_of_text)
    return moved
