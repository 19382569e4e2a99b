"""Detects the format of a file from its first bytes, independent of its name, for all readers of weights, models, images and texts."""

import contextlib
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from ldm.util import UserError

SAFETENSORS, ZIP, PICKLE, ONNX = "a safetensors file", "a PyTorch file", "a PyTorch file of before version 1.6", "an ONNX model"
POINTER, EMPTY, ZEROS, CUT = "a Git LFS pointer", "an empty file", "a file of zeros only", "a zip file that was cut short"
PAGE, XML, JSON = "an HTML page", "an XML document", "a JSON file"
TORCHSCRIPT, NPZ = "a TorchScript model", "a file of NumPy arrays (.npz)"
BEGINNINGS = (
    (b"version https://git-lfs", POINTER), (b"/annex/objects/", POINTER),
    (b"\x1f\x8b", "a gzip archive"), (b"BZh", "a bzip2 archive"), (b"\xfd7zXZ", "an xz archive"), (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"7z\xbc\xaf", "a 7z archive"), (b"Rar!\x1a", "a rar archive"), (b"\x93NUMPY", "a NumPy array"), (b"\x89HDF", "an HDF5 file"),
    (b"GGUF", "a GGUF model"), (b"%PDF", "a PDF"), (b"PK\x03\x04", "a zip archive or an Excel workbook"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook"),
)
IMAGE = re.compile(rb"\xff\xd8\xff|\x89PNG\r|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*|BM....\0\0\0\0|....ftyp(heic|heix|mif1|avif)", re.DOTALL)
PAGE_BEGINS = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body)\b", re.IGNORECASE)
HEAD = 512  # number of bytes that are inspected
LONGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors library
UNFINISHED = (".part", ".crdownload", ".incomplete", ".download", ".aria2", ".tmp")
WHOLE_MODEL = "give the whole diffusers folder, which has a model_index.json, or one file in the original (CompVis) format"


def kind_of(path: str | Path) -> str | None:
    """Format of the file, such as SAFETENSORS or "an HTML page"; None if unknown. Reads a few bytes and executes nothing."""
    with open(path, "rb") as file:
        head, size = file.read(HEAD), os.fstat(file.fileno()).st_size
    if not head:
        return EMPTY
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= LONGEST_HEADER:
        return SAFETENSORS
    if head[0] == 0x80:
        return PICKLE
    if not any(head):
        return ZEROS
    if (found := no_text(head)) is not None:
        return found
    if head[257:262] == b"ustar":
        return "a tar archive"
    if len(head) > 2 and head[0] == 0x08 and head[1] < 32 and head[2] & 7 in (0, 2) and size > HEAD:  # protobuf: ir_version, next field
        return ONNX
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"<"):
        return XML
    content = head.decode("utf-8", errors="replace" if len(head) < HEAD else "ignore")
    if len(content) < 4 or "\ufffd" in content or not all(letter.isprintable() or letter.isspace() for letter in content):
        return None
    return JSON if text[:1] in (b"{", b"[") else f"a text that begins '{' '.join(content.split())[:40]}'"


def no_text(content: bytes) -> str | None:
    """Format of content that is not text, such as "an image" or "an HTML page", by its beginning; None if it may be text."""
    if IMAGE.match(content):
        return "an image"
    if PAGE_BEGINS.match(content):
        return PAGE
    return next((kind for mark, kind in BEGINNINGS if content.startswith(mark)), None)


def container_of(path: str | Path, what: str, to_do: str, also: tuple[str, ...] = ()) -> str:
    """Format of a file of tensors: SAFETENSORS, ZIP or PICKLE, or one of `also`; UserError if it is something else or missing.

    In the message, `what` is the expected content, such as "PyTorch checkpoint", and `to_do` the advice, unless there is a better one.
    """
    if not Path(path).is_file():
        flaw, better = not_a_file(path)
        raise UserError(f"there is no {what} {path}{'' if flaw == 'not there' else f': it is {flaw}'}; {better or to_do}")
    kind = kind_of(path)
    if kind in (SAFETENSORS, ZIP, PICKLE, *also):
        return kind
    if kind in (None, EMPTY, ZEROS, CUT):
        raise damaged(path, what, kind)
    if kind == POINTER:
        to_do = "fetch the file that it points to, with git lfs pull or from the model's page"
    elif kind in (PAGE, XML):
        to_do = "the download gave an error or a login page; fetch the file itself"
    elif kind == JSON and Path(path).with_name("model_index.json").is_file():
        kind, to_do = "a JSON file of a diffusers folder", WHOLE_MODEL
    elif "archive" in kind:
        to_do = f"unpack it and {to_do}"
    raise UserError(f"{path} is {kind} and no {what}; {to_do}")


@contextlib.contextmanager
def named_by_content(path: str | Path, container: str) -> Iterator[Path]:
    """Yield a path with the suffix of the format, because libraries choose the reader by it; creates a temporary link if necessary."""
    path, suffix = Path(path).resolve(), ".safetensors" if container == SAFETENSORS else ".pt"
    if path.suffix == suffix or suffix == ".pt" and path.suffix not in (".safetensors", ".npz", ".npy"):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, f"weights{suffix}")
        try:
            link.symlink_to(path)
        except OSError:  # Windows asks for a right that few users have
            raise UserError(f"{path} is {container} under another name; rename it, so that it ends in {suffix}") from None
        yield link


def damaged(path: str | Path, what: str, reason: str | None = None) -> UserError:
    """Error about an incomplete or damaged file."""
    unfinished = "its name is that of an unfinished download" if Path(path).suffix.lower() in UNFINISHED else None
    reasons = ", ".join(filter(None, (f"{Path(path).stat().st_size} bytes", reason, unfinished)))
    return UserError(f"{path} is damaged or no {what} ({reasons}); fetch it again")


def not_a_file(path: str | Path) -> tuple[str, str | None]:
    """What `path` is instead of a file, and advice if there is specific advice (part of a diffusers folder, URL)."""
    path = Path(path)
    if path.is_dir():
        parts = [name for name in ("model_index.json", "unet", "vae", "text_encoder") if (path / name).exists()]
        is_part = (path / "config.json").is_file() and (path.parent / "model_index.json").is_file()
        if "model_index.json" in parts:
            return "a diffusers folder", None
        return ("a part of a diffusers folder", WHOLE_MODEL) if len(parts) > 1 or is_part else ("a folder", None)
    if path.parts and path.parts[0].lower() in ("http:", "https:", "hf:"):
        return "a URL and no file", "fetch the file and give its path, or give a model of the Hub as owner/name"
    if path.exists():
        return "a pipe or device", None
    if path.is_symlink():
        return f"a link to {os.readlink(path)}, which is not there", None
    looks_like_hub = not path.is_absolute() and len(path.parts) == 2 and not path.suffix[1:].isalpha() and not path.parent.exists()
    return "not there" + " (a model of the Hub? only --ckpt_path, --vae_path and --models take one)" * looks_like_hub, None


def _kind_of_zip(path: str | Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return CUT
    if "data.pkl" in (inside := {Path(name).name for name in names}):
        return TORCHSCRIPT if "constants.pkl" in inside else ZIP
    if names and all(name.endswith(".npy") for name in names):
        return NPZ
    return f"a zip archive of {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
