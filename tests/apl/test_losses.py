"""The paper's objective (Eq. 5 to 7), and what the released code makes of alpha."""

import pytest
import torch

from ldm.apl.losses import anonymized_target, apl_loss


def predictions(count=3):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, 2, 2, generator=generator).requires_grad_() for _ in range(count)]


def released_loss(eps_prefixed, eps_attributes, alpha=1.0):
    """Objective of the released code: c1 is predicted *with* the prefix."""
    return apl_loss(eps_prefixed, eps_prefixed.detach(), eps_attributes, alpha)


def gradient(loss, of):
    return torch.autograd.grad(loss, of)[0]


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, 3.0), (1.0, 5.0), (2.0, 7.0)])
def test_target_goes_from_name_through_attributes(alpha, expected):
    eps_name, eps_attributes = torch.full((1, 4, 2, 2), 1.0), torch.full((1, 4, 2, 2), 3.0)
    assert torch.equal(anonymized_target(eps_name, eps_attributes, alpha), torch.full_like(eps_name, expected))


def test_the_loss_is_the_mean_square_to_the_target():
    one = torch.ones(1, 4, 2, 2)
    assert apl_loss(7 * one, 1 * one, 3 * one, alpha=1.0).item() == 4.0  # target 5
    assert released_loss(7 * one, 3 * one, alpha=1.0).item() == 64.0  # target 3 + (3 - 7) = -1


def test_gradient_reaches_only_the_prefixed_prediction():
    eps_prefixed, eps_name, eps_attributes = predictions()
    (apl_loss(eps_prefixed, eps_name, eps_attributes) + released_loss(eps_prefixed, eps_attributes)).backward()
    assert eps_prefixed.grad is not None and eps_name.grad is None and eps_attributes.grad is None


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
def test_regularization_is_the_same_for_every_alpha(alpha):
    eps_prefixed, eps_plain, _ = predictions()
    assert torch.allclose(apl_loss(eps_prefixed, eps_plain, eps_plain, alpha),
                          torch.nn.functional.mse_loss(eps_prefixed, eps_plain))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_alpha_scales_the_released_gradient_and_nothing_else(alpha):
    eps_prefixed, _, eps_attributes = predictions()
    at_zero = gradient(released_loss(eps_prefixed, eps_attributes, 0.0), eps_prefixed)
    at_alpha = gradient(released_loss(eps_prefixed, eps_attributes, alpha), eps_prefixed)
    assert torch.allclose(at_alpha, (1 + alpha) * at_zero, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_alpha_turns_the_gradient_of_the_paper(alpha):
    eps_prefixed, eps_name, eps_attributes = predictions()
    at_zero = gradient(apl_loss(eps_prefixed, eps_name, eps_attributes, 0.0), eps_prefixed)
    at_alpha = gradient(apl_loss(eps_prefixed, eps_name, eps_attributes, alpha), eps_prefixed)
    assert torch.nn.functional.cosine_similarity(at_alpha.flatten(), at_zero.flatten(), dim=0) < 0.98
    assert not torch.allclose(at_alpha, (1 + alpha) * at_zero, rtol=0.1)


def test_both_objectives_agree_at_alpha_zero():
    eps_prefixed, eps_name, eps_attributes = predictions()
    assert torch.equal(apl_loss(eps_prefixed, eps_name, eps_attributes, 0.0),
                       released_loss(eps_prefixed, eps_attributes, 0.0))


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_a_batching_mistake_is_refused(wrong):
    given = predictions()
    given[wrong] = given[wrong][:1]
    with pytest.raises(ValueError, match="predict both from the same noisy_latent"):
        apl_loss(*given)
