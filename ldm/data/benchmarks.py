"""Benchmark prompts for the quality table (paper section 4.1: COCO-30k), read from any file of captions."""

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.data.captions import CAPTION_FIELDS
from ldm.text_files import HALF_CHARACTER, json_value, read_text, texts_in
from ldm.util import UserError, first_line


def read_benchmark(paths: Sequence[Path], count: int | None) -> list[tuple[str, int]]:
    """The first `count` prompts (None: all), each with the number of its earlier occurrences, ignoring case.

    The content determines the format: COCO captions JSON (first caption of each image), a JSON list, jsonl, csv or tsv with a column
    text, caption or prompt, or else text with one prompt per line. Prompts of several files are interleaved.

    Raises:
        UserError: a file cannot be read, has fewer than two prompts, or has a lone surrogate in a prompt.
    """
    turns = itertools.chain.from_iterable(itertools.zip_longest(*map(_prompts, paths)))
    seen: Counter[str] = Counter()
    found = []
    for prompt in itertools.islice((prompt for prompt in turns if prompt is not None), count):
        found.append((prompt, seen[prompt.casefold()]))
        seen[prompt.casefold()] += 1  # some file systems cannot hold two images whose names differ only in case
    return found


def different_prompts(path: Path) -> list[str]:
    """The distinct prompts of a file, read by `read_benchmark`."""
    return [prompt for prompt, seen in read_benchmark([path], None) if not seen]


def _prompts(path: Path) -> list[str]:
    text = read_text(path)
    found = _coco(text, path)
    prompts = texts_in(text, path, CAPTION_FIELDS) if found is None else [" ".join(prompt.split()) for prompt in found if prompt.strip()]
    if broken := next((prompt for prompt in prompts if HALF_CHARACTER.search(prompt)), None):
        raise UserError(f"{path} has half a character (a lone surrogate) in the prompt {broken!a}; correct the file")
    if len(prompts) < 2:
        raise UserError(f"{path} has {len(prompts)} prompts; give a file with at least two, one per line")
    return prompts


def _coco(text: str, path: Path) -> list[str] | None:
    """The first caption of each image of COCO's captions JSON; None for content of another kind."""
    is_named_so = path.suffix.lower() == ".json"
    content = json_value(text, path if is_named_so else None)
    if content is None or isinstance(content, list) or not is_named_so and not (isinstance(content, dict) and "annotations" in content):
        return None
    first: dict[Any, str] = {}
    try:
        for annotation in content["annotations"]:
            first.setdefault(annotation["image_id"], annotation["caption"].strip())
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a COCO captions file ({type(error).__name__}: {first_line(error)}); give one, a list of texts, or "
                        f"a table with one of the columns {', '.join(CAPTION_FIELDS)}") from None
    return list(first.values())
