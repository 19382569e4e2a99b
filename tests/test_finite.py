"""Numbers that are not finite: refused where weights enter, and where a training, a file or a score would spread them."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm.apl.transfer_routes import search
from ldm.edited_weights import write_edited_weights
from ldm.evaluation.fid import frechet_distance, kernel_distance
from ldm.finetuning import trainer as finetuning
from ldm.finite import is_finite
from ldm.generation import to_uint8
from ldm.loading import file_hash, load_frozen_model
from ldm.logbook import Logbook
from ldm.modules.embedding_file import write_embedding_file, write_safetensors_file
from ldm.util import UserError
from tests.apl.test_trainer import train

OUT = "model.diffusion_model.out.2.weight"
DECODER = "first_stage_model.decoder.conv_out.weight"
BROKEN = [float("nan"), float("inf"), -float("inf")]


def with_value(tensor: torch.Tensor, value: float) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[-1] = value
    return tensor


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_one_broken_element_is_found(value, dtype):
    assert is_finite(torch.full((100,), torch.finfo(dtype).max, dtype=dtype))
    assert not is_finite(with_value(torch.zeros(100, dtype=dtype), value))
    assert is_finite(torch.zeros(0)) and is_finite(torch.arange(3))


@pytest.mark.parametrize(("key", "value"), [(OUT, BROKEN[0]), (DECODER, BROKEN[1])])
def test_a_checkpoint_with_a_broken_weight_is_refused_by_its_name(tiny_files, tmp_path, key, value):
    state = load_file(tiny_files[1])
    save_file(state | {key: with_value(state[key], value)}, tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match=f"nan.safetensors.* NaN or infinity in the tensor '{key}'"):
        load_frozen_model(tiny_files[0], tmp_path / "nan.safetensors")


def test_weights_that_overflow_in_the_wanted_type_are_refused_and_those_that_are_not_used_are_not_looked_at(tiny_files, tmp_path):
    state = load_file(tiny_files[1])
    save_file(state | {OUT: with_value(state[OUT], 1e6), "model_ema.decay": torch.tensor(float("nan"))}, tmp_path / "large.safetensors")
    load_frozen_model(tiny_files[0], tmp_path / "large.safetensors")
    with pytest.raises(UserError, match=OUT):
        load_frozen_model(tiny_files[0], tmp_path / "large.safetensors", dtype=torch.float16)


def test_an_autoencoder_or_edited_weights_that_are_broken_are_refused(tiny_files, tmp_path):
    state = load_file(tiny_files[1])
    save_file(state | {DECODER: with_value(state[DECODER], BROKEN[0])}, tmp_path / "vae.safetensors")
    with pytest.raises(UserError, match=f"vae.safetensors holds NaN or infinity in the tensor '{DECODER}'"):
        load_frozen_model(*tiny_files, vae_path=tmp_path / "vae.safetensors")
    save_file({OUT: with_value(state[OUT], BROKEN[0])}, tmp_path / "edited.safetensors")
    with pytest.raises(UserError, match=f"edited.safetensors holds NaN or infinity in the tensor '{OUT}'"):
        load_frozen_model(*tiny_files, edited_weights=tmp_path / "edited.safetensors")


@pytest.mark.parametrize("flag", ["ckpt_path", "vae_path", "edited_weights"])
def test_quantized_weights_are_refused_and_float8_is_read(tiny_files, tmp_path, flag):
    state = load_file(tiny_files[1])
    for dtype in (torch.float8_e4m3fn, torch.int8):
        broken = {DECODER: state[DECODER].to(dtype)}
        save_file(broken if flag == "edited_weights" else state | broken, tmp_path / f"{dtype}.safetensors")
    files = {"config_path": tiny_files[0], "ckpt_path": tiny_files[1]}
    load_frozen_model(**files | {flag: tmp_path / "torch.float8_e4m3fn.safetensors"})
    with pytest.raises(UserError, match=f"int8.safetensors has '{DECODER}' as int8, as quantized models"):
        load_frozen_model(**files | {flag: tmp_path / "torch.int8.safetensors"})


def test_a_result_that_is_not_finite_is_not_written(tiny_files, tmp_path):
    broken = with_value(torch.zeros(2, 32), BROKEN[0])
    for write in (lambda path: write_embedding_file(path, {"alz": broken}, {"alz": 5}),
                  lambda path: write_safetensors_file(path, {"clip_l": broken}),
                  lambda path: write_edited_weights(path, {OUT: broken}, base_model=file_hash(tiny_files[1]))):
        with pytest.raises(UserError, match="not written"):
            write(tmp_path / "result")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_training_that_diverges_stops_at_once_and_keeps_what_was_good(fabric, tiny_model, pictures, tmp_path, log_every):
    train(fabric, tiny_model, pictures, tmp_path / "good", iterations=1, save_every=1, log_every=log_every)
    with pytest.raises(UserError, match=r"diverged: .* not finite after step 2; .*smaller --lr than 1e\+30"):
        train(fabric, tiny_model, pictures, tmp_path / "bad", lr=1e30, save_every=1, log_every=log_every)
    assert sorted(path.name for path in (tmp_path / "bad").glob("*.pt")) == ["1.pt"] + ["state.pt"] * (log_every == 1)
    with open(tmp_path / "bad/log.csv", newline="", encoding="utf-8") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1"] * (log_every == 1)


def test_weights_that_break_under_a_finite_loss_reach_no_file_and_no_state(fabric, tmp_path, monkeypatch):
    monkeypatch.setattr(Logbook, "state_is_due", lambda self: True)
    trained = torch.nn.ParameterDict({"w": torch.nn.Parameter(torch.zeros(2))})
    method = SimpleNamespace(trained=trained, loss=lambda numbers: trained["w"].sqrt().sum())  # 0, of infinite slope
    with pytest.raises(UserError, match="diverged: .* not finite after step 1"):
        finetuning.train(fabric, method, finetuning.FinetuningSettings(iterations=9, batch_size=1, lr=1e-3, log_every=1),
                        Logbook(tmp_path, {"iterations": 9}), lambda step: pytest.fail("saved"))
    assert not (tmp_path / "state.pt").exists()


def test_a_search_that_diverges_has_no_result():
    with pytest.raises(UserError, match="search has diverged: its loss is not finite at step 2 of 5, .*smaller --lr than 1e\\+30"):
        search(torch.ones(2, 2), lambda free: free, lambda free: (free ** 2).sum() - (free ** 2).sum() ** 2, steps=5, lr=1e30)


def test_images_of_numbers_that_are_not_finite_are_none():
    assert to_uint8(torch.full((1, 3, 2, 2), 9.0)).max() == 255
    for value in BROKEN:
        with pytest.raises(UserError, match="NaN or infinity where pixels should be"):
            to_uint8(with_value(torch.zeros(1, 3, 2, 2), value))


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_features_that_are_not_finite_have_no_distance(distance):
    good, bad = np.random.default_rng(0).normal(size=(2, 8, 4))
    bad[3, 1] = np.nan
    assert distance(good, good) is not None
    for sets in ((good, bad), (bad, good)):
        with pytest.raises(UserError, match="features of 1 of 8 images are not finite"):
            distance(*sets)
