"""Edited weights: in and out of a model without a trace, and a file that says what it is."""

import pytest
import torch

from ldm.edited_weights import edited, is_edited_weights, write_edited_weights
from ldm.loading import safetensors_metadata

KEY = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"


def test_the_model_computes_with_them_and_is_the_same_afterwards(tiny_model):
    x, t, context = torch.randn(1, 4, 4, 4), torch.tensor([5]), tiny_model.get_learned_conditioning(["a red car"])
    before, keys, own = tiny_model.apply_model(x, t, context), list(tiny_model.state_dict()), tiny_model.get_parameter(KEY)
    weights = {KEY: (own + 1).double()}
    with edited(tiny_model, weights):
        within = tiny_model.apply_model(x, t, context)
        assert tiny_model.state_dict()[KEY].dtype == own.dtype
    assert not torch.equal(within, before)
    assert torch.equal(tiny_model.apply_model(x, t, context), before)
    assert tiny_model.get_parameter(KEY) is own and list(tiny_model.state_dict()) == keys


def test_they_are_taken_out_after_an_error(tiny_model):
    own = tiny_model.get_parameter(KEY)
    with pytest.raises(RuntimeError), edited(tiny_model, {KEY: own + 1}):
        raise RuntimeError
    assert tiny_model.get_parameter(KEY) is own


def test_gradients_reach_them_and_not_the_model(tiny_model):
    value = tiny_model.get_parameter(KEY).clone().requires_grad_()
    with edited(tiny_model, {KEY: value}):
        eps = tiny_model.apply_model(torch.randn(1, 4, 4, 4), torch.tensor([5]), tiny_model.get_learned_conditioning(["a"]))
    eps.sum().backward()
    assert value.grad.any() and tiny_model.get_parameter(KEY).grad is None


def test_equal_content_gives_equal_bytes_and_the_header_says_what_it_is(tmp_path):
    weights = {KEY: torch.ones(2, dtype=torch.bfloat16), "model.diffusion_model.out.2.bias": torch.zeros(3)}
    for name in ("one", "two"):
        write_edited_weights(tmp_path / f"{name}.safetensors", weights, base_model="abc", train_method="esd", names=["Ada"], seed=3)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert safetensors_metadata(tmp_path / "one.safetensors") == {"base_model": "abc", "train_method": "esd", "names": ["Ada"], "seed": 3}
    assert is_edited_weights(tmp_path / "one.safetensors") and not is_edited_weights(tmp_path / "prefix.pt")
