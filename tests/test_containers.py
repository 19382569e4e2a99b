"""What a file holds is told by its first bytes, whatever its name; a file of another kind is named in one sentence, everywhere."""

import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from args.common import Parser
from args.paths import check_paths
from args.test_id_args import parse_test_id_args
from ldm.apl.transfer_files import TABLES, read_token_tables
from ldm.containers import ONNX, PICKLE, SAFETENSORS, ZIP, container_of, kind_of, not_a_file
from ldm.edited_weights import is_edited_weights, write_edited_weights
from ldm.evaluation.faces import FaceAnalyzer
from ldm.evaluation.id_acc import load_gallery
from ldm.evaluation.weights import weights_for
from ldm.loading import ModelFiles, load_frozen_model, read_state_dict, safetensors_metadata
from ldm.modules.embedding_file import read_embedding_file, write_embedding_file, write_safetensors_file
from ldm.util import UserError

ROOT = Path(__file__).resolve().parents[1]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4265146304\n"
TENSORS = {"a": torch.ones(2, 2), "b": torch.ones(3), "c": torch.ones(3)}


def saved(write, *args, **kwargs) -> bytes:
    file = io.BytesIO()
    write(*args, file, **kwargs) if args else write(file, **kwargs)
    return file.getvalue()


def archive(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as content:
        for name, data in members.items():
            content.writestr(f"{name}.pt", data)
    return file.getvalue()


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as content:
        content.addfile(tarfile.TarInfo("model.pt"))
    return file.getvalue()


WRONG = {
    "a Git LFS pointer": POINTER,
    "an HTML page": b"\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>",
    "an XML document": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "a JSON file": b'{"_class_name": "StableDiffusionPipeline"}',
    "a text that begins 'Entry not found'": b"Entry not found",
    "an empty file": b"",
    "a file of zeros only": bytes(4096),
    "a zip archive of model.pt": archive(model=b"0" * 50),
    "a zip file that was cut short": archive(model=b"0" * 50)[:60],
    "a gzip archive": b"\x1f\x8b\x08" + bytes(30),
    "a tar archive": tar(),
    "a 7z archive": b"7z\xbc\xaf\x27\x1c" + bytes(30),
    "an image": saved(Image.new("RGB", (4, 4)).save, format="PNG"),
    "a NumPy array": saved(lambda file: np.save(file, np.ones(3))),
    "a file of NumPy arrays (.npz)": saved(lambda file: np.savez(file, a=np.ones(3))),
    "a GGUF model": b"GGUF" + bytes(30),
}


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors", "model", "MODEL.PT"])
@pytest.mark.parametrize("kind", WRONG)
def test_every_reader_names_a_file_of_another_kind(tmp_path, kind, name):
    path = tmp_path / name
    path.write_bytes(WRONG[kind])
    assert kind_of(path) == kind
    for read in (read_state_dict, read_embedding_file, read_token_tables):
        with pytest.raises(UserError) as error:
            read(path)
        assert str(path) in str(error.value) and kind in str(error.value) and ";" in str(error.value)
    with pytest.raises(UserError) as error, weights_for("a model", path):
        pytest.fail("nothing may read it")
    assert kind in str(error.value)
    assert not is_edited_weights(path) and safetensors_metadata(path) == {}


@pytest.mark.parametrize("kind", ["a Git LFS pointer", "an HTML page", "a zip archive of model.pt", "an image"])
def test_a_whole_file_of_another_kind_is_not_called_damaged(tmp_path, kind):
    (tmp_path / "model.safetensors").write_bytes(WRONG[kind])
    with pytest.raises(UserError) as error:
        read_state_dict(tmp_path / "model.safetensors")
    assert "damaged" not in str(error.value) and "fetch it again" not in str(error.value)


@pytest.mark.parametrize("name", ["model.ckpt", "MODEL.SAFETENSORS", "6ce0161689b3" * 5, "model.safetensors.part"])
def test_a_checkpoint_loads_under_any_name(tiny_files, tmp_path, name):
    shutil.copy(tiny_files[1], tmp_path / name)
    assert load_frozen_model(tiny_files[0], tmp_path / name).state_dict().keys() == load_file(tiny_files[1]).keys()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_checkpoint_loads_under_the_name_of_the_other_form(tmp_path, zipped):
    torch.save({"state_dict": TENSORS}, tmp_path / "model.safetensors", _use_new_zipfile_serialization=zipped)
    assert kind_of(tmp_path / "model.safetensors") == (ZIP if zipped else PICKLE)
    assert read_state_dict(tmp_path / "model.safetensors").keys() == TENSORS.keys()


def test_a_prefix_loads_under_the_name_of_the_other_form(tmp_path):
    write_embedding_file(tmp_path / "a.safetensors", {"alz": torch.ones(2, 4)}, {"alz": 1}, step=3)
    write_safetensors_file(tmp_path / "b.pt", {"alz": torch.ones(2, 4)}, step=3)
    torch.save({"string_to_param": {"*": torch.ones(2, 4)}, "step": 3}, tmp_path / "zip.safetensors")
    for name in ("a.safetensors", "b.pt", "zip.safetensors"):
        file = read_embedding_file(tmp_path / name)
        assert torch.equal(next(iter(file.vectors.values())), torch.ones(2, 4)) and file.metadata["step"] == 3


def test_edited_weights_and_their_header_are_read_under_any_name(tiny_files, tmp_path):
    key = "model.diffusion_model.input_blocks.0.0.weight"
    write_edited_weights(tmp_path / "edited.pt", {key: load_file(tiny_files[1])[key] + 1}, base_model=ModelFiles(*tiny_files).hash())
    assert is_edited_weights(tmp_path / "edited.pt")
    assert ModelFiles(*tiny_files, edited_weights=tmp_path / "edited.pt").load().state_dict()[key].isfinite().all()
    with pytest.raises(UserError, match="give it as --edited_weights"):
        load_frozen_model(tiny_files[0], tmp_path / "edited.pt")
    torch.save(TENSORS, tmp_path / "pickled.safetensors")
    with pytest.raises(UserError, match="pickled.safetensors is a PyTorch file, but edited weights are a .safetensors"):
        ModelFiles(*tiny_files, edited_weights=tmp_path / "pickled.safetensors").load()


def test_token_tables_are_read_under_any_name(tmp_path):
    save_file({key: torch.ones(8, 4) for key in TABLES}, tmp_path / "sdxl.ckpt")
    torch.save({key: torch.ones(8, 4) for key in TABLES}, tmp_path / "sdxl.safetensors")
    for name in ("sdxl.ckpt", "sdxl.safetensors"):
        assert all(table.shape == (6, 4) for table in read_token_tables(tmp_path / name))


@pytest.mark.parametrize(("name", "is_safetensors"), [("clip.pt", True), ("blob", True), ("clip.safetensors", False), ("clip.npz", False)])
def test_libraries_get_weights_under_a_name_that_suits_them(tmp_path, name, is_safetensors):
    save_file(TENSORS, tmp_path / name) if is_safetensors else torch.save(TENSORS, tmp_path / name)
    with weights_for("a model", tmp_path / name) as file:
        assert (file.suffix == ".safetensors") == is_safetensors and file.read_bytes() == (tmp_path / name).read_bytes()
    assert (tmp_path / name).exists()


def test_an_unfinished_download_is_called_one(tmp_path):
    path = tmp_path / "model.safetensors.crdownload"
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="damaged.*unfinished download"):
        read_state_dict(path)


