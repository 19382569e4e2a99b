"""The output folder of a command: finished images, and a manifest of every setting they depend on.

    <out_dir>/manifest.json                          settings, and the hash of each prefix
    <out_dir>/arguments.json                         resolved arguments, seed, versions
    <out_dir>/images/<prefix or none>/<name>/<sample>.png

Run again with the same settings, a command goes on where it stopped; with other settings it is refused, so that images
made one way are never scored as if they were made another way.
"""

import hashlib
import json
import platform
import re
import shutil
import zipfile
from collections.abc import Mapping, Set
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ldm.sharing import Devices
from ldm.util import UserError, first_line, write_atomically, write_text

VERSIONS_OF = ("torch", "transformers", "insightface", "onnxruntime", "pillow", "numpy")
LONGEST_NAME = 60  # characters; a file system counts up to 4 bytes for each, 255 in all


class RunFolder:
    """Images and manifest under `path`.

    Args:
        settings: what every image depends on (model hash, prompt template, seed, guidance, steps, eta), JSON values.
            The number of samples is not among them: asking for more of the same images adds to the folder.
        resume: keep finished images; False deletes the images that an earlier run left here.

    Raises:
        UserError: the images here were made with other settings, or not by a run like this.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], *, resume: bool = True) -> None:
        self.path = Path(path)
        self._manifest_path = self.path / "manifest.json"
        images, manifest = self.path / "images", self._read_manifest()
        if manifest is None and images.exists():
            raise UserError(f"{images} exists without a manifest, so nothing says how its images were made; "
                            "use another --out_dir")
        if manifest is not None and not resume:
            shutil.rmtree(images, ignore_errors=True)
            manifest = None
        self._manifest = manifest or {"settings": dict(settings), "prefixes": {}}
        self._refuse_others("other settings", self._manifest["settings"], dict(settings))
        self._write_manifest()

    @classmethod
    def shared(cls, fabric: Devices, path: str | Path, settings: Mapping[str, Any], prefixes: Mapping[str, str | None], *,
               resume: bool = True, arguments: Mapping[str, Any] | None = None) -> "RunFolder":
        """The folder for every device of a run, made by the first one, with prefixes (hash by label) that are all announced."""
        folder = None
        if fabric.is_global_zero:
            folder = cls(path, settings, resume=resume)
            for label, prefix_hash in prefixes.items():
                folder.add_prefix(label, prefix_hash)
            if arguments is not None:
                folder.write_arguments(arguments)
        return fabric.broadcast(folder)

    def add_prefix(self, label: str, prefix_hash: str | None) -> None:
        """Announce images that are made with a prefix (or "none", hash None), before the first of them is written.

        Raises:
            UserError: there are images under this label that were made with another prefix.
        """
        known = self._manifest["prefixes"]
        if label in known:
            self._refuse_others("another prefix", {label: known[label]}, {label: prefix_hash})
        else:
            known[label] = prefix_hash
            self._write_manifest()

    def image_path(self, label: str, name: str, sample: int) -> Path:
        """Where the image of one prefix, name and sample number is or will be."""
        return image_path(self.path, label, name, sample)

    def write_arguments(self, arguments: Mapping[str, Any]) -> None:
        """arguments.json: the resolved arguments of this run (seed included) and the versions it ran with."""
        write_json(self.path / "arguments.json", {"arguments": dict(arguments), "versions": versions()})

    def _read_manifest(self) -> dict[str, Any] | None:
        if not self._manifest_path.exists():
            return None
        try:
            manifest = json.loads(self._manifest_path.read_text(encoding="utf-8"))
            return {"settings": dict(manifest["settings"]), "prefixes": dict(manifest["prefixes"])}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self._manifest_path} is no manifest of this program; use another --out_dir") from error

    def _write_manifest(self) -> None:
        write_json(self._manifest_path, self._manifest)

    def _refuse_others(self, what: str, there: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        there, asked = (json.loads(json.dumps(values)) for values in (there, asked))  # as they come back from the file
        different = [key for key in dict.fromkeys([*there, *asked]) if there.get(key) != asked.get(key)]
        if different:
            changes = ", ".join(f"{key} {there.get(key)!r} instead of {asked.get(key)!r}" for key in different)
            raise UserError(f"the images in {self.path} were made with {what} ({changes}); use another "
                            "--out_dir, or --no-resume to delete them and start anew")


def image_path(folder: Path, label: str, name: str, sample: int) -> Path:
    """See RunFolder.image_path, for a folder that a run has made."""
    return folder / "images" / safe_name(label) / safe_name(name) / f"{sample}.png"


def write_json(path: str | Path, content: Any) -> None:
    """`content` as readable JSON in a whole file; what JSON does not know (paths) is written as a string."""
    text = json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n"
    write_text(path, text)


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An .npz with an array per name; any name may be used, unlike in np.savez, which has arguments of its own."""
    def write(target: Path) -> None:
        with zipfile.ZipFile(target, "w") as file:
            for name, array in arrays.items():
                with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)

    write_atomically(path, write)


def read_json(path: Path, keys: Set[str] = frozenset()) -> Any:
    """What `write_json` has written; UserError where the file is damaged, or is none with these keys."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if keys and not (isinstance(content, dict) and keys <= set(content)):
            raise ValueError(f"it lacks {', '.join(sorted(keys - set(content if isinstance(content, dict) else ())))}")
        return content
    except ValueError as error:
        raise UserError(f"{path} is damaged ({first_line(error)}); delete it, and the same command makes it again") from None


def safe_name(name: str) -> str:
    """Folder or file name for any text: itself where every system allows it, else cleaned and kept apart by a hash."""
    cleaned = re.sub(r"[^\w .,'()+-]", "_", name).strip(" .")[:LONGEST_NAME] or "_"
    reserved = re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name, re.IGNORECASE)  # devices of Windows
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return cleaned if cleaned == name and not reserved else f"{cleaned.strip(' .')}-{digest}"


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that an image's last bit may depend on, where they are installed."""
    found = {"python": platform.python_version()}
    for package in VERSIONS_OF:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
