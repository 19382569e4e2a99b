"""Where a relative path leads: from the current folder or, where nothing is there, from the repository."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def found(path: str | Path) -> Path:
    """The path itself, or that of the same name in the repository if there is such a one and none in the current folder."""
    path = Path(path)
    return path if path.exists() or not (ROOT / path).exists() else ROOT / path
