"""The shipped prefix belongs to the shipped miniature, and does there what a prefix is for."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from args.common import Parser, model_of_preset
from ldm.data.identities import read_people
from ldm.evaluation.faces import FaceAnalyzer
from ldm.evaluation.id_acc import load_gallery
from ldm.experiments.drift import pixel_mse
from ldm.generation import generate
from ldm.loading import ModelFiles, file_hash, load_frozen_model
from ldm.modules.embedding_file import read_embedding_file
from ldm.modules.embedding_manager import EmbeddingManager, manager_for

ROOT = Path(__file__).resolve().parents[2]
MINI, PREFIX = ROOT / "data" / "mini", ROOT / "embeddings" / "apl-mini.pt"
pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def model():
    return load_frozen_model(ROOT / "configs/stable-diffusion/mini-inference.yaml", MINI / "mini-sd.safetensors")


@pytest.fixture(scope="module")
def prefix(model):
    manager = EmbeddingManager(model.cond_stage_model)
    manager.load(PREFIX)
    return manager.requires_grad_(False)


def draw(model, prompts, prefix=None):
    return [image for _, image in generate(model, [(prompt, 0) for prompt in prompts], embedding_manager=prefix, ddim_steps=10, scale=4)]


def test_it_was_learned_from_the_model_and_config_that_ship():
    learned_from = read_embedding_file(PREFIX).metadata
    assert learned_from["base_model"] == file_hash(MINI / "mini-sd.safetensors")
    config = (ROOT / "configs/stable-diffusion/mini-inference.yaml").read_text(encoding="utf-8")
    as_it_was = "".join(line for line in config.splitlines(keepends=True) if "norm_num_groups" not in line)  # the rule was in the code then
    assert learned_from["config"] == hashlib.sha256(as_it_was.encode()).hexdigest()[:16]


def test_people_never_seen_become_somebody_else(model, prefix):
    becomes_somebody_else(model, prefix, 8)


@pytest.mark.parametrize(("preset", "file"), [("mini-sd-b", "apl-mini.pt"), ("mini-sepia", "apl-mini.pt"),
                                              ("mini-xl", "apl-mini-xl.safetensors")])
def test_it_plugs_into_models_that_went_on_from_it_and_one_was_learned_on_mini_xl(preset, file):
    other = ModelFiles(**model_of_preset(Parser(prog="test"), preset)).load()
    manager = manager_for(other.cond_stage_model)
    manager.load(ROOT / "embeddings" / file)
    becomes_somebody_else(other, manager.requires_grad_(False), 5)


def becomes_somebody_else(model, prefix, count):
    names = [person.name for person in read_people(MINI / "people.csv").values() if person.group == "test"][:count]
    gallery, analyzer = load_gallery(MINI / "gallery.npz", names), FaceAnalyzer(MINI / "faces", 128, 0.65)
    prompts = [f"A close-up portrait of {name}" for name in names]

    def id_acc(images):
        faces = [analyzer.analyze(image) for image in images]
        cosines = [gallery[name] @ face.embedding for name, face in zip(names, faces, strict=True) if face]
        assert len(cosines) >= 0.75 * count
        return np.mean(cosines)

    assert id_acc(draw(model, prompts, prefix)) < 0.5 * id_acc(draw(model, prompts))


def test_a_scene_moves_less_than_another_scene_is_away(model, prefix):
    scenes = ["a red boat by the sea", "a grey house under a cloudy sky", "a yellow car by the sea"]
    base = draw(model, scenes)
    assert pixel_mse(draw(model, scenes, prefix), base) < 0.3 * pixel_mse(base[1:] + base[:1], base)
