"""The whole path at Stable Diffusion v1.5's real size, with random weights on the CPU: no command needs more than 14 GB; and SDXL's.

    python -m pytest -n 0 -m slow -s tests/test_full_size.py

Prints the seconds and the peak memory of each command. Needs 18 GB of disk in the temporary folder (TMPDIR), and gives them back.
Commands run in float32, which takes the most memory, but SDXL's with --precision auto, which is faster where the CPU computes in bfloat16.
"""

import csv
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.evaluation.inception import original_inception
from ldm.images import read_image
from ldm.loading import read_config
from ldm.modules.embedding_file import read_embedding_file, write_embedding_file
from ldm.util import instantiate_from_config

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "data" / "mini"
DISK, MEMORY, MEMORY_SDXL = 18e9, 14e9, 21e9  # bytes
PERSON = "Alina Dundale"   # in the miniature's gallery
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """With random weights as large as the public ones, a list of one person, templates, prompts and captioned pictures."""
    if shutil.disk_usage(tempfile.gettempdir()).free < DISK:
        pytest.skip(f"less than {DISK / 1e9:.0f} GB are free in {tempfile.gettempdir()}; set TMPDIR to another folder")
    with tempfile.TemporaryDirectory(prefix="apl-full-size-") as name:
        folder = Path(name)
        with torch.device("meta"):
            diffusion = instantiate_from_config(read_config(ROOT / "configs/stable-diffusion/v1-inference.yaml"))
            clip = open_clip.CLIP(**open_clip.get_model_config("ViT-g-14"))
        write_weights(folder / "sd.safetensors", diffusion.state_dict())
        write_weights(folder / "clip.safetensors", clip.state_dict())
        torch.save(original_inception().state_dict(), folder / "inception.pth")
        with (folder / "people.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("name", "group", "attributes"), (PERSON, "train", "A female athlete, curly brown hair")])
        (folder / "templates.txt").write_text("a photo of {}\n")
        (folder / "prompts.txt").write_text("a red car by the sea\n")
        (folder / "benchmark.txt").write_text("two green apples\na grey house\n")
        (folder / "pictures").mkdir()
        for number in range(2):
            pixels = np.random.default_rng(number).integers(0, 255, (512, 640, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"pictures/{number}.png")
            (folder / f"pictures/{number}.txt").write_text(f"picture {number}")
        yield folder


@pytest.fixture(scope="module")
def identity_images(folder) -> Path:
    """S_ID: one picture, drawn by dataset_generation.py."""
    run(folder, "dataset_generation.py", "faces", "--people", folder / "people.csv", "--templates", folder / "templates.txt",
        "--no-one_face", "--n_samples", 1, "--ddim_steps", 2, "--devices", "cpu", *model(folder), out_dir="s_id")
    return folder / "s_id"


@pytest.fixture(scope="module")
def prefix(folder, identity_images) -> Path:
    """The prefix after one step on S_ID and S_Reg; sample 0 of seed 0 is from S_ID, and needs both frozen predictions."""
    run(folder, "dataset_generation.py", "captions", "--images", folder / "pictures", "--people", folder / "people.csv", out_dir="s_reg")
    run(folder, "train.py", "--people", folder / "people.csv", "--templates", folder / "templates.txt",
        "--identity_images", identity_images, "--caption_images", folder / "s_reg", "--prompts_file", folder / "prompts.txt",
        "--iterations", 1, "--val_every", 0, "--eval_names", 0, "--eval_ddim_steps", 1, "--devices", "cpu", *model(folder),
        out_dir="train")
    return folder / "train" / "embeddings" / "apl-1.pt"


def test_a_person_is_drawn_at_512_px(identity_images):
    assert is_picture(identity_images / "images" / "none" / PERSON / "0.png")


def test_one_step_moves_every_number_of_the_prefix_by_the_learning_rate(folder, prefix):
    start = torch.rand(10, 768, generator=torch.Generator().manual_seed(0))
    moved = (read_embedding_file(prefix).vectors["*"] - start).abs()
    torch.testing.assert_close(moved, torch.full((10, 768), 1e-3), rtol=0.5, atol=0)  # Adam's first step
    row, = csv.DictReader((folder / "train" / "log.csv").open())
    assert float(row["loss_id"]) > 0 and row["samples_reg"] == "0"


def test_a_portrait_is_drawn_without_and_with_the_prefix_and_scored(folder, prefix):
    run(folder, "test_id.py", "--people", folder / "people.csv", "--group", "train", "--embedding", prefix, "--n_samples", 1,
        "--ddim_steps", 2, "--face_pack", MINI / "faces", "--gallery", MINI / "gallery.npz", "--devices", "cpu", *model(folder),
        out_dir="id")
    without, with_prefix = (folder / "id" / "images" / label / PERSON / "0.png" for label in ("none", prefix.stem))
    assert is_picture(without) and is_picture(with_prefix) and without.read_bytes() != with_prefix.read_bytes()
    assert [row["n_images"] for row in results(folder / "id")] == [1, 1]


def test_fid_and_clip_score_are_measured_with_the_networks_of_the_paper(folder, prefix):
    run(folder, "test_fid_clip_score.py", "--half", "non_id", "--embedding", prefix, "--benchmark", folder / "benchmark.txt",
        "--ddim_steps", 1, "--batch_size", 1, "--inception_weights", folder / "inception.pth", "--clip", folder / "clip.safetensors",
        "--devices", "cpu", *model(folder), out_dir="quality")
    base, row = results(folder / "quality")
    assert row["fid"] >= 0 and row["n_images"] == 2 and all(math.isfinite(one["clip"]) for one in (base, row))


def test_sdxl_draws_at_1024_px_without_and_with_a_transferred_prefix(folder):
    """From a checkpoint in half precision, as the public one is."""
    with torch.device("meta"):
        sdxl = instantiate_from_config(read_config(ROOT / "configs/stable-diffusion/sdxl-base.yaml"))
    write_weights(folder / "sdxl.safetensors", sdxl.state_dict(), torch.float16)
    write_embedding_file(folder / "apl.pt", {"alz": torch.rand(10, 768)}, {"alz": 41128})
    subprocess.run([sys.executable, "-m", "ldm.apl.transfer", folder / "apl.pt", folder / "pair.safetensors", "--route", "mean",
                    "--ckpt_path", folder / "sdxl.safetensors"], cwd=ROOT, check=True, capture_output=True)
    run(folder, "test_id.py", "--people", folder / "people.csv", "--group", "train", "--embedding", folder / "pair.safetensors",
        "--n_samples", 1, "--ddim_steps", 1, "--face_pack", MINI / "faces", "--gallery", MINI / "gallery.npz", "--devices", "cpu",
        "--ckpt_path", folder / "sdxl.safetensors", out_dir="sdxl", preset="sdxl", memory=MEMORY_SDXL)
    without, with_prefix = (folder / "sdxl" / "images" / label / PERSON / "0.png" for label in ("none", "pair"))
    assert is_picture(without, 1024) and is_picture(with_prefix, 1024) and without.read_bytes() != with_prefix.read_bytes()


def run(folder: Path, script: str, *flags: object, out_dir: str, preset: str = "sd-v1-5", memory: float = MEMORY) -> None:
    """Runs a command with a preset, prints its seconds and its peak of resident memory, and asserts that this is at most `memory`."""
    command = [script, *map(str, flags), "--preset", preset, "--out_dir", str(folder / out_dir)]
    start, all_threads = time.perf_counter(), {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with (folder / "log.txt").open("wb") as log, subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=log,
                                                                  stderr=subprocess.STDOUT, env=all_threads) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, (folder / "log.txt").read_text(errors="replace")[-2000:]
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # bytes
    print(f"\n{' '.join(command[:2] if script == 'dataset_generation.py' else command[:1]):32}"
          f"{time.perf_counter() - start:6.0f} s  peak {peak / 1e9:5.2f} GB", flush=True)
    assert peak <= memory


def model(folder: Path) -> list[object]:
    """Flags of the frozen model."""
    return ["--ckpt_path", folder / "sd.safetensors", "--precision", "fp32"]


def is_picture(path: Path, side: int = 512) -> bool:
    """Whether so many pixels of something are there, and not one colour."""
    image = read_image(path)
    return image.shape == (side, side, 3) and image.std() > 1


def results(folder: Path) -> list[dict]:
    return json.loads((folder / "results.json").read_text())


def write_weights(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
    """A .safetensors file of random weights in the shapes of `tensors`.

    One tensor is made after the other, because a process started from here is counted with at least what this one ever had.
    """
    header, end = {}, 0
    for key, tensor in tensors.items():
        start, end = end, end + dtype.itemsize * tensor.numel()
        name = {torch.float32: "F32", torch.float16: "F16"}[dtype]
        header[key] = {"dtype": name, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text, generator = json.dumps(header).encode(), torch.Generator().manual_seed(0)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for key, tensor in tensors.items():
            file.write(random_weight(key, tensor.shape, generator).to(dtype).numpy().tobytes())


def random_weight(key: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Leaves what goes through a layer as large as it is: normal numbers over the root of the inputs, scales 1, biases 0."""
    if len(shape) < 2:
        return torch.ones(shape) if key.endswith("weight") else torch.zeros(shape)
    return torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
