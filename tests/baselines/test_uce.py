"""UCE's closed form: beside an explicit least-squares solution, in its limits, and on the tiny model."""

import pytest
import torch

from ldm.baselines.uce import edit, edit_matrices, phrase_contexts
from ldm.finetuning.weights import Weights, parameters_of

SCALES = {"erase_scale": 2.0, "preserve_scale": 3.0, "lamb": 0.5}


def edited_matrix(weight: torch.Tensor, *contexts: torch.Tensor, **scales: float) -> tuple[torch.Tensor, float]:
    edited, condition = edit_matrices({"W": weight}, *contexts, **scales)
    return edited["W"], condition


@pytest.fixture
def weights(tiny_model):
    return Weights(tiny_model, parameters_of(tiny_model, "xattn-kv"))


@pytest.fixture
def case():
    """W (6, 5), c (3, 5), g (3, 5), preserved (4, 5)."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*shape, generator=generator) for shape in ((6, 5), (3, 5), (3, 5), (4, 5)))


def test_it_is_the_least_squares_solution(case):
    """min es |W'c - Wg|^2 + ps |W'k - Wk|^2 + lamb |W' - W|^2, as one stacked linear system."""
    weight, erased, guides, preserved = (tensor.double() for tensor in case)
    roots = [scale ** 0.5 for scale in SCALES.values()]
    inputs = torch.cat([roots[0] * erased, roots[1] * preserved, roots[2] * torch.eye(5, dtype=torch.float64)])
    outputs = torch.cat([roots[0] * guides @ weight.T, roots[1] * preserved @ weight.T, roots[2] * weight.T])
    solution = torch.linalg.lstsq(inputs, outputs).solution.T
    edited, condition = edited_matrix(*case, **SCALES)
    assert torch.allclose(edited.double(), solution, atol=1e-6)
    assert condition == pytest.approx(torch.linalg.cond(inputs).item() ** 2, rel=1e-6)


def test_one_direction_can_be_checked_in_the_head():
    """W = I, c = e0, g = e1, lamb = es = 1: W' e0 = (e0 + e1) / 2, all else as before."""
    edited, condition = edited_matrix(torch.eye(3), torch.eye(3)[:1], torch.eye(3)[1:2], torch.zeros(0, 3), erase_scale=1.0,
                                      preserve_scale=1.0, lamb=1.0)
    assert torch.allclose(edited, torch.tensor([[0.5, 0, 0], [0.5, 1, 0], [0, 0, 1.0]]))
    assert condition == pytest.approx(2.0)


def test_without_names_nothing_changes(case):
    weight, _, _, preserved = case
    edited, _ = edited_matrix(weight, torch.zeros(0, 5), torch.zeros(0, 5), preserved, **SCALES)
    assert torch.allclose(edited, weight, atol=1e-5)


def test_a_large_erase_scale_maps_a_name_to_its_guide(case):
    weight, erased, guides, _ = case
    edited, _ = edited_matrix(weight, erased, guides, torch.zeros(0, 5), erase_scale=1e6, preserve_scale=1.0, lamb=0.5)
    assert torch.allclose(erased @ edited.T, guides @ weight.T, atol=1e-3)


def test_a_phrase_is_read_at_its_last_token(tiny_model):
    last, = phrase_contexts(tiny_model, ["Ada Stone"], to_end=False)
    to_end, = phrase_contexts(tiny_model, ["Ada Stone"], to_end=True)
    whole = tiny_model.get_learned_conditioning(["Ada Stone"])[0]
    count = len(tiny_model.cond_stage_model.tokenizer("Ada Stone", add_special_tokens=False)["input_ids"])
    assert torch.equal(last, whole[count:count + 1]) and torch.equal(to_end, whole[count:])


@pytest.mark.parametrize("to_end", [False, True])
def test_keys_and_values_alone_are_edited_towards_the_guide(tiny_model, weights, to_end):
    edits, condition = edit(weights, ["Ada Stone"], guide="a person", preserve=["a red car"], to_end=to_end, erase_scale=1e4,
                              preserve_scale=1.0, lamb=0.5)
    assert condition > 1 and all(".attn2.to_k." in key or ".attn2.to_v." in key for key in edits)
    name, guide = (phrase_contexts(tiny_model, [text], to_end=False)[0] for text in ("Ada Stone", "a person"))
    for key, edited in edits.items():
        own = tiny_model.get_parameter(key)
        assert (name @ edited.T - guide @ own.T).norm() < 0.1 * (name @ own.T - guide @ own.T).norm()


def test_a_text_that_is_preserved_moves_less(tiny_model, weights):
    flags = {"guide": "a person", "to_end": False, "erase_scale": 1.0, "preserve_scale": 10.0, "lamb": 0.5}
    kept, = phrase_contexts(tiny_model, ["a red car"], to_end=False)

    def moved(preserve: list[str]) -> float:
        edits, _ = edit(weights, ["Ada Stone"], preserve=preserve, **flags)
        return sum((kept @ (edited - tiny_model.get_parameter(key)).T).norm().item() for key, edited in edits.items())

    assert moved(["a red car"]) < 0.3 * moved([])
