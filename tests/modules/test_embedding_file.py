"""Files of learned vectors: every form in use is read, none runs code, and one that all clients read is written."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ldm.modules.embedding_file import read_embedding_file, write_embedding_file, write_safetensors_file
from ldm.util import UserError

M, D = 10, 16
VECTORS = torch.arange(M * D, dtype=torch.float32).reshape(M, D) / 64  # exact in float16


def compvis(*, key="alz", token=41128, container=nn.ParameterDict, dtype=torch.float32, **fields):
    value = VECTORS.to(dtype)
    param = container({key: nn.Parameter(value) if container is nn.ParameterDict else value})
    return {"string_to_token": {key: token}, "string_to_param": param, **fields}


def a1111(**changes):
    return compvis(**{"key": "*", "token": 265, "container": dict, "name": "alz", "step": 5, "sd_checkpoint": None,
                      "sd_checkpoint_name": None} | changes)


def universal(**changes):
    return a1111(**{"token": 41128, "name": "<alz>"} | changes)


def two_keys():
    return {"string_to_token": {"alz": 41128, "*": 41128}, "string_to_param": {"alz": VECTORS, "*": VECTORS.clone()},
            "name": "<alz>"}


def save_zip(content, path):
    torch.save(content, path)


def save_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_stripped(content, path):
    """As `save_zip`, with the entries alone that AUTOMATIC1111 1.8 accepts."""
    torch.save(content, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            if name.endswith(("/data.pkl", "/version")) or "/data/" in name:
                archive.writestr(name, data)


SAMPLES = {
    "01.pt": (save_zip, compvis()),
    "02.pt": (save_legacy, compvis()),
    "03.pt": (save_stripped, compvis()),
    "04.pt": (save_zip, compvis(container=dict)),
    "05.pt": (save_zip, a1111()),
    "06.pt": (save_legacy, a1111()),
    "07.pt": (save_stripped, a1111()),
    "08.pt": (save_zip, universal()),
    "09.pt": (save_legacy, universal()),
    "10.pt": (save_stripped, universal()),
    "11.pt": (save_legacy, universal(container=nn.ParameterDict)),
    "12.safetensors": (save_file, {"emb_params": VECTORS}),
    "13.safetensors": (save_file, {"alz": VECTORS}),
    "14.safetensors": (save_file, {"<alz>": VECTORS}),
    "15.bin": (save_zip, {"<alz>": VECTORS}),
    "16.safetensors": (save_file, {"clip_l": VECTORS, "clip_g": torch.ones(M, 20)}),
    "17.safetensors": (save_file, {"clip_l": VECTORS}),
    "18.pt": (save_zip, {"clip_l": VECTORS, "clip_g": torch.ones(M, 20)}),
    "19.safetensors": (save_file, {"emb_params": VECTORS.half()}),
    "20.pt": (save_zip, compvis(dtype=torch.float16)),
    "21.pt": (save_legacy, compvis(container=dict, name="alz", step=5)),
    "22.pt": (save_stripped, universal(step=7)),
    "23.pt": (save_zip, two_keys()),
    "24.pt": (save_legacy, universal(apl={"seed": 3})),
    "compvis-fp16-legacy.pt": (save_legacy, compvis(dtype=torch.float16)),
    "compvis-bf16-legacy.pt": (save_legacy, compvis(dtype=torch.bfloat16)),
    "token-as-tensor.pt": (save_legacy, compvis(token=torch.tensor(41128))),
    "one-vector.bin": (save_zip, {"<alz>": VECTORS[0]}),
}


def write_sample(name: str, folder: Path) -> Path:
    save, content = SAMPLES[name]
    save(content, folder / name)
    return folder / name


@pytest.mark.parametrize("name", SAMPLES)
def test_every_form_in_use_is_read(name, tmp_path):
    file = read_embedding_file(write_sample(name, tmp_path))
    vectors = next(value for key, value in file.vectors.items() if key != "clip_g")
    assert torch.equal(vectors, VECTORS[:len(vectors)].to(torch.bfloat16).float() if "bf16" in name else
                       VECTORS[:len(vectors)])
    assert vectors.dtype == torch.float32 and not vectors.requires_grad
    if ".pt" in name and "clip_l" not in file.vectors:
        assert set(file.token_ids) == set(file.vectors) and set(file.token_ids.values()) <= {41128, 265}


def test_a_parameter_dict_of_an_older_torch_is_read(tmp_path):
    content = compvis()
    for attribute in ("_keys", "_non_persistent_buffers_set", "_is_full_backward_hook"):
        content["string_to_param"].__dict__.pop(attribute, None)
    for save in (save_zip, save_legacy):
        save(content, tmp_path / "old.pt")
        assert torch.equal(read_embedding_file(tmp_path / "old.pt").vectors["alz"], VECTORS)


class RunsCode:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def save_bare(content, path):
    path.write_bytes(pickle.dumps(content["extra"]))


@pytest.mark.parametrize("save", [save_zip, save_legacy, save_stripped, save_bare])
def test_code_in_a_pickle_never_runs(save, tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "hostile.pt"
    save(compvis(container=dict, extra=RunsCode(marker)), path)
    with pytest.raises(UserError, match=r"hostile\.pt asks for posix\.system.*was not run.*trust"):
        read_embedding_file(path)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["builtins.eval", "builtins.getattr", "torch.load", "torch.nn.modules.linear.Linear"])
def test_only_what_an_embedding_needs_is_looked_up(name, tmp_path):
    module, _, attribute = name.rpartition(".")
    headers = b"".join(pickle.dumps(header, 2) for header in (0x1950A86A20F9469CFC6C, 1001, {}))
    (tmp_path / "hostile.pt").write_bytes(headers + f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(UserError, match=f"asks for {name}"):
        read_embedding_file(tmp_path / "hostile.pt")


@pytest.mark.parametrize("name", ["01.pt", "02.pt", "09.pt", "12.safetensors"])
@pytest.mark.parametrize("kept", [0, 1, 0.3, 0.6, 0.95])
def test_a_truncated_file_is_refused(name, kept, tmp_path):
    path = write_sample(name, tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[:kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(UserError, match="damaged or no embedding"):
        read_embedding_file(path)


def test_a_file_without_the_numbers_of_its_vectors_is_refused(tmp_path):
    write_embedding_file(tmp_path / "a.pt", {"alz": VECTORS}, {"alz": 41128})
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes().replace(pickle.dumps(["0"], 2), pickle.dumps([], 2)))
    with pytest.raises(UserError, match="damaged or no embedding"):
        read_embedding_file(tmp_path / "a.pt")


@pytest.mark.parametrize("content", [
    {"state_dict": {"w": VECTORS}}, {"a": 1}, [VECTORS], VECTORS, {}, {"string_to_param": {}},
    {"alz": VECTORS.long()}, {"alz": VECTORS[None]}, {"alz": VECTORS / 0}])
def test_other_content_is_refused_with_a_sentence(content, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(UserError, match="other.pt.*(give|take)"):
        read_embedding_file(tmp_path / "other.pt")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no embedding file"):
        read_embedding_file(tmp_path / "none.pt")


def test_the_written_file_is_the_one_that_every_client_reads(tmp_path):
    path = tmp_path / "alz.pt"
    write_embedding_file(path, {"alz": nn.Parameter(VECTORS.clone())}, {"alz": 41128}, step=7, metadata={"seed": 3})
    content = torch.load(path, weights_only=True)
    assert torch.equal(content["string_to_param"].pop("*"), VECTORS)
    assert content == {"string_to_token": {"*": 41128}, "string_to_param": {}, "name": "<alz>", "step": 7,
                       "sd_checkpoint": None, "sd_checkpoint_name": None, "apl": {"seed": 3}}
    assert not zipfile.is_zipfile(path) and os.listdir(tmp_path) == ["alz.pt"]


def test_metadata_travels(tmp_path):
    metadata = {"seed": 3, "lr": 1e-3, "arguments": {"prompt": "apl", "mix": [0.5, None, True]}}
    write_embedding_file(tmp_path / "a.pt", {"alz": VECTORS}, {"alz": 41128}, step=7, metadata=metadata)
    assert read_embedding_file(tmp_path / "a.pt").metadata == {"name": "<alz>", "step": 7, **metadata}


def test_a_header_entry_of_somebody_elses_is_passed_over(tmp_path):
    save_file({"emb_params": VECTORS}, tmp_path / "a.safetensors", metadata={"apl": "no JSON", "by": "them"})
    assert read_embedding_file(tmp_path / "a.safetensors").metadata == {"by": "them"}


def test_several_placeholders_keep_their_names(tmp_path):
    vectors = {"alz": VECTORS, "sks": VECTORS[:2] + 1}
    write_embedding_file(tmp_path / "two.pt", vectors, {"alz": 41128, "sks": 48136})
    file = read_embedding_file(tmp_path / "two.pt")
    assert file.token_ids == {"alz": 41128, "sks": 48136}
    assert all(torch.equal(file.vectors[name], value) for name, value in vectors.items())


def test_equal_vectors_give_equal_bytes_wherever_they_lie_in_memory(tmp_path):
    vectors = [{"alz": torch.full((2, 3), 1.0), "sks": torch.full((2, 3), 2.0)} for _ in range(2)]  # held: two places
    for number, arguments in enumerate(({"a": "alz", "b": "alz"}, {"a": "alz", "b": "".join(["al", "z"])})):
        write_embedding_file(tmp_path / str(number), vectors[number], {"alz": 1, "sks": 2}, metadata=arguments)
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


def test_the_bytes_are_those_of_torch_save_but_for_the_storage_key(tmp_path):
    write_embedding_file(tmp_path / "a.pt", {"alz": VECTORS}, {"alz": 41128})
    save_legacy(universal(step=None, apl={}), tmp_path / "b.pt")
    key = str(VECTORS.untyped_storage()._cdata).encode()
    expected = (tmp_path / "b.pt").read_bytes().replace(len(key).to_bytes(4, "little") + key, b"\x01\0\0\0" + b"0")
    assert (tmp_path / "a.pt").read_bytes() == expected


def test_vectors_of_sdxl_come_back_with_their_metadata_and_the_same_bytes(tmp_path):
    clip_l, clip_g = torch.randn(3, 4), torch.randn(3, 6)
    for name in ("a.safetensors", "b.safetensors"):
        write_safetensors_file(tmp_path / name, {"clip_l": clip_l, "clip_g": clip_g}, step=7, metadata={"seed": 1})
    file = read_embedding_file(tmp_path / "a.safetensors")
    assert torch.equal(file.vectors["clip_l"], clip_l) and torch.equal(file.vectors["clip_g"], clip_g)
    assert file.metadata == {"step": 7, "seed": 1}
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize(("keys", "kind"), [
    (("lora_unet_x.lora_down.weight", "lora_unet_x.lora_up.weight", "lora_unet_x.alpha"), "a LoRA"),
    (("conditioner.embedders.1.x", "b", "c"), "an SDXL checkpoint"),
    (("cond_stage_model.transformer.text_model.x", "b", "c"), "a Stable Diffusion v1 checkpoint")])
def test_a_file_of_another_kind_is_named(tmp_path, keys, kind):
    content = dict.fromkeys(keys, torch.ones(2, 2))
    save_file({key: value.clone() for key, value in content.items()}, tmp_path / "other.safetensors")
    torch.save(content, tmp_path / "other.pt")
    torch.save({"state_dict": content, "step": 1}, tmp_path / "wrapped.ckpt")
    for name in ("other.safetensors", "other.pt", "wrapped.ckpt"):
        with pytest.raises(UserError, match=f"{name} is {kind} instead of learned vectors"):
            read_embedding_file(tmp_path / name)


def test_a_number_too_large_for_float32_is_refused(tmp_path):
    torch.save({"alz": torch.full((1, 2), 1e300, dtype=torch.float64)}, tmp_path / "large.pt")
    with pytest.raises(UserError, match="hold NaN or infinity"):
        read_embedding_file(tmp_path / "large.pt")
