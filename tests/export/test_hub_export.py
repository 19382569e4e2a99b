"""python -m ldm.export IN DIR --format hub: the folder, and a model card that huggingface_hub reads and that holds nothing unescaped."""

import json
import re

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.export.__main__ import main
from ldm.model_card import Described, as_text, model_card
from ldm.modules.context_map import ContextMap
from ldm.modules.embedding_file import read_embedding_file, write_embedding_file, write_safetensors_file
from ldm.modules.prefix_folder import CONFIG, FILE
from tests.refusals import refusal

VECTORS = torch.randn(10, 768, generator=torch.Generator().manual_seed(0))
ROWS = [{"model": "sd", "prefix": prefix, "group": "test", "id_acc_mean": mean, "id_acc_low": mean - 0.05, "id_acc_high": mean + 0.05,
         "rank1": 0.5, "detection_rate": 1.0, "attr_kept": None, "n_identities": 12, "n_images": 24}
        for prefix, mean in (("none", 0.7), ("embeddings/apl-700.pt", 0.2), ("embeddings/apl-350.pt", 0.4))]
DRIFT = [{"model": "sd", "prefix": "embeddings/apl-700.pt", "prompts": "prompts", "mse": 0.0276, "recognised": 0.96}]


@pytest.fixture
def prefix(tmp_path):
    """A prefix as train.py writes it, with the settings next to it and the run folder."""
    path, run = tmp_path / "embeddings" / "apl-700.pt", tmp_path / "runs" / "apl"
    write_embedding_file(path, {"alz": VECTORS}, {"alz": 41128}, step=700, metadata={"lr": 1e-3, "train_method": "apl", "init": None})
    (path.parent / "apl.json").write_text(json.dumps({"arguments": {"ckpt_path": "models/v1-5-pruned-emaonly.safetensors"}}))
    run.mkdir(parents=True)
    (run / "results.json").write_text(json.dumps(ROWS + DRIFT))
    secret = PngInfo()
    secret.add_text("where", "a secret place")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(run / "before-after.png", pnginfo=secret)
    return path


def export(source, *flags, name="alz-hub"):
    folder = source.parent / name
    main([str(source), str(folder), "--format", "hub", *flags])
    return folder, ModelCard.load(folder / "README.md")


def test_the_folder_holds_both_files_a_config_the_images_and_a_card(prefix, capsys):
    folder, card = export(prefix)
    assert {path.name for path in folder.iterdir()} == {FILE, "alz.pt", CONFIG, "README.md", "before-after.png"}
    for file in (FILE, "alz.pt"):
        read = read_embedding_file(folder / file)
        assert torch.equal(next(iter(read.vectors.values())), VECTORS) and read.metadata["step"] == 700
    assert card.data.to_dict() == {
        "base_model": "stable-diffusion-v1-5/stable-diffusion-v1-5", "license": "creativeml-openrail-m", "library_name": "diffusers",
        "pipeline_tag": "text-to-image", "tags": ["anonymization-prompt", "textual-inversion", "privacy", "stable-diffusion"]}
    assert b"secret" not in (folder / "before-after.png").read_bytes() and "](before-after.png)" in card.text
    for words in ("DiffusionPipeline.from_pretrained(\"stable-diffusion-v1-5/", "`embedding:alz`", "A1111", "## Limits",
                  "| train&#95;method | apl |", "| lr | 0.001 |", "| step | 700 |"):
        assert words in card.text
    assert "init" not in card.text and "results.json\n" in (told := capsys.readouterr().out) and "hf upload" in told


def test_the_table_holds_this_prefix_with_its_interval_and_the_base_model_alone(prefix):
    _, card = export(prefix)
    assert "| none | test | 0.700 [0.650, 0.750] | 0.500 | 1.000 | – | 12 | 24 |" in card.text
    assert "| apl-700&#46;pt | test | 0.200 [0.150, 0.250] |" in card.text and "| apl-700&#46;pt | prompts | 0.0276 | 0.960 |" in card.text
    assert "350" not in card.text


@pytest.mark.parametrize("rows", [None, ROWS[:1] + ROWS[2:]], ids=["no results", "those of another prefix"])
def test_without_results_of_this_prefix_the_card_says_so(prefix, rows):
    run = prefix.parents[1] / "runs" / "apl"
    (run / "results.json").unlink() if rows is None else (run / "results.json").write_text(json.dumps(rows))
    folder, card = export(prefix)
    assert "No results were found next to this prefix" in card.text and "ID-ACC is" not in card.text
    assert not (folder / "before-after.png").exists() and "![" not in card.text


@pytest.mark.parametrize(("path", "base", "license"), [
    ("models/mine.safetensors", None, None), ("me/model@v1", "me/model", None), ("data/mini/mini-sd.safetensors", None, "mit"),
    ("x\n---\n- y/z", None, None), (7, None, None)])
