"""Textual inversion: the token's vectors alone are learned, behind a prefix or not, and those of names once."""

import torch

from ldm.attacks.textual_inversion import NAME_TOKEN, manager_of_name, tokens_of_names
from ldm.finetuning.trainer import FinetuningSettings, adam, training_step
from ldm.sharing import OneDevice
from tests.baselines import test_baselines
from tests.baselines.test_baselines import NAMES, OF_NAME

photos, method_of = test_baselines.photos, test_baselines.method_of  # fixtures


def test_only_the_tokens_vectors_are_inverted(method_of):
    method = method_of("textual_inversion")
    prefix = method.trained.manager.string_to_param_dict["alz"].clone()
    optimizer = adam(method, settings := FinetuningSettings(iterations=2, batch_size=2, lr=1e-2, weight_decay=1e-2))
    start = method.trained.vectors.detach().clone()
    training_step(OneDevice(), method, optimizer, settings, 1)
    assert torch.equal(method.trained.manager.string_to_param_dict["alz"], prefix)
    assert not torch.equal(method.trained.vectors, start)


def test_the_prefix_stands_in_front_while_a_token_is_learned(method_of):
    method = method_of("textual_inversion")
    behind = method.loss(range(2)).item()
    method.prefixed = False
    assert method.loss(range(2)).item() != behind


def test_a_names_vectors_start_as_its_tokens(tiny_model):
    table = tiny_model.cond_stage_model.get_input_embeddings().weight
    token_ids = tiny_model.cond_stage_model.tokenizer("Ada Stone", add_special_tokens=False)["input_ids"]
    vectors = manager_of_name(tiny_model, "Ada Stone", 0).string_to_param_dict[NAME_TOKEN]
    assert len(vectors) == 4 and torch.equal(vectors[:len(token_ids)], table[token_ids])


def test_vectors_of_names_are_learned_once(tiny_model, photos, tmp_path, monkeypatch):
    flags = {"template": "a photo of {}", "iterations": 2, "seed": 0, "model_hash": "abc", "folder": tmp_path}
    first = tokens_of_names(OneDevice(), photos, OF_NAME, **flags)
    monkeypatch.setattr("ldm.attacks.textual_inversion.training_step", None)
    again = tokens_of_names(OneDevice(), photos, OF_NAME, **flags)
    assert all(torch.equal(first[name].string_to_param_dict[NAME_TOKEN], again[name].string_to_param_dict[NAME_TOKEN]) for name in NAMES)
    assert not torch.equal(first[NAMES[0]].string_to_param_dict[NAME_TOKEN], first[NAMES[1]].string_to_param_dict[NAME_TOKEN])
