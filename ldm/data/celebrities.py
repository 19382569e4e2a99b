"""Names to erase and names that may be shown (S_keep), from lists of names, people.csv, or MACE's table of celebrity prompts.

MACE's table is read as it is published: a CSV with the columns type (erased or others), prompt and evaluation_seed, one row per image.
"""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.data.attribute_sentences import read_names
from ldm.data.benchmarks import fill
from ldm.data.captions import CaptionImage
from ldm.data.identities import KEEP, IdentityImage, read_people
from ldm.names import NameList
from ldm.text_files import is_table, read_text, rows_of
from ldm.util import UserError

TEMPLATES = ("A portrait of {}", "A sketch of {}", "An oil painting of {}", "An image capturing {} at a public event",
             "{} in an official photo")  # of MACE's table
TYPES = {"erased": False, "others": True}  # column type -> whether the person may be shown
_PATTERNS = [re.compile(re.escape(template).replace(r"\{\}", "(.+)"), re.IGNORECASE) for template in TEMPLATES]


@dataclass(frozen=True)
class CelebrityPrompt:
    """A row of MACE's table: an image to generate."""

    name: str
    template: str  # with {}
    seed: int
    kept: bool     # the person is of S_keep


def is_celebrity_table(path: Path) -> bool:
    """Whether a file has the columns of MACE's table."""
    return is_table(read_text(path), ("evaluation_seed",))


def read_celebrity_table(path: Path) -> list[CelebrityPrompt]:
    """The rows of MACE's table, in order; UserError if one has another type, another template, or a seed that is no whole number."""
    rows = []
    for line, fields in rows_of(read_text(path), path, ("type", "prompt", "evaluation_seed")):
        prompt, kind, seed = (" ".join(fields.get(key, "").split()) for key in ("prompt", "type", "evaluation_seed"))
        found = next(((template, match[1]) for template, pattern in zip(TEMPLATES, _PATTERNS, strict=True)
                      if (match := pattern.fullmatch(prompt))), None)
        if found is None or kind not in TYPES or not seed.isdecimal():
            raise UserError(f"{path}, line {line}: '{kind}', '{prompt}', '{seed}' is no row of MACE's table; give the type erased or "
                            f"others, a prompt such as '{fill(TEMPLATES[0], 'NAME')}', and a whole number as evaluation_seed")
        rows.append(CelebrityPrompt(found[1], found[0], int(seed), TYPES[kind]))
    if both := {row.name for row in rows if row.kept} & {row.name for row in rows if not row.kept}:
        raise UserError(f"{path} has {min(both)} both as erased and as others; remove one of them")
    return rows


def read_erased_names(path: Path) -> tuple[list[str], int]:
    """Names to erase and the number of duplicates: those of the type erased in MACE's table, or all names of a list."""
    return (_names_of(path, kept=False), 0) if is_celebrity_table(path) else read_names(path)


def read_kept_names(path: Path) -> list[str]:
    """Names of S_keep, each once: the type others in MACE's table, the group keep in people.csv, or all names of a list.

    Raises UserError if the file is invalid or has no such name.
    """
    if is_celebrity_table(path):
        names = _names_of(path, kept=True)
    elif is_table(read_text(path), ("group",)):
        names = [person.name for person in read_people(path).values() if person.group == KEEP]
    else:
        names = read_names(path)[0]
    if not names:
        raise UserError(f"{path} has nobody of the group keep or the type others; give names that may be shown")
    return names


def refuse_both(erased: Iterable[str], kept: Sequence[str], source: object) -> None:
    """Raise UserError if a name to erase is also on the list `source` of names that may be shown, in any spelling."""
    known = NameList(kept, source)
    if both := next((name for name in erased if known.find(name)), None):
        raise UserError(f"'{both}' is to be erased and is also on the list {source} of names that may be shown; remove the name from one "
                        "of them")


def kept_captions(names: Sequence[str], images: Sequence[IdentityImage], templates: Sequence[str], count: int) -> list[CaptionImage]:
    """`count` samples of S_Reg that name people of S_keep, so that c1 = c2 = the prompt with the name.

    Each has a random template, and a random image of the person, or else of anybody in `images`: the loss compares two predictions for
    the same noisy image, which may show anybody.
    """
    known, everybody = NameList(names), [image.source for image in images]
    own = {name: [image.source for image in images if known.find(image.name) == name] or everybody for name in names}
    found = []
    for number in range(count):
        rng, name = random.Random(f"S_keep {number}"), names[number % len(names)]
        found.append(CaptionImage(rng.choice(own[name]), fill(rng.choice(templates), name)))
    return found


def _names_of(path: Path, *, kept: bool) -> list[str]:
    return list(dict.fromkeys(row.name for row in read_celebrity_table(path) if row.kept == kept))