def test_an_unknown_base_model_is_not_invented(prefix, path, base, license, capsys):
    (prefix.parent / "apl.json").write_text(json.dumps({"arguments": {"ckpt_path": path}}))
    _, card = export(prefix)
    assert (card.data.base_model, card.data.license) == (base, license)
    assert ("add it to README.md" in capsys.readouterr().out) == (base is None or license is None)


def test_a_pair_and_a_context_map(tmp_path):
    pair = {"clip_l": VECTORS[:3], "clip_g": torch.ones(3, 1280)}
    write_safetensors_file(tmp_path / "xl.safetensors", pair)
    folder, card = export(tmp_path / "xl.safetensors")
    assert "stable-diffusion-xl" in card.data.tags and "text_encoder=pipeline.text_encoder_2" in card.text
    for file in (FILE, "alz.safetensors"):
        assert {key: len(value) for key, value in read_embedding_file(folder / file).vectors.items()} == {"clip_l": 3, "clip_g": 3}
    ContextMap(8, 2).save(tmp_path / "map.safetensors", step=3)
    folder, card = export(tmp_path / "map.safetensors", name="map-hub")
    assert {path.name for path in folder.iterdir()} == {FILE, CONFIG, "README.md"} and "map of rank 2" in card.text
    assert "load_textual_inversion" not in card.text and "cannot load a context map" in card.text


HOSTILE = "</td><script>alert(1)</script>\n\n---\n# big | [x](javascript:alert(1)) ![y](http://evil.example/z.png) `a` **b** " \
          "www.evil.example me@evil.example \u202e {{ 7 * 7 }} {% raw %} ```\n"


def test_nothing_hostile_reaches_the_card(prefix):
    metadata = {HOSTILE: HOSTILE, "license": HOSTILE, "note": "---\nlicense: evil\n---", "many": ["x"] * 10_000}
    metadata |= {str(number): number for number in range(500)}
    write_embedding_file(prefix, {"alz": VECTORS}, {"alz": 41128}, metadata=metadata)
    rows = [ROWS[1] | {"group": HOSTILE, "rank1": HOSTILE, "id_acc_low": None, "detection_rate": float("inf"), "n_images": True},
            DRIFT[0] | {"prompts": HOSTILE, "mse": [1]}]
    (prefix.parents[1] / "runs" / "apl" / "results.json").write_text(json.dumps(rows))
    _, card = export(prefix)
    assert card.data.license == "creativeml-openrail-m" and set(card.data.to_dict()) == {
        "base_model", "license", "library_name", "pipeline_tag", "tags"}
    for flaw in ("<script", "</td", "evil.example", "javascript:", "# big", "**b**", "{{", "{%", "\u202e", "@", "license: evil"):
        assert flaw not in card.text
    assert re.findall(r"\]\(([^)]*)\)", card.text) == ["https://arxiv.org/abs/2405.16895", "before-after.png"]
    assert card.text.count("```") == 2 and len(card.text) < 20_000
    tables = re.findall(r"(?m)^\|.*\|$", card.text)
    assert {line.count("|") for line in tables} == {9, 5, 3}


def test_text_is_shown_as_it_is():
    assert as_text("a_b <c> 0.5 v1.") == "a&#95;b &#60;c&#62; 0.5 v1&#46;" and as_text(0.001) == "0.001" and as_text("Zoë, 中") == "Zoë, 中"
    card = model_card(Described(kind="prefix", form="x", file=FILE, title=HOSTILE, base_model="a/b\nlicense: evil"))
    assert card.data.base_model is None and "evil.example" not in card.text and 'from_pretrained("BASE_MODEL")' in card.text


@pytest.mark.parametrize(("content", "message"), [
    ("{", "is not valid JSON"), ("{}", "holds a dict instead of a list"), ("[1]", "holds no list of rows"),
    ("[" * 100_000, "is not valid JSON")])
def test_damaged_results_give_a_sentence_and_leave_no_folder(prefix, content, message, capsys):
    (prefix.parents[1] / "runs" / "apl" / "results.json").write_text(content)
    assert message in refusal(capsys, main, [str(prefix), str(prefix.parent / "out"), "--format", "hub"])
    assert not (prefix.parent / "out").exists() and not [path for path in prefix.parent.iterdir() if path.name.startswith(".")]


def test_a_folder_with_files_is_not_overwritten_and_an_empty_one_is_used(prefix, capsys):
    (prefix.parent / "out").mkdir()
    assert export(prefix, name="out")[0].exists()
    assert "was not overwritten; give a new folder" in refusal(capsys, main, [str(prefix), str(prefix.parent / "out"), "--format", "hub"])
    assert "--part sks has no use" in refusal(capsys, main, [str(prefix), str(prefix.parent / "new"), "--format", "hub", "--part", "sks"])
