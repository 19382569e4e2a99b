"""The objective from texts alone: what a reading is, and that names are read as their attributes while captions stay."""

import pytest
import torch

from ldm.apl.examples import TrainingSet
from ldm.apl.launch import launch
from ldm.apl.look_ahead import Share
from ldm.apl.prefix import build_prefix
from ldm.apl.text_objective import context_scale, readings, text_batches, text_loss, text_step
from ldm.data.captions import CaptionImage
from ldm.data.identities import Person
from ldm.data.mixture import Mixture
from ldm.modules.embedding_manager import manager_of_file

PEOPLE = [Person("Ada Stone", "train", "A woman with curly hair"), Person("Ben Reed", "train", "A bald man")]
CAPTIONS = [CaptionImage(None, "a red car"), CaptionImage(None, "a house on a hill")]  # no image is ever read


def test_a_reading_is_the_attention_of_a_query_whatever_the_order_and_copies_of_the_states():
    context = torch.randn(2, 77, 4, generator=torch.Generator().manual_seed(0))
    queries = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    by_hand = torch.stack([torch.softmax(x @ queries[1], 0) @ x for x in context])
    torch.testing.assert_close(readings(context, queries)[:, 1], by_hand)
    torch.testing.assert_close(readings(context.flip(1), queries), readings(context, queries))
    torch.testing.assert_close(readings(context[:, :7].repeat(1, 11, 1), queries), readings(context[:, :7], queries))
    torch.testing.assert_close(readings(torch.ones(1, 77, 4), queries), torch.ones(1, 3, 4))


def test_the_pooled_text_of_sdxl_is_compared_itself():
    context = torch.randn(1, 78, 4, generator=torch.Generator().manual_seed(0))
    found = readings(context, torch.zeros(3, 4))
    assert found.shape == (1, 4, 4) and torch.equal(found[:, 3], context[:, 77])
    torch.testing.assert_close(found[:, 0], context[:, :77].mean(1))  # of a query of zeros


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, 9.0), (1.0, 25.0)])
def test_the_loss_leads_from_the_name_through_the_attributes_and_only_the_prefixed_context_has_a_gradient(alpha, expected):
    name, attributes, prefixed = (torch.full((2, 77, 4), value).requires_grad_() for value in (1.0, 3.0, 0.0))
    losses = text_loss(prefixed, name, attributes, torch.zeros(3, 4), alpha)
    assert losses.tolist() == pytest.approx([expected] * 2, rel=1e-4)
    losses.sum().backward()
    assert prefixed.grad.lt(0).all() and name.grad is None and attributes.grad is None


def test_constant_coordinates_do_not_count():
    contexts = torch.randn(8, 78, 4, generator=torch.Generator().manual_seed(0))
    contexts[:, 77, 2:] = 0  # the padding of the pooled text
    scaled = contexts / context_scale(contexts)
    assert torch.allclose(scaled[:, :77].flatten(0, 1).std(0), torch.ones(4)) and torch.allclose(scaled[:, 77, :2].std(0), torch.ones(2))
    assert not scaled[:, 77, 2:].any()


def training_set(model):
    return TrainingSet(model, PEOPLE, CAPTIONS, ["{}", "a photo of {}"], Mixture(0, 2, 2, 2, 1, 0.5))


def learned(model, fabric, steps):
    """A prefix after some steps."""
    prefix = build_prefix(model, num_vectors=3, init="vocab")
    optimizer = torch.optim.Adam(prefix.embedding_parameters(), lr=0.05)
    for batch in text_batches(model, prefix, training_set(model), Share(8, 1), first_step=0, iterations=steps):
        text_step(fabric, model, prefix, optimizer, batch, alpha=0.0)
    return prefix


def distances(model, prefix):
    """Mean loss of the people to c2, and of the captions to themselves."""
    batches = text_batches(model, prefix, training_set(model), Share(32, 1), first_step=1000, iterations=1001)
    sums = text_step(launch("cpu", 8), model, prefix, torch.optim.SGD(prefix.embedding_parameters(), lr=0.0), next(batches), alpha=0.0)
    return (sums[:2] / sums[2:]).tolist()


@pytest.mark.parametrize("kind", ["tiny_model", "tiny_xl_model"])
def test_names_move_to_their_attributes_and_captions_to_themselves(kind, request, tmp_path):
    model, fabric = request.getfixturevalue(kind), launch("cpu", 8)
    start, prefix = learned(model, fabric, 0), learned(model, fabric, 25)
    before, after = distances(model, start), distances(model, prefix)
    assert after[0] < 0.9 * before[0] and after[1] < 0.9 * before[1]

    prefix.save(tmp_path / "apl-text.safetensors" if kind == "tiny_xl_model" else tmp_path / "apl-text.pt")
    [file] = tmp_path.iterdir()
    loaded = manager_of_file(model.cond_stage_model, file)
    for own, other in zip(prefix.embedding_parameters(), loaded.embedding_parameters(), strict=True):
        assert torch.equal(own, other)
