"""The gate of protection with exceptions: whether a prompt names people who may be shown (S_keep), and certainly nobody else.

Whether a word is somebody's name cannot be decided from a list of names: an attacker misspells it, writes it in lower case, or describes
the person. So the gate is closed unless every word of the prompt is known: it belongs to a whole name of the list, or to a list of words
that name nobody. A prompt that names nobody is prefixed as well; the prefix preserves its image.
"""

import unicodedata
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ldm.names import words_of
from ldm.util import UserError

Gate = Callable[[str], bool]  # prompt -> whether it is left unprotected

# Words that name nobody, alone or together: no given names, surnames, stage names ("the rock", "pink"), titles or roles ("the queen").
HARMLESS = frozenset("""
a an the of in on at with without and or from by to for before behind front next over under near her his their is as s one taken
photo photos photograph picture image portrait closeup close up shot selfie headshot sketch drawing painting illustration poster
oil watercolor watercolour pencil acrylic studio official public event capturing showing shows smiling laughing sitting standing walking
looking wearing holding waving reading camera face head shoulders hair eyes glasses hat cap scarf shirt suit jacket dress coat tie
high very highly detailed sharp focus best quality realistic cinematic professional natural soft warm bright dark light lighting
background plain blurred simple outdoors indoors city street garden office stage beach kitchen room museum restaurant family album
colour color colors masterpiece black white red blue green yellow grey purple orange brown old young new modern vintage
car bicycle dog cat book books flowers tree trees table chair window cup coffee bench wall door
""".split())
PUNCTUATION = frozenset(",;.:!?()'\"-\u2010\u2013\u2014\u2018\u2019\u201c\u201d\n\r\t ")  # besides letters, marks, digits and spaces
LETTERS = ("L", "M", "Nd", "Zs")  # categories


class AllowList:
    """Gate for a list of names: open for a prompt that names some of them, and whose other words all name nobody.

    Names match whole, in any case, with or without diacritics, with any spaces and punctuation between their words. Two names must have
    something between them, so that together they do not form a third. Misspelt names, digits, symbols, invisible characters, words of
    other scripts and all words that are not known close the gate: the prompt is prefixed, and the person is not shown.

    Args:
        names: S_keep.
        others: known names of people who must not be shown. A prompt with all words of one of them is closed, even if each word is known.
        words: texts, such as templates or captions, whose words name nobody; they extend HARMLESS, but for words of `others`.

    Raises:
        UserError: a name has no letters, or is in both lists.
    """

    def __init__(self, names: Iterable[str], *, others: Iterable[str] = (), words: Iterable[str] = ()) -> None:
        self._names = {tuple(words_of(name).split()): name for name in names}
        hidden = {tuple(words_of(name).split()): name for name in others} if others else {}
        if () in self._names:
            raise UserError(f"the allowed name '{self._names[()]}' has no letters; give names of people")
        if both := next((hidden[name] for name in self._names if name in hidden), None):
            raise UserError(f"'{both}' is in the list of allowed names and in that of other names; remove it from one of them")
        self._longest = max(map(len, self._names), default=0)
        own = [set(name) for name in self._names]
        self._hidden = [set(name) for name in hidden if not any(set(name) <= words for words in own)]  # these match as a part of a name
        self._words = HARMLESS | {word for text in words for word in words_of(text).split()} - {word for name in hidden for word in name}

    def __call__(self, prompt: str) -> bool:
        """Whether the prompt may be generated without the prefix."""
        if not all(letter in PUNCTUATION or unicodedata.category(letter).startswith(LETTERS) for letter in prompt):
            return False
        words = words_of(prompt, ",").replace(",", " , ").split()
        place, named, before = 0, False, False  # `before`: a name ends directly before this place
        while place < len(words):
            length = next((n for n in range(self._longest, 0, -1) if tuple(words[place:place + n]) in self._names), 0)
            if (length and before) or not (length or words[place] == "," or words[place] in self._words):
                return False
            place, before, named = place + (length or 1), length > 0, named or length > 0
        return named and not any(name <= set(words) for name in self._hidden)


def gate_of(allow: Iterable[str] | Gate) -> Gate | None:
    """The gate of a list of names, or a given gate; None for no names, which prefixes every prompt."""
    if callable(allow):
        return allow
    names = list(allow)
    return AllowList(names) if names else None


def opened(gate: Gate | None, *prompts: str | Sequence[str] | None) -> Tensor:
    """Whether the gate opens for each prompt of a batch, (B,) bool; of several prompts per image, as SDXL has them, for all together."""
    batches = [[batch] if isinstance(batch, str) else list(batch) for batch in prompts if batch is not None]
    texts = [", ".join(texts) for texts in zip(*batches, strict=True)]
    return torch.tensor([gate is not None and bool(gate(text)) for text in texts], dtype=torch.bool)


def chosen(are_open: Tensor, plain: Tensor, prefixed: Tensor) -> Tensor:
    """Rows of `plain` (B, ...) where `are_open` (B,), else of `prefixed` (B, ...)."""
    return torch.where(are_open.view(-1, *[1] * (prefixed.dim() - 1)).to(prefixed.device), plain, prefixed)
