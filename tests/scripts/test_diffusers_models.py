"""Diffusers folders and models of the Hub in the commands, from the command line to the results."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import test_id
from args.test_id_args import parse_test_id_args
from ldm.apl import transfer
from ldm.apl.prefix import build_prefix
from ldm.benchmark.diffusers_twin import diffusers_pipeline
from ldm.experiments import identity_table
from ldm.modules.embedding_file import read_embedding_file
from ldm.modules.embedding_manager import EmbeddingManager
from tests.conftest import TINY, TINY_XL
from tests.scoring import PixelAnalyzer, flags_for, rows_in, write_people


@pytest.fixture(scope="module")
def folders(tiny_model, tiny_xl_model, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pipelines")
    diffusers_pipeline(tiny_model, TINY).save_pretrained(folder / "tiny-folder")
    diffusers_pipeline(tiny_xl_model.half().float(), TINY_XL).save_pretrained(folder / "xl-folder")  # as the fp16 file has it
    return {path.name: path for path in folder.iterdir()}


def test_models_of_every_kind_come_in_one_table_with_equal_rows_for_equal_weights(
        hub, folders, tiny_files, tiny_xl_files, tiny_model, tiny_xl_model, tmp_path, monkeypatch):
    monkeypatch.setattr(identity_table, "FaceAnalyzer", PixelAnalyzer)
    commit = hub.add("someone/tiny-v1.5", folders["tiny-folder"])
    inputs = write_people(tmp_path, {"Ada Lovelace": "train", "Zoë / Z.": "test"})
    EmbeddingManager(tiny_model.cond_stage_model, num_vectors_per_token=3).save(inputs / "apl.pt")
    build_prefix(tiny_xl_model, num_vectors=3).save(inputs / "pair.safetensors")
    for name, path in (("xl-file", tiny_xl_files[1]), ("xl", folders["xl-folder"])):
        (inputs / f"{name}.yaml").write_text(yaml.safe_dump({"config_path": str(tiny_xl_files[0]), "ckpt_path": str(path)}))
    models = [tiny_files[1], folders["tiny-folder"], "someone/tiny-v1.5", inputs / "xl-file.yaml", inputs / "xl.yaml"]
    flags = flags_for(tiny_files, inputs, tmp_path / "out", "--gallery", inputs / "gallery.npz", "--precision", "fp32", "--embedding",
                      inputs / "apl.pt", inputs / "pair.safetensors", "--models", *models)
    test_id.main(flags)
    rows = {}
    for row in rows_in(tmp_path / "out"):
        rows.setdefault(row.pop("model"), []).append(row)
    hub_name = f"tiny-v1.5@{commit[:7]}"
    assert list(rows) == ["tiny", "tiny-folder", hub_name, "tiny-xl", "xl-folder"]
    assert rows["tiny"] == rows["tiny-folder"] == rows[hub_name] and rows["tiny-xl"] == rows["xl-folder"]
    saved = json.loads((tmp_path / "out" / hub_name / "arguments.json").read_text())
    assert saved["arguments"]["ckpt_path"].endswith(f"models--someone--tiny-v1.5/snapshots/{commit}")


def test_a_folder_of_the_other_kind_than_the_config_gets_the_config_of_its_kind(folders, tiny_files):
    def configs(*flags):
        return [model["config_path"].name for model in parse_test_id_args([*flags, "--models", *map(str, folders.values())]).models]

    kinds = ["sdxl-base.yaml" if name.startswith("xl") else "mini-inference.yaml" for name in folders]
    assert configs("--preset", "mini") == kinds
    assert configs("--preset", "mini", "--config_path", str(tiny_files[0])) == ["tiny.yaml"] * 2


def test_a_transfer_reads_the_token_tables_of_a_folder_and_of_the_hub(hub, folders, tiny_xl_files, tiny_model, tmp_path):
    hub.add("someone/xl", folders["xl-folder"])
    EmbeddingManager(tiny_model.cond_stage_model, num_vectors_per_token=2).save(tmp_path / "wide.pt")
    vectors = next(iter(read_embedding_file(tmp_path / "wide.pt").vectors.values()))[:, :16].contiguous()
    torch.save({"string_to_param": {"*": vectors}, "string_to_token": {"*": 41128}}, tmp_path / "apl.pt")
    made = []
    for number, path in enumerate((tiny_xl_files[1], folders["xl-folder"], "someone/xl")):
        transfer.main([str(tmp_path / "apl.pt"), str(tmp_path / f"{number}.safetensors"), "--ckpt_path", str(path), "--route", "mean"])
        made.append(read_embedding_file(tmp_path / f"{number}.safetensors").vectors["clip_g"])
    assert torch.equal(made[0], made[1]) and torch.equal(made[1], made[2])
