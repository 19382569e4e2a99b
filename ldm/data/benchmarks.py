"""Prompts that the paper's quality table is measured on (section 4.1: COCO-30k), from any file that holds captions."""

import csv
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ldm.data.captions import CAPTION_FIELDS
from ldm.util import UserError


def read_benchmark(paths: Sequence[Path], count: int | None) -> list[tuple[str, int]]:
    """The first `count` prompts, or all there are (None); each with the number of times that it has come before, in upper or
    lower case.

    Read: .json of COCO's captions (the first caption of each image) or of a list; .jsonl and .csv with a field text, caption
    or prompt; every other file one prompt a line. Several files take turns.

    Raises:
        UserError: a file that cannot be read, that has fewer than two prompts, or half a character (a lone surrogate) in one.
    """
    turns = itertools.chain.from_iterable(itertools.zip_longest(*map(_prompts, paths)))
    seen: Counter[str] = Counter()
    found = []
    for prompt in itertools.islice((prompt for prompt in turns if prompt is not None), count):
        found.append((prompt, seen[prompt.casefold()]))
        seen[prompt.casefold()] += 1  # not every file system can tell pictures apart whose names differ in case
    return found


def different_prompts(path: Path) -> list[str]:
    """Every prompt of a file once, read as `read_benchmark` reads it."""
    return [prompt for prompt, seen in read_benchmark([path], None) if not seen]


def _prompts(path: Path) -> list[str]:
    read = {".json": _json, ".jsonl": _jsonl, ".csv": _csv}.get(Path(path).suffix.lower(), _lines)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            prompts = [stripped for prompt in read(file) if (stripped := " ".join(prompt.split()))]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as prompts ({type(error).__name__}: {error}); give COCO captions, .jsonl or .csv with "
                        f"one of the fields {', '.join(CAPTION_FIELDS)}, or one prompt a line") from error
    if broken := next((prompt for prompt in prompts if re.search("[\ud800-\udfff]", prompt)), None):
        raise UserError(f"{path} has half a character (a lone surrogate) in the prompt {broken!a}; correct the file")
    if len(prompts) < 2:
        raise UserError(f"{path} has {len(prompts)} prompts; give a file with at least two, one a line")
    return prompts


def _json(file: Iterable[str]) -> list[str]:
    content = json.loads("".join(file))
    if isinstance(content, list):
        return [entry if isinstance(entry, str) else _field(entry) for entry in content]
    first: dict[Any, str] = {}
    for annotation in content["annotations"]:
        first.setdefault(annotation["image_id"], annotation["caption"])
    return list(first.values())


def _jsonl(file: Iterable[str]) -> list[str]:
    return [_field(json.loads(line)) for line in file if line.strip()]


def _csv(file: Iterable[str]) -> list[str]:
    return [_field(row) for row in csv.DictReader(file)]


def _lines(file: Iterable[str]) -> list[str]:
    return list(file)


def _field(entry: dict[str, str]) -> str:
    return [entry[field] for field in CAPTION_FIELDS if field in entry][0]
