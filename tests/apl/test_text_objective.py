"""The objective from texts alone: which states are compared, and that contexts of names move to c2's while captions stay."""

import pytest
import torch

from ldm.apl.examples import Texts, TrainingSet
from ldm.apl.launch import launch
from ldm.apl.look_ahead import Share
from ldm.apl.prefix import build_prefix
from ldm.apl.text_objective import corresponding_rows, text_batches, text_loss, text_step
from ldm.data.captions import CaptionImage
from ldm.data.identities import Person
from ldm.data.mixture import Mixture
from ldm.generation import with_prefix
from ldm.modules.embedding_manager import manager_of_file

PEOPLE = [Person("Ada Stone", "train", "A woman with curly hair"), Person("Ben Reed", "train", "A bald man")]
CAPTIONS = [CaptionImage(None, "a red car"), CaptionImage(None, "a house on a hill")]  # no image is ever read


def test_the_loss_is_the_relative_square_over_corresponding_rows():
    prefixed = torch.tensor([[[9.0], [1.0], [5.0]]], requires_grad=True)
    wanted = torch.tensor([[[2.0], [4.0], [7.0]]], requires_grad=True)
    rows = torch.tensor([[-1, 0, 1]])  # 1 is compared with 2, 5 with 4; 9 with nothing
    loss = text_loss(prefixed, wanted, rows)
    assert loss.tolist() == [pytest.approx((1 + 1) / (4 + 16))]
    loss.sum().backward()
    assert wanted.grad is None and prefixed.grad.flatten().tolist() == pytest.approx([0, 2 * -1 / 20, 2 * 1 / 20])


def test_the_pooled_text_of_sdxl_has_a_ratio_of_its_own():
    wanted = torch.cat([torch.ones(1, 77, 2), torch.full((1, 1, 2), 10.0)], dim=1)
    prefixed = wanted + torch.cat([torch.ones(1, 77, 2), torch.full((1, 1, 2), 5.0)], dim=1)
    assert text_loss(prefixed, wanted, torch.arange(78)[None]).tolist() == [pytest.approx(1 + 0.25)]


def test_ends_padding_and_the_words_of_equal_texts_correspond():
    begin, end, alz, a, b, c = 0, 9, 5, 1, 2, 3
    prefixed = torch.tensor([[begin, alz, a, b, end, end, end, end, end], [begin, alz, a, end, end, end, end, end, end]])
    attributes = torch.tensor([[begin, a, b, end, end, end, end, end, end], [begin, a, b, c, a, b, c, end, end]])
    rows = corresponding_rows(prefixed, attributes, torch.tensor([True, False]), num_vectors=3, height=10)
    assert rows[0].tolist() == [-1, -1, -1, -1, 1, 2, 3, 7, 8, 9]        # the vectors at 1 to 3, the words, the end at 6, padding, pooled
    assert rows[1].tolist() == [-1, -1, -1, -1, -1, 7, -1, -1, 8, 9]     # the end at 5; c2 is longer


def learned(model, fabric, steps):
    """A prefix after some steps, and the loss of each."""
    prefix = build_prefix(model, num_vectors=3, init="vocab")
    data = TrainingSet(model, PEOPLE, CAPTIONS, ["{}", "a photo of {}"], Mixture(0, 2, 2, 2, 1, 0.5))
    optimizer = torch.optim.Adam(prefix.embedding_parameters(), lr=0.05)
    sums = [text_step(fabric, model, prefix, optimizer, batch)
            for batch in text_batches(model, prefix, data, Share(8, 1), first_step=0, iterations=steps)]
    return prefix, [(loss[:2].sum() / loss[2:].sum()).item() for loss in sums]


def distances(model, prefix):
    """Mean loss of the people to c2, and of the captions to themselves."""
    texts, embedder = Texts(model, prefix), model.cond_stage_model

    def mean(texts_prefixed, wanted, same):
        ids, attribute_ids = texts.token_ids(texts_prefixed), embedder.tokenize(wanted)
        rows = corresponding_rows(ids, attribute_ids, torch.full((2,), same), prefix.num_vectors, embedder.context_shape[0])
        context = model.get_learned_conditioning(with_prefix(texts_prefixed, prefix), prefix)
        return text_loss(context, texts.contexts(wanted), rows).mean().item()

    captions = [caption.caption for caption in CAPTIONS]
    with torch.no_grad():
        return mean([one.name for one in PEOPLE], [one.attributes for one in PEOPLE], False), mean(captions, captions, True)


@pytest.mark.parametrize("kind", ["tiny_model", "tiny_xl_model"])
def test_names_move_to_their_attributes_and_captions_to_themselves(kind, request, tmp_path):
    model, fabric = request.getfixturevalue(kind), launch("cpu", 8)
    (start, _), (prefix, losses) = learned(model, fabric, 0), learned(model, fabric, 25)
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    before, after = distances(model, start), distances(model, prefix)
    assert after[0] < before[0] and after[1] < before[1]

    prefix.save(tmp_path / "apl-text.safetensors" if kind == "tiny_xl_model" else tmp_path / "apl-text.pt")
    [file] = tmp_path.iterdir()
    loaded = manager_of_file(model.cond_stage_model, file)
    for own, other in zip(prefix.embedding_parameters(), loaded.embedding_parameters(), strict=True):
        assert torch.equal(own, other)