def test_folders_links_and_urls_are_named_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sd" / "unet").mkdir(parents=True)
    (tmp_path / "sd" / "unet" / "config.json").write_text("{}")
    (tmp_path / "sd" / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    (tmp_path / "empty").mkdir()
    (tmp_path / "link.ckpt").symlink_to("gone.ckpt")
    parser = Parser(prog="test_id.py")
    parser.add_argument("--ckpt_path", type=Path)
    for path, words in (("sd", "a diffusers folder"), ("sd/unet", "a part of a diffusers folder"), ("empty", "a folder"),
                        ("link.ckpt", "gone.ckpt"), ("models/none.ckpt", "not there"), ("https://example.org/sd.ckpt", "a URL")):
        found, to_do = not_a_file(path)
        assert words in found and ("whole diffusers folder" in (to_do or "")) == ("part" in words)
        with pytest.raises(UserError, match=f"there is no checkpoint file .*{words.removeprefix('not there')}"):
            container_of(path, "checkpoint file", "give one")
        with pytest.raises(SystemExit):
            check_paths(parser, parser.parse_args(["--ckpt_path", path]), ("ckpt_path",))
    with pytest.raises(UserError, match="a JSON file of a diffusers folder.*give the whole diffusers folder"):
        read_state_dict("sd/model_index.json")


@pytest.mark.parametrize("key", ["down_blocks.0.x", "decoder.mid_block.x", "text_model.encoder.layers.0.x"])
def test_a_part_of_a_diffusers_folder_asks_for_the_whole_folder(tiny_files, tmp_path, key):
    save_file({key: torch.ones(2), "b": torch.ones(2), "c": torch.ones(2)}, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError, match="give the whole diffusers folder"):
        load_frozen_model(tiny_files[0], tmp_path / "diffusion_pytorch_model.safetensors")


def test_a_large_checkpoint_in_place_of_a_prefix_is_named_before_it_is_read(tmp_path, monkeypatch):
    torch.save({"model.diffusion_model.x": torch.zeros(9), "b": torch.ones(2), "c": torch.ones(2)}, tmp_path / "model.ckpt")
    load, mapped = torch.load, []
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: mapped.append(kwargs["mmap"]) or load(*args, **kwargs))
    with pytest.raises(UserError, match="weights of a U-Net .* instead of learned vectors"):
        read_embedding_file(tmp_path / "model.ckpt")
    assert mapped == [True]


