"""Prompts from users' files (paper section 4.1): templates, filled with names and attributes, and benchmark prompts such as COCO-30k's."""

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ldm.data.images import CAPTION_FIELDS
from ldm.text_files import HALF_CHARACTER, json_value, read_lines, read_text, texts_in
from ldm.util import UserError, first_line


def read_templates(path: str | Path) -> list[str]:
    """Templates of a text file, one per line, each with one {}; empty lines and lines that start with # are skipped.

    Raises UserError if the file does not exist or is empty, or a line does not have exactly one {}.
    """
    if not Path(path).is_file():
        raise UserError(f"the template file {path} does not exist; give a text file with one template per line, such as 'a photo of {{}}'")
    templates = read_lines(path, ("template", "templates", "prompt", "text"))
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f"the template '{template}' in {path} has {template.count('{}')} places {{}}; write exactly one")
    if not templates:
        raise UserError(f"the file {path} holds no template; write one per line, such as 'a photo of {{}}'")
    return templates


def fill(template: str, text: str) -> str:
    """The template with {} replaced by `text`: the name for c1, the attributes for c2."""
    return template.replace("{}", text)


def read_benchmark(paths: Sequence[Path], count: int | None) -> list[tuple[str, int]]:
    """The first `count` prompts (None: all), each with the number of its earlier occurrences, ignoring case.

    The content determines the format: COCO captions JSON (first caption of each image), a JSON list, jsonl, csv or tsv with a column
    text, caption or prompt, or else text with one prompt per line. Prompts of several files are interleaved. Raises UserError if a file
    cannot be read, has fewer than two prompts, or has a lone surrogate in a prompt.
    """
    turns = itertools.chain.from_iterable(itertools.zip_longest(*map(_prompts, paths)))
    seen: Counter[str] = Counter()
    found = []
    for prompt in [prompt for prompt in turns if prompt is not None][:count]:
        found.append((prompt, seen[prompt.casefold()]))
        seen[prompt.casefold()] += 1  # some file systems cannot hold two images whose names differ only in case
    return found


def different_prompts(path: Path) -> list[str]:
    """The distinct prompts of a file, read by `read_benchmark`."""
    return [prompt for prompt, seen in read_benchmark([path], None) if not seen]


def _prompts(path: Path) -> list[str]:
    text, is_json = read_text(path), path.suffix.lower() == ".json"
    content = json_value(text, path if is_json else None)
    if content is None or isinstance(content, list) or not (is_json or isinstance(content, dict) and "annotations" in content):
        prompts = texts_in(text, path, CAPTION_FIELDS)
    else:
        first: dict[object, str] = {}  # caption by image
        try:
            for annotation in content["annotations"]:
                first.setdefault(annotation["image_id"], " ".join(annotation["caption"].split()))
        except (LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not a COCO captions file ({type(error).__name__}: {first_line(error)}); give one, a list of texts, "
                            f"or a table with one of the columns {', '.join(CAPTION_FIELDS)}") from None
        prompts = list(filter(None, first.values()))
    if broken := next(filter(HALF_CHARACTER.search, prompts), None):
        raise UserError(f"{path} has half a character (a lone surrogate) in the prompt {broken!a}; correct the file")
    if len(prompts) < 2:
        raise UserError(f"{path} has {len(prompts)} prompts; give a file with at least two, one per line")
    return prompts
