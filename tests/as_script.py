"""A script of this repository in processes of its own, with faces that are made up: python -m tests.as_script test_id FLAGS."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.forked import PATIENCE, Command

ROOT = Path(__file__).resolve().parents[1]


def run_script(name: str, argv: list[str], *, forked: bool = True) -> None:
    """Runs the script to its end, with as many threads in each process as here, for the last bits depend on them."""
    if forked:
        process = Command(main, [name, *argv])
        said = process.communicate()[1]
        assert process.returncode == 0, said
        return
    done = subprocess.run([sys.executable, "-m", "tests.as_script", name, *argv], capture_output=True, text=True, timeout=PATIENCE,
                          env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr


def main(argv: list[str]) -> None:
    from tests.scoring import PixelAnalyzer

    for module in ("ldm.evaluation.faces", "ldm.experiments.identity_table"):
        importlib.import_module(module).FaceAnalyzer = PixelAnalyzer
    importlib.import_module("ldm.experiments.quality").CHUNK = 3
    importlib.import_module(argv[0]).main(argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