@pytest.mark.parametrize(("name", "words"), [("MODEL.CKPT", "is not there"), ("sd", "is a diffusers folder")])
def test_models_asked_for_are_named_as_checkpoints_are(tmp_path, capsys, name, words):
    (tmp_path / "sd").mkdir()
    (tmp_path / "sd" / "model_index.json").write_text("{}")
    with pytest.raises(SystemExit):
        parse_test_id_args(["--preset", "mini", "--models", str(tmp_path / name)])
    assert f"{name} {words}" in capsys.readouterr().err


def test_a_gallery_of_another_kind_is_named(tmp_path):
    (tmp_path / "gallery.npz").write_bytes(POINTER)
    with pytest.raises(UserError, match="gallery.npz is not a gallery .a Git LFS pointer"):
        load_gallery(tmp_path / "gallery.npz")


def test_a_gallery_of_no_known_kind_is_not_said_to_be_safe_to_run(tmp_path):
    (tmp_path / "gallery.npz").write_bytes(b"\1\2\3")
    with pytest.raises(UserError, match="gallery.npz is not a gallery .of no known format"):
        load_gallery(tmp_path / "gallery.npz")


def test_a_face_pack_of_pointers_is_named(tmp_path):
    (tmp_path / "det_10g.onnx").write_bytes(POINTER)
    with pytest.raises(UserError, match="det_10g.onnx of the face pack is a Git LFS pointer"):
        FaceAnalyzer(tmp_path)


def test_a_torchscript_model_in_place_of_a_checkpoint_is_named(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1, 1)), tmp_path / "model.ckpt")
    with pytest.raises(UserError, match="is a TorchScript model and no checkpoint file"):
        read_state_dict(tmp_path / "model.ckpt")
    with weights_for("a model", tmp_path / "model.ckpt") as file:
        assert torch.jit.load(file)(torch.ones(1, 1)).shape == (1, 1)


def test_the_shipped_files_are_what_they_are():
    assert {kind_of(path) for path in (ROOT / "data/mini").rglob("*.onnx")} == {ONNX}
    assert {kind_of(path) for path in (ROOT / "data/mini").rglob("*.safetensors")} == {SAFETENSORS}
    assert {kind_of(path) for path in (ROOT / "embeddings").glob("*.pt")} == {PICKLE}
