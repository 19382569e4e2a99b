"""The fast path (fast_step, look_ahead) computes the losses and the gradient of the definition in step.py."""

import dataclasses

import pytest
import torch

from ldm.apl.examples import Texts, TrainingSet
from ldm.apl.fast_step import training_step
from ldm.apl.look_ahead import LookAhead, Share
from ldm.apl.prefix import build_prefix
from ldm.apl.step import training_loss
from ldm.data.frozen import sample_latent
from ldm.data.mixture import Mixture, normal

METHODS = ("apl", "apl-released", "apl-no-reg")
TEMPLATES = ["{}", "a photo of {}"]


def definition(model, prefix, data, numbers, **options):
    """Loss of each sample (B,), gradient (m, d), and which samples are from S_ID, by `training_loss`."""
    samples = data.samples(numbers)
    drawn = [data.mixture.sample(i) for i in samples.numbers]
    data.encode(samples.numbers)
    latent = torch.stack([sample_latent(model, data._moments[one.is_identity, one.item], one.posterior_seed) for one in drawn])
    noise = torch.stack([normal(one.noise_seed, latent.shape[1:]) for one in drawn])
    losses = training_loss(model, prefix, latent, noise, torch.tensor(samples.timesteps), samples.name_prompts, samples.attribute_prompts,
                           **options)
    (gradient,) = torch.autograd.grad(losses.mean(), list(prefix.embedding_parameters()))
    return losses.detach(), gradient, torch.tensor([one.is_identity for one in drawn])


def fast_path(fabric, model, prefix, data, share, *, train_method, **options):
    """Sums of losses and gradient of each of `share.steps` steps that are made on frozen predictions computed together."""
    optimizer = torch.optim.SGD(prefix.embedding_parameters(), lr=0.0)
    batches = LookAhead(model, data, Texts(model, prefix), share, first_step=0, iterations=share.steps,
                        with_names=train_method != "apl-released")
    for batch in batches:
        sums = training_step(fabric, model, prefix, optimizer, batch, train_method=train_method, **options)
        yield sums, next(prefix.embedding_parameters()).grad.clone()


@pytest.mark.parametrize("train_method", METHODS)
@pytest.mark.parametrize("mix", [1.0, 0.0, 0.5], ids=["S_ID", "S_Reg", "both"])
@pytest.mark.parametrize(("alpha", "batch_size", "grad_accum"), [(1.0, 1, 1), (0.0, 4, 1), (2.5, 4, 2)])
def test_the_fast_path_equals_the_definition(fabric, tiny_model, pictures, train_method, mix, alpha, batch_size, grad_accum):
    prefix = build_prefix(tiny_model, num_vectors=2, init="vocab")
    data = TrainingSet(tiny_model, *pictures, TEMPLATES, Mixture(0, 2, 2, 2, 50, mix))
    share = Share(batch_size, steps=2)
    steps = fast_path(fabric, tiny_model, prefix, data, share, train_method=train_method, alpha=alpha, grad_accum=grad_accum)
    for step, (sums, gradient) in enumerate(steps):
        losses, expected, is_identity = definition(tiny_model, prefix, data, share.numbers(step), alpha=alpha, train_method=train_method)
        assert expected.norm() > 0 and (gradient - expected).norm() < 1e-4 * expected.norm()
        parts = losses[is_identity], losses[~is_identity]
        torch.testing.assert_close(sums, torch.tensor([float(part.sum()) for part in parts] + [float(len(part)) for part in parts]),
                                   rtol=1e-4, atol=1e-6)
    assert step == 1


def test_the_definition_makes_three_predictions_and_only_the_prefix_receives_a_gradient(tiny_model, pictures, monkeypatch):
    calls, predict = [], tiny_model.apply_model
    monkeypatch.setattr(tiny_model, "apply_model", lambda x, t, c: calls.append(torch.is_grad_enabled()) or predict(x, t, c))
    prefix = build_prefix(tiny_model, num_vectors=2, init="vocab")
    data = TrainingSet(tiny_model, *pictures, TEMPLATES, Mixture(0, 2, 2, 2, 50, 1.0))
    definition(tiny_model, prefix, data, range(2))
    assert calls == [True, False, False] and all(parameter.grad is None for parameter in tiny_model.parameters())


def test_each_training_method_has_its_own_definition(tiny_model, pictures):
    prefix = build_prefix(tiny_model, num_vectors=2, init="vocab")
    data = TrainingSet(tiny_model, *pictures, TEMPLATES, dataclasses.replace(Mixture(0, 2, 2, 2, 50), mix=1.0))
    paper, released, without = (definition(tiny_model, prefix, data, range(2), train_method=method)[1] for method in METHODS)
    assert torch.equal(paper, without) and torch.cosine_similarity(paper.flatten(), released.flatten(), dim=0) < 0.999
