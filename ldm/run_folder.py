"""Output folder of a command: finished images, and a manifest of all settings that determine them.

    <out_dir>/manifest.json                          settings, and the hash of each prefix
    <out_dir>/arguments.json                         resolved arguments, seed, versions
    <out_dir>/images/<prefix or none>/<name>/<sample>.png

A command with the same settings resumes in the folder. A command with other settings is refused, so that images of different settings
are never mixed.
"""

import hashlib
import json
import platform
import re
import shutil
import zipfile
from collections.abc import Mapping, Set
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ldm.sharing import Devices
from ldm.util import UserError, first_line, write_atomically, write_text

VERSIONS_OF = ("torch", "transformers", "insightface", "onnxruntime", "pillow", "numpy")
LONGEST_NAME = 60  # characters; a file system counts up to 4 bytes for each, 255 in all


class RunFolder:
    """Images and manifest of a run.

    `settings` are JSON values that determine every image (model hash, prompt template, seed, guidance, steps, eta), but not the number of
    samples: more samples are added to the folder. Without `resume`, the images of an earlier run are deleted. UserError if the folder holds
    images of other settings, or images without a manifest.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], *, resume: bool = True) -> None:
        self.path = Path(path)
        self._manifest_path = self.path / "manifest.json"
        images, manifest = self.path / "images", self._read_manifest()
        if manifest is None and images.exists():
            raise UserError(f"{images} exists without a manifest, so the settings of its images are unknown; use another --out_dir")
        if manifest is not None and not resume:
            shutil.rmtree(images, ignore_errors=True)
            manifest = None
        self._manifest = manifest or {"settings": dict(settings), "prefixes": {}}
        self._refuse_others("other settings", self._manifest["settings"], settings)
        write_json(self._manifest_path, self._manifest)

    @classmethod
    def shared(cls, fabric: Devices, path: str | Path, settings: Mapping[str, Any], prefixes: Mapping[str, str | None], *,
               resume: bool = True, arguments: Mapping[str, Any] | None = None) -> "RunFolder":
        """Create the folder on rank 0, register all prefixes (label -> hash), and broadcast it to every rank."""
        folder = None
        if fabric.is_global_zero:
            folder = cls(path, settings, resume=resume)
            for label, prefix_hash in prefixes.items():
                folder.add_prefix(label, prefix_hash)
            if arguments is not None:
                folder.write_arguments(arguments)
        return fabric.broadcast(folder)

    def add_prefix(self, label: str, prefix_hash: str | None) -> None:
        """Register a prefix (or "none", hash None) before its first image; UserError if another one has the label."""
        known = self._manifest["prefixes"]
        if label in known:
            self._refuse_others("another prefix", {label: known[label]}, {label: prefix_hash})
        else:
            known[label] = prefix_hash
            write_json(self._manifest_path, self._manifest)

    def image_path(self, label: str, name: str, sample: int) -> Path:
        """See `image_path`."""
        return image_path(self.path, label, name, sample)

    def write_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Write arguments.json: the resolved arguments of this run, including the seed, and the library versions."""
        write_json(self.path / "arguments.json", {"arguments": dict(arguments), "versions": versions()})

    def _read_manifest(self) -> dict[str, Any] | None:
        if not self._manifest_path.exists():
            return None
        try:
            manifest = json.loads(self._manifest_path.read_text(encoding="utf-8"))
            return {"settings": dict(manifest["settings"]), "prefixes": dict(manifest["prefixes"])}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self._manifest_path} is not a manifest of this program; use another --out_dir") from error

    def _refuse_others(self, what: str, there: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        if changes := changes_of(there, asked):
            raise UserError(f"the images in {self.path} were made with {what} ({', '.join(changes.values())}); use another "
                            "--out_dir, or --no-resume to delete them and start again")


def changes_of(there: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, str]:
    """By key, a text "KEY OLD instead of NEW" for each setting that differs between two runs; values are compared as JSON."""
    there, asked = (json.loads(json.dumps(dict(values))) for values in (there, asked))
    return {key: f"{key} {there.get(key)!r} instead of {asked.get(key)!r}"
            for key in dict.fromkeys([*there, *asked]) if there.get(key) != asked.get(key)}


def image_path(folder: Path, label: str, name: str, sample: int) -> Path:
    """Path of the image of a prefix, a name and a sample number in the folder of a run."""
    return folder / "images" / safe_name(label) / safe_name(name) / f"{sample}.png"


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically; values that JSON does not support (paths) are written as strings."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz with one array per name; unlike np.savez, any name is allowed, such as "file"."""
    def write(target: Path) -> None:
        with zipfile.ZipFile(target, "w") as file:
            for name, array in arrays.items():
                with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)

    write_atomically(path, write)


def read_json(path: Path, keys: Set[str] = frozenset()) -> Any:
    """Read a file of `write_json`; UserError if it is not valid JSON or lacks one of `keys`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if keys and not (isinstance(content, dict) and keys <= set(content)):
            raise ValueError(f"it lacks {', '.join(sorted(keys - set(content if isinstance(content, dict) else ())))}")
        return content
    except ValueError as error:
        raise UserError(f"{path} is damaged ({first_line(error)}); delete it, and the same command creates it again") from None


def safe_name(name: str) -> str:
    """Folder or file name for any text: the text if every system allows it, else a cleaned form with a hash that keeps it unique."""
    cleaned = re.sub(r"[^\w .,'()+-]", "_", name).strip(" .")[:LONGEST_NAME] or "_"
    reserved = re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name, re.IGNORECASE)  # devices of Windows
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return cleaned if cleaned == name and not reserved else f"{cleaned.strip(' .')}-{digest}"


def versions() -> dict[str, str]:
    """Versions of Python and of the installed libraries that can change an image's exact values."""
    found = {"python": platform.python_version()}
    for package in VERSIONS_OF:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
