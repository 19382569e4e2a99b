"""Paths of the command line: relative paths are looked up in the current folder, then in the repository; pipes are buffered."""

import argparse
import atexit
import json
import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LISTS = {"people", "names", "names_file", "answers", "benchmark", "prompts_file", "preserve_prompts", "anchor_prompts", "templates",
         "captions", "identity_meta", "anchors", "drift_prompts"}  # text files, which may be pipes
PIPES = "APL_PIPES"  # environment variable with the buffer file of each pipe, for child processes


def found(path: str | Path) -> Path:
    """The path itself, or the same path in the repository if it exists only there."""
    path = Path(path)
    return path if path.exists() or not (ROOT / path).exists() else ROOT / path


def keep_pipes(args: argparse.Namespace) -> None:
    """Replace each pipe in the flags of LISTS, such as <(command) or /dev/stdin, by a temporary file with its content."""
    for flag in LISTS & set(vars(args)):
        given = getattr(args, flag)
        if given is not None:
            setattr(args, flag, [_kept(path) for path in given] if isinstance(given, list) else _kept(given))


def _kept(path: Path) -> Path:
    """The path, or for a pipe, which can be read only once, a temporary file with its content."""
    known = json.loads(os.environ.get(PIPES, "{}"))
    if str(path) in known:
        return Path(known[str(path)])
    if not (path.is_fifo() or path.is_char_device()):
        return path
    with tempfile.NamedTemporaryFile(prefix="apl-", delete=False) as file:
        file.write(path.read_bytes())
    atexit.register(Path(file.name).unlink, missing_ok=True)
    os.environ[PIPES] = json.dumps(known | {str(path): file.name})
    return Path(file.name)
