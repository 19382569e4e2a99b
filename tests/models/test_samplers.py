"""The samplers on a model whose noise prediction is known exactly, and their public options."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from ldm.models.diffusion.ddim import DDIMSampler, guided_eps, sampling_timesteps
from ldm.models.diffusion.dpm_solver import DPMSolverSampler
from ldm.models.diffusion.plms import PLMSSampler
from ldm.util import UserError

SPREAD = 0.5  # standard deviation of the latents of `GaussianModel`
CONTEXT = torch.zeros(2, 77, 8)


class GaussianModel:
    """Latents are N(0, SPREAD^2): eps = sqrt(1 - a) x / (a SPREAD^2 + 1 - a), and deterministic paths are known."""

    num_timesteps, device = 1000, torch.device("cpu")
    alphas_cumprod = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double().square()).cumprod(0)

    def alpha(self, t):
        below = t.floor().long()
        log = self.alphas_cumprod.log()
        return (log[below] + (t - below) * (log[(below + 1).clamp(max=999)] - log[below])).exp()

    def apply_model(self, x, t, context):
        alpha = self.alpha(t.double())[:, None, None, None]
        return ((1 - alpha).sqrt() * x / (alpha * SPREAD**2 + 1 - alpha)).to(x.dtype)

    def q_sample(self, x_start, t, noise):
        alpha = self.alphas_cumprod[t][:, None, None, None].to(x_start.dtype)
        return alpha.sqrt() * x_start + (1 - alpha).sqrt() * noise

    def path(self, x, start, end):
        """Where the deterministic path from x at timestep `start` is at timestep `end`."""
        spread = [self.alphas_cumprod[t] * SPREAD**2 + 1 - self.alphas_cumprod[t] for t in (start, end)]
        return x * (spread[1] / spread[0]).sqrt()


def error(sampler_class, steps):
    """Relative error at the end of the deterministic path from x_T."""
    model, x = GaussianModel(), torch.randn(2, 4, 8, 8, dtype=torch.float64)
    end, _ = sampler_class(model).sample(steps, 2, (4, 8, 8), CONTEXT, x_T=x, verbose=False)
    start = 999 if sampler_class is DPMSolverSampler else int(sampling_timesteps("uniform", steps, 1000)[-1])
    return ((end - model.path(x, start, 0)).norm() / end.norm()).item()


def test_twenty_steps_are_those_of_the_public_code():
    assert sampling_timesteps("uniform", 20, 1000).tolist() == list(range(1, 1000, 50))


@pytest.mark.parametrize("method", ["uniform", "quad"])
def test_timesteps_stay_within_the_schedule(method):
    for steps in range(1, 1001):
        timesteps = sampling_timesteps(method, steps, 1000)
        assert timesteps[0] == 1 and timesteps[-1] <= 999 and len(timesteps) >= min(steps, 999)


@pytest.mark.parametrize("steps", [0, 1001])
def test_number_of_steps_outside_the_schedule_is_refused(steps):
    with pytest.raises(UserError, match=f"{steps} sampling steps were asked for; give 1 to 1000"):
        sampling_timesteps("uniform", steps, 1000)


def test_samplers_follow_the_known_path_in_their_order():
    assert 1.5 < error(DDIMSampler, 50) / error(DDIMSampler, 100) < 2.5  # first order: half the step, half the error
    assert 3.0 < error(DPMSolverSampler, 200) / error(DPMSolverSampler, 400) < 5.0  # second order: a quarter
    assert error(DPMSolverSampler, 400) < 0.002 and error(PLMSSampler, 20) < error(DDIMSampler, 20) / 4


@pytest.mark.parametrize("steps", [9, 27])  # below 15 the last step is of first order
def test_dpm_solver_equals_diffusers(steps):
    model, x = GaussianModel(), torch.randn(2, 4, 8, 8, dtype=torch.float64)
    ours, _ = DPMSolverSampler(model).sample(steps, 2, (4, 8, 8), CONTEXT, x_T=x, verbose=False)
    scheduler = DPMSolverMultistepScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                            final_sigmas_type="sigma_min")
    scheduler.set_timesteps(timesteps=list(range(999, 0, -(999 // steps))))
    for t in scheduler.timesteps:
        x = scheduler.step(model.apply_model(x, t.expand(2), CONTEXT), t, x).prev_sample
    assert torch.allclose(ours, x, rtol=1e-4)


def test_eta_one_draws_latents_of_the_right_spread():
    end, _ = DDIMSampler(GaussianModel()).sample(500, 2, (4, 64, 64), CONTEXT, eta=1.0, verbose=False,
                                                 generator=torch.Generator().manual_seed(0))
    assert end.std().item() == pytest.approx(SPREAD, rel=0.05)


def test_guidance_goes_from_unconditional_through_conditional():
    class Echo:
        def apply_model(self, x, t, context):
            return context.mean((1, 2))[:, None, None, None].expand_as(x)

    x, t, context = torch.zeros(2, 4, 2, 2), torch.zeros(2, dtype=torch.int64), torch.full((2, 77, 8), 3.0)
    unconditional = torch.ones(1, 77, 8)
    assert torch.equal(guided_eps(Echo(), x, t, context, 2.0, unconditional), torch.full_like(x, 5.0))
    assert torch.equal(guided_eps(Echo(), x, t, context, 1.0, unconditional), torch.full_like(x, 3.0))
    assert torch.equal(guided_eps(Echo(), x, t, context), torch.full_like(x, 3.0))


def test_image_to_image_continues_where_sampling_was():
    sampler = DDIMSampler(GaussianModel())
    sampler.make_schedule(10, verbose=False)
    latent, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    noisy = sampler.stochastic_encode(latent, torch.tensor([6, 6]), noise=noise)
    assert torch.allclose(noisy, sampler.model.q_sample(latent, torch.tensor([601, 601]), noise))
    by_hand = noisy
    for index in reversed(range(6)):
        t = torch.full((2,), int(sampler.ddim_timesteps[index]))
        by_hand, _ = sampler.p_sample_ddim(by_hand, CONTEXT, t, index, False, False, False, 1.0, 0.0, None, None, 1.0, None)
    assert torch.equal(sampler.decode(noisy, CONTEXT, 6, verbose=False), by_hand)


def test_image_to_image_on_the_original_steps():
    sampler = DDIMSampler(GaussianModel())
    sampler.make_schedule(10, verbose=False)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    end = sampler.decode(x, CONTEXT, 300, use_original_steps=True, verbose=False)
    assert torch.allclose(end, sampler.model.path(x, 299, 0), rtol=0.01)


def test_mask_keeps_the_given_latent():
    latent, mask = torch.full((2, 4, 8, 8), 5.0), torch.zeros(2, 1, 8, 8)
    mask[..., :4] = 1.0
    seen = []
    DDIMSampler(GaussianModel()).sample(20, 2, (4, 8, 8), CONTEXT, mask=mask, x0=latent, verbose=False,
                                        img_callback=lambda pred_x0, i: seen.append(pred_x0))
    assert seen[-1][..., :4].mean() > 10 * seen[-1][..., 4:].abs().mean()


def test_callbacks_and_intermediates_come_at_their_steps():
    steps = []
    _, intermediates = DDIMSampler(GaussianModel()).sample(10, 2, (4, 2, 2), CONTEXT, callback=steps.append, log_every_t=5,
                                                           verbose=False)
    assert steps == list(range(10)) and len(intermediates["x_inter"]) == 1 + 3  # start, indices 9, 5 and 0


def test_score_corrector_replaces_the_prediction():
    class Nothing:
        def modify_score(self, model, eps, x, t, context, factor):
            return factor * eps

    x = torch.randn(2, 4, 2, 2)
    end, _ = DDIMSampler(GaussianModel()).sample(5, 2, (4, 2, 2), CONTEXT, x_T=x, score_corrector=Nothing(),
                                                 corrector_kwargs={"factor": 0.0}, verbose=False)
    alphas_cumprod = GaussianModel.alphas_cumprod
    assert torch.allclose(end, x * (alphas_cumprod[0] / alphas_cumprod[801]).sqrt().float())


@pytest.mark.parametrize(("sampler_class", "arguments", "sentence"), [
    (PLMSSampler, {"eta": 0.5}, "PLMS was asked for eta = 0.5"),
    (DPMSolverSampler, {"eta": 0.5}, "DPM-Solver was asked for eta > 0"),
    (DDIMSampler, {"quantize_x0": True}, "no codebook"),
    (DDIMSampler, {"conditioning": CONTEXT[:1]}, "1 contexts were given for a batch of 2"),
])
def test_what_a_sampler_cannot_do_is_refused(sampler_class, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        sampler_class(GaussianModel()).sample(**{"S": 5, "batch_size": 2, "shape": (4, 2, 2), "conditioning": CONTEXT,
                                                 "verbose": False, **arguments})
