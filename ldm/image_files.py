"""Folder walk and decoder for users' image files, shared by training, galleries and scoring.

The decoder reads the raster formats that Pillow opens, applies the EXIF orientation, converts to 8-bit RGB, takes the first frame and
composites transparency over white. Color profiles are ignored.
"""

import functools
import io
import os
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from PIL import Image, ImageCms, ImageOps

from ldm.containers import IMAGE
from ldm.left_out import ARCHIVE, HIDDEN, MET_TWICE, NO_SUFFIX, OTHER_FORMAT, Report
from ldm.util import UserError

NO_RASTERS = {"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5"}  # vector graphics, videos, and formats that Pillow lists but cannot decode
NOT_OPENED = (".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".webp", ".svg", ".svgz", ".eps", ".emf", ".wmf", ".dng", ".cr2", ".cr3",
              ".nef", ".arw", ".orf", ".rw2", ".raf", ".raw")  # image formats that this Pillow may not open
ARCHIVES = (".tar", ".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
TEXTS = (".txt", ".json", ".jsonl", ".csv", ".parquet")
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "#recycle")


@dataclass(frozen=True)
class ImageSource:
    """Location of an image: a file, or `size` bytes at `offset` of a tar shard."""

    path: Path
    member: str = ""
    offset: int = 0
    size: int = -1

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def rgb_image(read: Callable[[], bytes], where: object) -> Image.Image:
    """Decode the image whose bytes `read` returns: upright, RGB, 8 bits per channel. UserError about `where` if it is damaged.

    16-bit grey values are scaled from their full range. 32-bit grey values have no standard range: they are scaled from the smallest of
    1 (floats), 255 (floats), 65535 and the image's maximum that covers them.
    """
    with _opened(read, where) as image:
        image.load()
        with suppress(Exception):  # damaged EXIF does not affect the pixels
            ImageOps.exif_transpose(image, in_place=True)
        image = _in_eight_bits(image)
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image.convert("RGB")


def open_image(read: Callable[[], bytes], where: object) -> Image.Image:
    """Open an image to read its format and size, without decoding it; raises as `rgb_image`."""
    with _opened(read, where) as image:
        return image


def suffix_of(image: Image.Image) -> str:
    """Usual file name suffix of an opened image's format."""
    return ".jpg" if image.format in ("JPEG", "MPO") else next(suffix for suffix, name in Image.EXTENSION.items() if name == image.format)


@contextmanager
def _opened(read: Callable[[], bytes], where: object) -> Iterator[Image.Image]:
    """Open an image; errors inside the context become a UserError."""
    warnings.filterwarnings("ignore", module=r"PIL\.")  # images of twice Pillow's limit are refused below
    content = b""
    try:
        content = read()
        yield Image.open(io.BytesIO(content), formats=_formats())
    except Exception as error:  # decoders raise arbitrary exceptions for damaged bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = f"no format that Pillow opens; it begins with {content[:16]!r}" if content else "it is empty"
        advice = "scale it down" if isinstance(error, Image.DecompressionBombError) else "delete or replace the file"
        raise UserError(f"{where} cannot be read as an image ({reason}); {advice}") from error


def _in_eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "LAB":
        return ImageCms.profileToProfile(  # type: ignore[return-value]  # None only with inPlace=True
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB")
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image, np.float64)
    if not np.isfinite(values).any():
        raise ValueError("no pixel of it is a finite number")
    values = np.nan_to_num(values, posinf=0).clip(0)
    ranges = (1, 255, 65535) if image.mode == "F" else (65535,)
    full = next((full for full in ranges if values.max() <= full), values.max())
    grey = Image.fromarray(np.rint(values * (255 / full)).astype(np.uint8))
    if isinstance(transparent := image.info.get("transparency"), int):  # the transparent grey value of a PNG
        grey.putalpha(Image.fromarray(np.where(np.asarray(image) == transparent, 0, 255).astype(np.uint8)))
    return grey


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.preinit()  # common formats first
    Image.init()
    return tuple(name for name in Image.ID if name not in NO_RASTERS)


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of the supported formats, in lower case."""
    formats = _formats()  # before the next line, since it registers suffixes
    return frozenset(suffix for suffix, name in Image.EXTENSION.items() if name in formats)


def image_files(folder: str | Path, report: Report) -> list[Path]:
    """Image files of a folder and its sub-folders; order and report as in `files_below`."""
    return [path for path in files_below(folder, report) if is_image(path, report)]


def files_below(folder: str | Path, report: Report) -> list[Path]:
    """Files of a folder and its sub-folders, in natural order (2 before 10) of the paths' parts.

    Symbolic links are followed. Each folder is read once, by its own name rather than through a link if both are in `folder`. Reports
    hidden files and folders with images, folders reached twice, unreadable folders, pipes, and broken links; but a broken link with the
    name of an image counts as a file, and reading it reports the flaw.
    """
    found: list[Path] = []
    seen: dict[str, Path] = {}
    folders = deque([Path(folder)])
    while folders:
        place = folders.popleft()
        first = seen.setdefault(os.path.realpath(place), place)
        if first is not place:
            report(MET_TWICE, f"{place} is the same folder as {first}; its files are read there")
            continue
        try:
            paths = sorted(place / name for name in os.listdir(place))
        except OSError as error:
            report("unreadable folder", f"the folder {place} cannot be read ({error.strerror}); change its permissions or remove it")
            continue
        for path in paths:
            if is_hidden(path.name):
                inside = [name for _, _, names in os.walk(path) for name in names] if os.path.isdir(path) else [path.name]
                if count := sum(PurePath(name).suffix.lower() in image_suffixes() for name in inside):
                    files = "image file is" if count == 1 else "image files are"
                    report(HIDDEN, f"{path} is hidden, so its {count} {files} ignored; rename it to use it")
            elif os.path.isdir(path):
                (folders.append if os.path.islink(path) else folders.appendleft)(path)  # links last
            elif os.path.islink(path) and not os.path.exists(path) and path.suffix.lower() not in image_suffixes():
                report("link to nowhere", f"{path} is a link to {os.readlink(path)}, which does not exist; restore that or remove the link")
            elif os.path.exists(path) and not os.path.isfile(path):
                report("no file", f"{path} is a pipe, a socket or a device instead of a file; remove it, or store a file in its place")
            else:
                found.append(path)
    return sorted(found, key=natural_order)


def is_image(path: PurePath, report: Report) -> bool:
    """Whether a file name has the suffix of a supported format; reports files that seem to be other images or archives."""
    suffix = path.suffix.lower()
    if suffix in image_suffixes():
        return True
    if suffix in NOT_OPENED:
        report(OTHER_FORMAT, f"{path} has a format that Pillow does not open here; convert it to .png or .jpg")
    elif suffix in ARCHIVES:
        report(ARCHIVE, f"{path} is an archive, which is not read here; unpack it")
    elif suffix not in TEXTS and isinstance(path, Path) and os.path.isfile(path):
        with suppress(OSError), path.open("rb") as file:
            if IMAGE.match(file.read(16)):
                report(NO_SUFFIX, f"{path} holds an image but has no image suffix, such as .jpg; rename it")
    return False


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden or belongs to the operating system, such as trash, thumbnails and attributes."""
    return (name.startswith(".") and name not in (".", "..")) or name in SYSTEM_FOLDERS


def natural_order(path: PurePath) -> list[list[str | int]]:
    """Sort key of a path that compares digits in its parts as numbers."""
    return [[int(piece) if place % 2 else piece for place, piece in enumerate(re.split(r"([0-9]+)", part))] for part in path.parts]
