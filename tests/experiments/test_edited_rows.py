"""Edited weights as rows of the tables: drawn with and without a trace in the rows beside them, and refused where they do not fit."""

from pathlib import Path

import torch
from PIL import Image

import test_id
from ldm.apl.prefix import build_prefix
from ldm.edited_weights import is_edited_weights, write_edited_weights
from ldm.experiments.drift import drift_rows
from ldm.experiments.quality import HalfFolder
from ldm.experiments.variants import BASE, ImageSettings, Variant, load_variants
from ldm.loading import ModelFiles, file_hash, load_frozen_model
from ldm.modules.embedding_file import write_safetensors_file
from ldm.sharing import OneDevice
from tests import scoring
from tests.refusals import refusal
from tests.scripts import test_test_id

inputs, command, finished, pixel_analyzer = (
    test_test_id.inputs, test_test_id.command, test_test_id.finished, test_test_id.pixel_analyzer)  # fixtures
KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def pictures(folder: Path, label: str) -> dict[str, bytes]:
    return scoring.bytes_below(folder / "images" / label)


def test_edited_weights_are_a_row_and_leave_no_trace_in_the_others(finished, command, inputs, tiny_edited, tmp_path):
    test_id.main(command(tmp_path, "--embedding", tiny_edited, inputs / "apl.pt"))
    rows = scoring.rows_in(tmp_path)
    assert [(row["prefix"], row["group"]) for row in rows[2:4]] == [(str(tiny_edited), "train"), (str(tiny_edited), "test")]
    assert rows[:2] + rows[4:] == scoring.rows_in(finished)
    for label in ("none", "apl"):
        assert pictures(tmp_path, label) == pictures(finished, label)
    base, changed = (pictures(tmp_path, label) for label in ("none", "esd-4"))
    assert base.keys() == changed.keys() and not any(base[file] == changed[file] for file in base)


def test_the_row_is_the_model_that_is_loaded_with_these_weights(command, tiny_edited, tmp_path):
    test_id.main(command(tmp_path / "row", "--embedding", tiny_edited, "--drift_prompts", drift_prompts(tmp_path)))
    test_id.main([*without_prefix(command(tmp_path / "model")), "--edited_weights", str(tiny_edited)])
    assert pictures(tmp_path / "row", "esd-4") == pictures(tmp_path / "model", "none")
    drift = [row for row in scoring.rows_in(tmp_path / "row") if "mse" in row]
    assert [row["prefix"] for row in drift] == ["none", "none, other noise", str(tiny_edited)] and drift[2]["mse"] > 0


def drift_prompts(folder: Path) -> Path:
    (folder / "prompts.txt").write_text("a car\na boat\n")
    return folder / "prompts.txt"


def without_prefix(flags: list[str]) -> list[str]:
    place = flags.index("--embedding")
    return flags[:place] + flags[place + 2:]


def test_the_model_is_bit_for_bit_what_it_was_after_a_row(tiny_files, tiny_edited):
    model = load_frozen_model(*tiny_files)
    before = {key: (value, value.clone()) for key, value in model.state_dict(keep_vars=True).items()}
    prefix = load_variants(model, [tiny_edited], ModelFiles(*tiny_files))[1]
    with prefix.in_place(model):
        assert not torch.equal(model.get_submodule(KEY.removesuffix(".weight")).weight, before[KEY][1])
    rows = drift_rows(OneDevice(), model, ["a car", "a boat"], [BASE, prefix], name="scenes", model_name="tiny", ddim_steps=2)
    assert rows[2]["prefix"] == str(tiny_edited) and rows[2]["mse"] > rows[0]["mse"] == 0
    after = model.state_dict(keep_vars=True)
    assert all(after[key] is same and torch.equal(same, value) for key, (same, value) in before.items())


def test_rows_of_pairs_say_what_they_were_drawn_with(tmp_path, monkeypatch):
    labels = []
    monkeypatch.setattr("ldm.experiments.quality.sheet_of_files", lambda rows, columns, cell: labels.extend(rows) or Image.new("L", (1, 1)))
    variants = [BASE, Variant("esd-4", "esd-4.safetensors", "hash", None, dict)]
    settings = ImageSettings("hash", "config", "{name}", 0, 2.0, 2, "fp32")
    HalfFolder(OneDevice(), "id", [("a car", 0)], settings, None, {}, variants, tmp_path).write_pairs()
    assert labels == ["no prefix", "with esd-4"]


def test_weights_that_do_not_fit_are_refused(command, tiny_edited, tiny_files, tmp_path, capsys):
    def said(file: Path, *flags: object) -> str:
        return refusal(capsys, test_id.main, command(tmp_path / "out", "--embedding", file, *flags))

    write_edited_weights(tmp_path / "other.safetensors", {KEY: torch.ones(32, 32)}, base_model="0123456789abcdef")
    assert "was made for another checkpoint, of hash 0123456789abcdef" in said(tmp_path / "other.safetensors")
    write_edited_weights(tmp_path / "wide.safetensors", {KEY: torch.ones(32, 768)}, base_model=file_hash(tiny_files[1]))
    assert "1 of its 1 tensors are not those of the model" in said(tmp_path / "wide.safetensors")
    write_edited_weights(tmp_path / "base.safetensors", {"model.diffusion_model.out.2.bias": torch.ones(4)},
                         base_model=file_hash(tiny_files[1]))
    assert "were not made on top of --edited_weights" in said(tiny_edited, "--edited_weights", tmp_path / "base.safetensors")
    assert "leave out --models" in said(tiny_edited, "--models", tiny_files[1])
    (tmp_path / "cut.safetensors").write_bytes(tiny_edited.read_bytes()[:100])
    assert "cut.safetensors" in said(tmp_path / "cut.safetensors")


def test_a_prefix_that_names_its_model_is_no_edited_weights(tiny_model, tiny_edited, tmp_path):
    vectors = build_prefix(tiny_model, num_vectors=2).string_to_param_dict["alz"]
    write_safetensors_file(tmp_path / "apl.safetensors", {"alz": vectors}, metadata={"base_model": "0123456789abcdef"})
    assert is_edited_weights(tiny_edited) and not is_edited_weights(tmp_path / "apl.safetensors")
