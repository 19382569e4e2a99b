"""Parts of tests that generate and score people: stand-ins for the face recognizer, inputs, flags, and readers of the results."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np


class PixelAnalyzer:
    """Stands for FaceAnalyzer: an image is its own embedding, and an image of one color has no face; counts 0, 1 or 2 faces by chance."""

    def __init__(self, *_, **__):
        pass

    def fingerprint(self) -> str:
        return "pixels"

    def analyze(self, image: np.ndarray) -> SimpleNamespace | None:
        pixels = np.resize(image.astype(np.float32), (32, 32, 3))[::2, ::2].reshape(-1)[:512]
        pixels = pixels - pixels.mean()
        return SimpleNamespace(embedding=pixels / np.linalg.norm(pixels)) if pixels.any() else None

    def count(self, image: np.ndarray) -> int:
        return int(image.astype(int).sum()) % 3


class ColorAnalyzer(PixelAnalyzer):
    """Stands for FaceAnalyzer: an image's mean color is its embedding, and black has no face."""

    def analyze(self, image: np.ndarray) -> SimpleNamespace | None:
        color = image.reshape(-1, 3).mean(axis=0)
        return SimpleNamespace(embedding=(color / np.linalg.norm(color)).astype(np.float32), n_faces=1) if color.any() else None


def write_people(folder: Path, people: Mapping[str, str]) -> Path:
    """Write people.csv, gallery.npz with random faces, and a face pack faces/ to a folder; `people` is name -> group."""
    with (folder / "people.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["name", "group", "attributes"], *([*row, "A person"] for row in people.items())])
    noise = np.random.default_rng(0).standard_normal((len(people), 512)).astype(np.float32)
    np.savez(folder / "gallery.npz", **dict(zip(people, noise, strict=True)))
    (folder / "faces").mkdir()
    (folder / "faces" / "fake.onnx").touch()
    return folder


def flags_for(tiny_files: tuple[Path, Path], inputs: Path, out_dir: Path, *more: object) -> list[str]:
    """Flags that generate images of the people in `inputs` with the tiny model."""
    return [str(flag) for flag in (
        "--config_path", tiny_files[0], "--ckpt_path", tiny_files[1], "--people", inputs / "people.csv", "--face_pack", inputs / "faces",
        "--out_dir", out_dir, "--ddim_steps", 2, "--scale", 2, "--n_samples", 2, "--batch_size", 3, "--devices", "cpu", *more)]


def rows_in(folder: Path) -> list[dict]:
    """Rows of results.json."""
    return json.loads((folder / "results.json").read_text())


def bytes_below(folder: Path, pattern: str = "*.png") -> dict[str, bytes]:
    """Content of the images below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob(pattern))}
