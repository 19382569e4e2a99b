"""Training against a block behind the prefix: the block is where it belongs, brings the name back, and the step is the definition's."""

from functools import partial

import pytest
import torch

from ldm.apl.examples import Texts
from ldm.apl.fast_step import training_step
from ldm.apl.look_ahead import LookAhead, Share
from ldm.apl.prefix import build_prefix
from ldm.apl.robust import Attacked, attack_loss, attacked_context, find_block, first_block, project, token_table
from ldm.data.mixture import Mixture
from tests.apl.test_step import definition
from tests.apl.test_trainer import Killed, train, training_set


def inner(model, prefix):
    """The attack of a training."""
    return lambda step: partial(attacked_context, model, prefix, vectors=2, steps=2, radius=0.02)


ROBUST = {"train_method": "apl-robust", "attack": inner}


@pytest.fixture
def prefix(tiny_model):
    return build_prefix(tiny_model, num_vectors=3, init="vocab")


def first_batch(model, pictures, prefix, *, mix=1.0, size=8):
    """The training set, and the batch of its first `size` samples."""
    data = training_set(model, pictures, mix)
    return data, next(iter(LookAhead(model, data, Texts(model, prefix), Share(size, 1), first_step=0, iterations=1)))


def attacked_rows(batch):
    return torch.nonzero(batch.attack_seed >= 0)[:, 0]


@pytest.mark.parametrize(("vector", "radius", "expected"), [
    ([3.0, 4.0], 1.0, [0.6, 0.8]),      # from the row (0, 0), 5 away, to the sphere around it
    ([0.3, 0.4], 1.0, [0.3, 0.4]),      # inside
    ([8.0, 10.0], 0.5, [9.5, 10.0]),    # 2 from the row (10, 10)
    ([3.0, 4.0], 0.0, [0.0, 0.0]), ([0.0, 0.0], 0.0, [0.0, 0.0]), ([3.0, 4.0], None, [3.0, 4.0])])
def test_a_vector_goes_to_the_ball_around_the_nearest_token(vector, radius, expected):
    table = torch.tensor([[0.0, 0.0], [10.0, 10.0]])
    block = torch.tensor([[vector, [10.0, 10.0]]])  # (1, 2, 2)
    torch.testing.assert_close(project(block, table, radius), torch.tensor([[expected, [10.0, 10.0]]]))


@pytest.mark.parametrize("words", ["", "black", "red chair car"])
@pytest.mark.parametrize("prompt", ["Ada Stone", "a photo of Ben Wood " * 30])
def test_a_block_of_the_embeddings_of_words_is_those_words_in_front_of_the_prompt(tiny_model, prefix, words, prompt):
    embedder = tiny_model.cond_stage_model
    block = token_table(tiny_model)[embedder.tokenizer(words, add_special_tokens=False)["input_ids"]][None]  # (1, k, d)
    behind = tiny_model.get_learned_conditioning([f"alz {prompt}"], Attacked(prefix, block))
    torch.testing.assert_close(behind, tiny_model.get_learned_conditioning([f"alz {words} {prompt}"], prefix))


def test_half_of_s_id_is_attacked_and_nothing_of_s_reg():
    samples = [Mixture(0, 9, 9, 2).sample(number) for number in range(2000)]
    attacked = [sample for sample in samples if sample.attack_seed >= 0]
    assert all(sample.is_identity for sample in attacked)
    assert 0.45 < len(attacked) / sum(sample.is_identity for sample in samples) < 0.55


@pytest.mark.parametrize("radius", [None, 0.05])
def test_the_inner_steps_bring_the_prediction_nearer_to_that_of_the_name(tiny_model, pictures, prefix, radius):
    _, batch = first_batch(tiny_model, pictures, prefix)
    batch = batch.rows(attacked_rows(batch))
    first, losses = first_block(batch, token_table(tiny_model), 2), []
    for steps in (0, 20):
        block = find_block(tiny_model, prefix, batch, first, steps=steps, radius=radius)
        context = tiny_model.cond_stage_model.context(batch.token_ids, Attacked(prefix, block))
        losses.append(attack_loss(tiny_model.apply_model(batch.noisy_latent, batch.timestep, context), batch.eps_name).item())
    assert losses[1] < 0.9 * losses[0]


def test_without_a_radius_a_block_is_free_and_with_radius_0_it_consists_of_tokens(tiny_model, pictures, prefix):
    _, batch = first_batch(tiny_model, pictures, prefix)
    table = token_table(tiny_model)
    for radius, distance in ((None, 1e-3), (0.0, 0.0)):
        block = find_block(tiny_model, prefix, batch, first_block(batch, table, 2), steps=3, radius=radius)
        away = (block.flatten(0, 1)[:, None] - table[None]).norm(dim=-1).amin(1)
        assert (away > distance).all() if radius is None else (away == 0).all()


@pytest.mark.parametrize("grad_accum", [1, 3])
def test_the_step_is_the_definition_with_the_found_blocks(fabric, tiny_model, pictures, prefix, grad_accum):
    data, batch = first_batch(tiny_model, pictures, prefix, mix=0.5)
    rows, table = attacked_rows(batch), token_table(tiny_model)
    block = find_block(tiny_model, prefix, batch.rows(rows), first_block(batch.rows(rows), table, 2), steps=2, radius=0.02)
    attacked = partial(attacked_context, tiny_model, prefix, vectors=2, steps=2, radius=0.02)
    sums = training_step(fabric, tiny_model, prefix, torch.optim.SGD(prefix.embedding_parameters(), lr=0.0), batch,
                         attacked=attacked, grad_accum=grad_accum)
    (vectors,) = prefix.embedding_parameters()

    numbers = data.samples(range(8)).numbers
    clean = [number for row, number in enumerate(numbers) if row not in rows.tolist()]
    hit = [numbers[row] for row in rows.tolist()]
    assert clean and hit
    clean_losses, clean_gradient, _ = definition(tiny_model, prefix, data, clean)
    losses, gradient, are_identity = definition(tiny_model, prefix, data, hit, train_method="apl-robust", block=block)
    assert are_identity.all()
    expected = (len(clean) * clean_gradient + len(hit) * gradient) / 8
    assert (vectors.grad - expected).norm() < 1e-4 * expected.norm()
    torch.testing.assert_close(sums[:2].sum(), clean_losses.sum() + losses.sum(), rtol=1e-4, atol=1e-6)
    assert (gradient - definition(tiny_model, prefix, data, hit)[1]).norm() > 1e-2 * gradient.norm()  # the block matters


def test_without_identities_nothing_is_attacked_and_the_training_is_apl(fabric, tiny_model, pictures, tmp_path):
    robust, plain = (train(fabric, tiny_model, pictures, tmp_path / str(number), mix=0.0, **changes)
                     for number, changes in enumerate((ROBUST, {})))
    assert torch.equal(*(next(prefix.embedding_parameters()) for prefix in (robust, plain)))


def test_a_killed_run_ends_with_the_same_bytes(fabric, tiny_model, pictures, tmp_path):
    train(fabric, tiny_model, pictures, tmp_path / "whole", **ROBUST)
    with pytest.raises(Killed):
        train(fabric, tiny_model, pictures, tmp_path / "killed", kill_after=3, **ROBUST)
    train(fabric, tiny_model, pictures, tmp_path / "killed", **ROBUST)
    for name in ("3.pt", "6.pt", "log.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    train(fabric, tiny_model, pictures, tmp_path / "plain")
    assert (tmp_path / "plain" / "6.pt").read_bytes() != (tmp_path / "whole" / "6.pt").read_bytes()
