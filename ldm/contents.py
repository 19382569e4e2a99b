"""Content of files as hashes: a run is the same while its inputs have the same bytes, wherever they are and however a path is spelled."""

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from args.paths import ROOT
from ldm.image_files import ImageSource, files_below
from ldm.left_out import LeftOut
from ldm.run_folder import write_json

MANY = 1000  # files, from which hashes are worth keeping
UNREADABLE = "unreadable"  # stands for the bytes of a file that cannot be read


def file_hash(path: str | Path) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a file; read once while its size and times of change stay."""
    return _hash(*_state(path))


def hashes_of(sources: Iterable[ImageSource], cache: Path | None = None) -> list[str]:
    """What stands for the bytes of each image: the hash of its file, and for one in a shard that of the shard with the member's name.

    Args:
        cache: a JSON file that keeps the hashes of MANY files from run to run. A file counts as unchanged while its path, size and both
            times of change are (st_mtime_ns, st_ctime_ns); on POSIX systems no program can set back the second.
    """
    sources = list(sources)
    known = _read(cache)
    hashes, fresh = {}, {}
    paths = list(dict.fromkeys(source.path for source in sources))
    for path in tqdm(paths, "hashing", unit="file", leave=False, disable=len(paths) < MANY):
        try:
            key, *state = _state(path)
            hashes[path] = known[key][-1] if known.get(key, [])[:-1] == state else _hash(key, *state)
            fresh[key] = [*state, hashes[path]]
        except OSError:  # the decoder reports it
            hashes[path] = UNREADABLE
    if cache is not None and len(paths) >= MANY and fresh != known:
        write_json(cache, fresh)
    return [f"{hashes[source.path]}:{source.member}".rstrip(":") for source in sources]


def digest(*values: object) -> str:
    """16 hexadecimal digits that stand for values with a plain `repr`."""
    return hashlib.sha256(repr(values).encode(errors="surrogatepass")).hexdigest()[:16]


def digest_of(flags: Mapping[str, Any]) -> str:
    """8 hexadecimal digits that stand for resolved flags, and for the content of the files and folders among them."""
    known = {flag: str(_known(value)) for flag, value in flags.items()}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:8]


def _known(value: Any) -> Any:
    """A file or folder by its content, each of a list; a missing one by its path, seen from the repository; else the value itself."""
    if isinstance(value, list):
        return [*map(_known, value)]
    if not isinstance(value, Path):
        return value
    if value.is_file():
        return file_hash(value)
    if value.is_dir():
        return _content_of(value)
    path = Path(os.path.abspath(value))
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


@functools.cache  # once per command, whose flags name the same folders again and again
def _content_of(folder: Path) -> str:
    files = files_below(folder, LeftOut())
    return digest([path.relative_to(folder).as_posix() for path in files], hashes_of(map(ImageSource, files)))


def _state(path: str | Path) -> tuple[str, int, int, int]:
    """Path, size, and the times at which the bytes and the file's entry changed last."""
    found = os.stat(path)
    return os.path.realpath(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns


@functools.cache
def _hash(path: str, _size: int, _changed: int, _entry_changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _read(cache: Path | None) -> dict[str, list]:
    try:
        return dict(json.loads(cache.read_text(encoding="utf-8"))) if cache else {}
    except (OSError, ValueError, TypeError):  # it only saves time
        return {}
