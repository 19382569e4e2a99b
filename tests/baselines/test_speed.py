"""SPEED's closed form: in numbers that can be checked in the head, its promises to retained texts and invariants, and on the tiny model."""

import pytest
import torch

from ldm.baselines import speed
from ldm.baselines.speed import edit, edit_matrix, free_directions, invariants_of, retained_for
from ldm.baselines.uce import phrase_contexts
from ldm.finetuning.weights import Weights, parameters_of
from ldm.util import UserError

FLAGS = {"guide": "a person", "filtered": False, "lamb": 0.05, "seed": 0}
AXES = torch.eye(4, dtype=torch.float64)
NONE = torch.zeros(0, 4)


@pytest.fixture
def weights(tiny_model):
    return Weights(tiny_model, parameters_of(tiny_model, "xattn-v"))


def test_one_direction_can_be_checked_in_the_head():
    """W = I, t = 3 e1, a = 3 e2, all free, lamb = 1: M t = t / 10 and dW t = (a - t) 9 / 10; the other axes stay."""
    edited, condition = edit_matrix(AXES, 3 * AXES[1:2], 3 * AXES[2:3], AXES, NONE, 1.0)
    assert torch.allclose(edited @ AXES[1], torch.tensor([0, 0.1, 0.9, 0], dtype=torch.float64))
    assert torch.allclose(edited[:, [0, 2, 3]], AXES[:, [0, 2, 3]]) and condition == pytest.approx(10)


def test_free_directions_are_those_in_which_retained_texts_hardly_vary():
    retained = torch.cat([2 * AXES[:1], 0.3 * AXES[1:2]]).double()  # second moments 2 and .045, the limit is .1
    assert torch.allclose(free_directions(retained), torch.diag(torch.tensor([0.0, 1, 1, 1], dtype=torch.float64)))
    assert torch.equal(free_directions(NONE.double()), AXES)


@pytest.fixture
def case():
    """W (6, 8), targets (3, 8), anchors (3, 8), retained (3, 8) and invariants (1, 8), all of them far from zero."""
    generator = torch.Generator().manual_seed(0)
    return [4 * torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((6, 8), (3, 8), (3, 8), (3, 8), (1, 8))]


def test_retained_texts_and_invariants_keep_their_values_and_targets_get_those_of_their_anchors(case):
    weight, targets, anchors, retained, invariants = case
    free = free_directions(retained)
    edited, _ = edit_matrix(weight, targets, anchors, free, invariants, 1e-6)
    change = edited - weight
    assert (retained @ change.T).norm() < 1e-6 * (retained @ weight.T).norm()
    assert (invariants @ change.T).norm() < 1e-4 * (invariants @ weight.T).norm()
    assert (targets @ change.T).norm() > 0.3 * (targets @ weight.T).norm()
    moved, _ = edit_matrix(weight, targets @ free, anchors, free, NONE.new_zeros(0, 8), 1e-6)  # P keeps these targets
    assert torch.allclose(targets @ free @ moved.T, anchors @ weight.T, atol=1e-3)


def test_the_invariants_of_a_crowded_space_give_no_nonsense(case):
    """One direction is free and three invariants want it: nothing changes, and nothing overflows."""
    weight, targets, anchors, _, _ = case
    free = torch.outer(torch.eye(8)[0], torch.eye(8)[0]).double()
    edited, condition = edit_matrix(weight, targets, anchors, free, 10 * torch.eye(8).double()[:3] + 1, 0.05)
    assert torch.allclose(edited, weight, atol=1e-3) and condition < 1e12


def test_copies_differ_where_the_matrix_sees_least_and_the_filter_drops_what_would_not_move():
    weight = torch.diag(torch.tensor([1.0, 1, 1, 0.01])).double()
    targets, anchors = 3 * AXES[1:2], 3 * AXES[2:3]
    retained = torch.stack([AXES[0], AXES[0] + AXES[1]])  # the first shares nothing with the target, so it would not move
    few = retained_for(weight, targets, anchors, retained, True, torch.Generator().manual_seed(0))
    assert torch.equal(few[0], retained[1])
    allowed = retained_for(weight, targets, anchors, retained, False, torch.Generator().manual_seed(0))
    assert torch.equal(allowed[:2], retained)
    copies = allowed[2:]
    assert len(copies) and torch.equal(copies[:, :3], retained[1:].expand(len(copies), 4)[:, :3]) and copies[:, 3].std() > 0.3


@pytest.mark.parametrize("filtered", [False, True])
def test_values_alone_are_edited_and_kept_texts_keep_theirs(tiny_model, weights, monkeypatch, filtered):
    monkeypatch.setattr(speed, "NULL", 1e-3)  # contexts of the tiny model are short
    kept = ["a red car", "two blue boats", "Cleo Vance"]
    edits, condition = edit(weights, ["Ada Stone", "Ben Wood"], preserve=kept, **FLAGS | {"filtered": filtered})
    again, _ = edit(weights, ["Ada Stone", "Ben Wood"], preserve=kept, **FLAGS | {"filtered": filtered})
    assert condition > 1 and edits and all(".attn2.to_v." in key for key in edits)
    contexts = {text: phrase_contexts(tiny_model, [text], to_end=False)[0] for text in (*kept, "Ada Stone")}
    for key, edited in edits.items():
        change = edited - tiny_model.get_parameter(key)
        moved = {text: (context @ change.T).norm().item() for text, context in contexts.items()}
        assert torch.equal(edited, again[key]) and moved["Ada Stone"] > 0
        if not filtered:
            assert all(moved[text] < 0.2 * moved["Ada Stone"] for text in kept), moved
        empty = invariants_of(tiny_model, 0).float()
        assert (empty[0] @ change.T).norm() < 0.01 * (empty[0] @ tiny_model.get_parameter(key).T).norm()


def test_texts_that_fill_the_space_are_refused(weights, monkeypatch):
    monkeypatch.setattr(speed, "NULL", -1.0)
    with pytest.raises(UserError, match="fill all 32 directions"):
        edit(weights, ["Ada Stone"], preserve=["a red car"], **FLAGS)
