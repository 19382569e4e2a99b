"""Hashes of file contents. They identify the inputs of a run by their bytes, independent of paths."""

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from args.paths import ROOT
from ldm.diffusers_folder import is_model_folder, weights_files
from ldm.hub import local_model
from ldm.image_files import ImageSource, files_below
from ldm.left_out import LeftOut
from ldm.run_folder import write_json

MANY = 1000  # number of files from which hashes are cached on disk


def file_hash(path: str | Path) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a file, cached in memory while its size and times of change stay the same.

    Of a diffusers folder, here or on the Hub, the hash of the hashes of the weights files that are read.
    """
    if (path := local_model(path)).is_dir():
        return digest({part: [*map(file_hash, files)] for part, files in weights_files(path).items()})
    return _hash(*_state(path))


def hashes_of(sources: Iterable[ImageSource], cache: Path | None = None) -> list[str]:
    """Identifier of the bytes of each image: the hash of its file, or the hash of its shard with the member's name.

    `cache` is a JSON file that stores the hashes between runs, for MANY files or more. A file counts as unchanged while its path, size,
    st_mtime_ns and st_ctime_ns are; on POSIX systems no program can set back the last.
    """
    sources = list(sources)
    paths = list(dict.fromkeys(source.path for source in sources))
    try:
        known: dict[str, list] = dict(json.loads(cache.read_text(encoding="utf-8"))) if cache else {}
    except (OSError, ValueError, TypeError):  # it only saves time
        known = {}
    hashes, fresh = {}, {}
    for path in tqdm(paths, "hashing", unit="file", leave=False, disable=len(paths) < MANY):
        try:
            key, *state = _state(path)
            hashes[path] = known[key][-1] if known.get(key, [])[:-1] == state else _hash(key, *state)
            fresh[key] = [*state, hashes[path]]
        except OSError:  # the decoder reports it
            hashes[path] = "unreadable"
    if cache is not None and len(paths) >= MANY and fresh != known:
        write_json(cache, fresh)
    return [f"{hashes[source.path]}:{source.member}".rstrip(":") for source in sources]


def digest(*values: object) -> str:
    """Hash of values with a deterministic `repr`, 16 hexadecimal digits."""
    return hashlib.sha256(repr(values).encode(errors="surrogatepass")).hexdigest()[:16]


def digest_of(flags: Mapping[str, Any]) -> str:
    """Hash of resolved flags, with files and folders by their content, 8 hexadecimal digits."""
    known = {flag: str(_known(value)) for flag, value in flags.items()}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:8]


def _known(value: Any) -> Any:
    """Hash of a file's or folder's content, per entry for lists; a missing one as its path in the repository; other values unchanged."""
    if not isinstance(value, Path):
        return [*map(_known, value)] if isinstance(value, list) else value
    if value.is_file() or value.is_dir():
        return file_hash(value) if value.is_file() or is_model_folder(value) else _content_of(value)
    path = Path(os.path.abspath(value))
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


@functools.cache  # a command's flags name the same folders again and again
def _content_of(folder: Path) -> str:
    files = files_below(folder, LeftOut())
    return digest([path.relative_to(folder).as_posix() for path in files], hashes_of(map(ImageSource, files)))


def _state(path: str | Path) -> tuple[str, int, int, int]:
    """Real path, size, st_mtime_ns and st_ctime_ns of a file."""
    found = os.stat(path)
    return os.path.realpath(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns


@functools.cache
def _hash(path: str, _size: int, _changed: int, _entry_changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
