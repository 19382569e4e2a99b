"""The glossary of ldm/README.md is kept: none of its replaced words in docstrings, comments, messages, help texts and READMEs."""

import ast
import functools
import io
import re
import tokenize

import pytest

from args.common import ROOT

CHECKED = ("args", "ldm", "README.md", "CONTRIBUTING.md", "configs/README.md", "configs/presets", "data/README.md", "embeddings/README.md",
           "train.py", "test_id.py", "test_fid_clip_score.py", "dataset_generation.py")
# Phrases in which such a word has another meaning: the paper's Figures, people, a prompt, a verdict that ldm.paper has printed, words of
# users' prompts, and the miniature's captions and seeds.
ALLOWED = re.compile(r"tables?( and| or|,) figures?|figures \d|figures? of the paper|public figures|painting, drawing, cartoon"
                     r"|within noise \d+|photograph picture image|sketch drawing painting|a picture of \{\}|picture of the day"
                     r"|pictures in the family album|^pictures $|for the figures",
                     re.IGNORECASE)
BLOCK, INLINE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL), re.compile(r"`[^`\n]+`|\S*/\S*|\S+\.(png|csv)")


@functools.cache
def glossary():
    """Replaced word -> the word to use, from the table in ldm/README.md."""
    table = (ROOT / "ldm/README.md").read_text(encoding="utf-8").partition("## Glossary")[2]
    rows = re.findall(r"^\| (.+?) \| .+ \|(.*)\|$", table, re.MULTILINE)
    return {word: use for use, words in rows for word in re.findall("`([^`]+)`", words)}


def checked_files():
    for name in CHECKED:
        path = ROOT / name
        yield from [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.suffix in (".py", ".md", ".yaml"))


def prose_of(text, suffix):
    """(line, text) of each comment and each string with a space in it; of Markdown all but blocks of code; of YAML the comments."""
    if suffix == ".py":
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        comments = [(one.start[0], one.string) for one in tokens if one.type == tokenize.COMMENT]
        strings = [(node.lineno, node.value) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)
                   and isinstance(node.value, str) and " " in node.value]
        return comments + strings
    if suffix == ".md":
        text = BLOCK.sub(lambda code: "\n" * code[0].count("\n"), text)
        return [(number, line) for number, line in enumerate(text.splitlines(), start=1)]
    return [(number, line.partition("#")[2]) for number, line in enumerate(text.splitlines(), start=1)]


def flaws_in(text, suffix):
    """(line, word) of each replaced word in the prose of a file."""
    words = re.compile(rf"\b({'|'.join(map(re.escape, glossary()))})\b", re.IGNORECASE)
    found = [(line, words.findall(ALLOWED.sub("", INLINE.sub("", prose)))) for line, prose in prose_of(text, suffix)]
    return [(line, word.lower()) for line, those in found for word in those]


def test_the_glossary_is_read():
    assert glossary()["pictures"] == "image, `image`" and len(glossary()) > 20


@pytest.mark.parametrize(("text", "suffix", "expected"), [
    ('"""A picture of it."""', ".py", [(1, "picture")]), ("pictures = 1\nx = 'picture'", ".py", []),
    ("x = 1  # drawn", ".py", [(1, "drawn")]), ('f"{x} goes on"', ".py", [(1, "goes on")]),
    ("Tables and figures.\n\nThe figures", ".md", [(3, "figures")]),
    ("`picture`\n```\ndraw\n```\nHe", ".md", [(5, "he")]), ("picture: 1  # beside", ".yaml", [(1, "beside")])])
def test_replaced_words_are_found_in_prose_and_not_in_code(text, suffix, expected):
    assert flaws_in(text, suffix) == expected


@pytest.mark.parametrize("path", checked_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_keeps_to_the_glossary(path):
    flaws = flaws_in(path.read_text(encoding="utf-8"), path.suffix)
    assert not flaws, ", ".join(f"line {line}: '{word}', use {glossary()[word]}" for line, word in flaws)
