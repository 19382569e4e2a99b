"""The same step, faster or in less memory: bfloat16, parts, checkpointing, recording; and no waiting for the device."""

import functools
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.apl import acceleration
from ldm.apl.acceleration import RecordedStep, accelerate, compile_blocks
from ldm.apl.dry_run import LiveBytes
from ldm.apl.examples import Texts, TrainingSet
from ldm.apl.fast_step import training_step
from ldm.apl.launch import set_precision
from ldm.apl.look_ahead import LookAhead, Share
from ldm.apl.prefix import build_prefix
from ldm.cpu_bf16 import NarrowCrossAttention, SmallGroupNorm, attention, use_fast_bf16
from ldm.modules.attention import CrossAttention
from tests.apl.test_trainer import prepared, train, training_set
from tests.conftest import TINY, random_model

ROOT = Path(__file__).resolve().parents[2]


def gradient_and_losses(fabric, model, pictures, *, batch_size=4, **changes):
    """Gradient of the prefix, and the sums that the step returns, of one step from a fixed prefix."""
    prefix = build_prefix(model, num_vectors=2, init="vocab")
    share = Share(batch_size, 1)
    batch = next(iter(LookAhead(model, training_set(model, pictures), Texts(model, prefix), share, first_step=0, iterations=1)))
    optimizer = torch.optim.SGD(prefix.embedding_parameters(), lr=0.0)
    losses = training_step(fabric, model, prefix, optimizer, batch, **changes)
    return next(prefix.embedding_parameters()).grad.clone(), losses


@pytest.mark.parametrize("grad_accum", [2, 3, 8])
def test_parts_of_a_step_add_up_to_its_gradient(fabric, tiny_model, pictures, grad_accum):
    whole, losses = gradient_and_losses(fabric, tiny_model, pictures)
    parts, same_losses = gradient_and_losses(fabric, tiny_model, pictures, grad_accum=grad_accum)
    assert (parts - whole).norm() < 1e-4 * whole.norm()
    torch.testing.assert_close(same_losses, losses)


def test_checkpointing_gives_the_same_gradient_in_less_memory(fabric, tiny_model, pictures):
    results = {}
    for checkpointing in (False, True):
        accelerate(tiny_model, checkpointing=checkpointing, compile=False, cuda_graphs=False, batch_size=4, world_size=1)
        with LiveBytes(tiny_model) as live:
            gradient, _ = gradient_and_losses(fabric, tiny_model, pictures)
        results[checkpointing] = gradient, live.peak
    tiny_model.model.diffusion_model.checkpointing = False
    assert torch.equal(results[True][0], results[False][0])
    assert results[True][1] < 0.8 * results[False][1]


@pytest.fixture(scope="module")
def mini_step(fabric):
    """Gradient and losses of a step of 16 samples on the shipped miniature: mini_step(precision, prefix file or None)."""
    def step(precision, prefix_file):
        init = "vocab" if prefix_file is None else str(ROOT / prefix_file)
        options, run = prepared("--preset", "mini", "--batch_size", "16", "--init", init)
        model = options.files.load()
        set_precision(model, precision)
        prefix = build_prefix(model, num_vectors=10, init=options.init)
        data = TrainingSet(model, run.identities, run.captions, run.templates, run.mixture)
        batch = next(iter(LookAhead(model, data, Texts(model, prefix), Share(16, 1), first_step=0, iterations=1)))
        losses = training_step(fabric, model, prefix, torch.optim.SGD(prefix.embedding_parameters(), lr=0.0), batch)
        return next(prefix.embedding_parameters()).grad, losses
    return step


@pytest.mark.weights
@pytest.mark.parametrize(("prefix_file", "least"), [(None, 0.999), ("embeddings/apl-mini.pt", 0.99)])
def test_bfloat16_has_the_gradient_and_the_loss_of_float32(mini_step, prefix_file, least):
    """At the end of a training the samples' gradients cancel each other, and what is left is nearer to the rounding."""
    (gradient, losses), (exact_gradient, exact_losses) = (mini_step(precision, prefix_file) for precision in ("bf16", "fp32"))
    assert F.cosine_similarity(gradient.flatten(), exact_gradient.flatten(), dim=0) >= least
    torch.testing.assert_close(losses[:2].sum(), exact_losses[:2].sum(), rtol=0.01, atol=0)


def test_the_host_never_waits_for_the_device_in_a_step(fabric, tiny_model, pictures):
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert function not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), function
            return function(*args, **(kwargs or {}))

    prefix = build_prefix(tiny_model, num_vectors=2, init="vocab")
    share = Share(4, 1)
    batch = next(iter(LookAhead(tiny_model, training_set(tiny_model, pictures), Texts(tiny_model, prefix), share, first_step=0,
                                iterations=1)))
    optimizer = torch.optim.SGD(prefix.embedding_parameters(), lr=0.1)
    with pytest.raises(AssertionError), Watch():
        torch.ones(1).item()
    with Watch():
        training_step(fabric, tiny_model, prefix, optimizer, batch)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_recorded_step_learns_the_same_prefix(fabric, tiny_model, pictures, tmp_path, decay):
    """With a stand-in for the recording, which runs the step as a graph's warm-up does, and then each time."""
    def run_twice_and_again(run):
        run()
        run()
        return run

    recorded = functools.partial(RecordedStep, record=run_twice_and_again)
    plain, replayed = (train(fabric, tiny_model, pictures, tmp_path / name, recorded=how, lr_decay=decay)
                       for name, how in (("plain", None), ("recorded", recorded)))
    torch.testing.assert_close(next(plain.embedding_parameters()), next(replayed.embedding_parameters()), rtol=0, atol=1e-6)


def test_a_step_that_cannot_be_recorded_is_made_as_it_is(fabric, tiny_model, pictures, tmp_path, capsys):
    def fails(run):
        run()
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    plain, other = (train(fabric, tiny_model, pictures, tmp_path / name, recorded=how)
                    for name, how in (("plain", None), ("failed", functools.partial(RecordedStep, record=fails))))
    torch.testing.assert_close(next(plain.embedding_parameters()), next(other.embedding_parameters()), rtol=0, atol=1e-6)
    said = capsys.readouterr().err
    assert "cannot be recorded (operation not permitted when stream is capturing)" in said and "and more" not in said


@pytest.mark.parametrize(("device", "batch_size", "world_size", "reason"), [
    ("cpu", 1, 1, "needs a GPU"), ("cuda", 1, 2, "exchange their gradients"), ("cuda", 8, 1, "up to 4 samples"), ("cuda", 4, 1, "")])
def test_steps_are_recorded_only_where_that_pays(capsys, device, batch_size, world_size, reason):
    possible = acceleration.graphs_are_possible(torch.device(device), batch_size=batch_size, world_size=world_size)
    warning = capsys.readouterr().err
    assert possible == (not reason) and reason in warning and warning.count("\n") == bool(reason)


def test_without_a_compiler_there_is_one_line_of_warning(tiny_model, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("no C compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", broken)
    compile_blocks(tiny_model)
    assert capsys.readouterr().err == "warning: --compile has no effect, because torch.compile fails here (no C compiler)\n"


@pytest.mark.parametrize("channels", [8, 64])
def test_narrow_heads_in_bfloat16_keep_the_bits_and_get_the_gradient_of_float32(channels):
    q, k, v = (torch.randn(2, 50, 4, channels, dtype=torch.bfloat16).transpose(1, 2).requires_grad_() for _ in range(3))
    out, weight = attention(q, k, v), torch.randn(2, 4, 50, channels)
    assert torch.equal(out, F.scaled_dot_product_attention(q, k, v))
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    for ours, theirs in zip(*(torch.autograd.grad(one, (q, k, v), weight.to(one.dtype)) for one in (out, exact)), strict=True):
        assert (ours - theirs).norm() / theirs.norm() < 0.01


def test_any_other_layout_is_left_to_torch():
    q, k, v = (torch.randn(2, 4, 8, 8, dtype=torch.bfloat16).transpose(2, 3).requires_grad_() for _ in range(3))
    assert torch.equal(attention(q, k, v), F.scaled_dot_product_attention(q, k, v))
    x = torch.randn(2, 8, 32).bfloat16().transpose(1, 2)
    norm = SmallGroupNorm(32, 32).bfloat16()
    assert torch.equal(norm(x), F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps))


@pytest.mark.parametrize("side", [8, 40])
def test_group_normalisation_in_bfloat16_is_torchs(side):
    x = torch.randn(2, 32, side, side).bfloat16().to(memory_format=torch.channels_last).requires_grad_()
    norm = SmallGroupNorm(32, 32).bfloat16()
    out, expected = norm(x), F.group_norm(x.float(), norm.num_groups, norm.weight.float(), norm.bias.float(), norm.eps)
    assert out.is_contiguous(memory_format=torch.channels_last) and not out.is_contiguous()
    torch.testing.assert_close(out.float(), expected, rtol=0.01, atol=0.01)
    weight = torch.randn(out.shape)
    ours, theirs = (torch.autograd.grad(one, x, weight.to(one.dtype))[0].float() for one in (out, expected))
    assert (ours - theirs).norm() / theirs.norm() < 0.01


def test_the_faster_operators_are_off_until_they_are_switched_on():
    unet = random_model(TINY).model.to(torch.bfloat16, memory_format=torch.channels_last)
    inputs = torch.randn(2, 4, 4, 4), torch.tensor([3, 900]), torch.randn(2, 77, 32)
    before, keys = unet(*inputs), list(unet.state_dict())
    kinds = {type(module) for module in unet.modules()}
    assert {nn.GroupNorm, CrossAttention} <= kinds and not {SmallGroupNorm, NarrowCrossAttention} & kinds
    use_fast_bf16(unet)
    kinds = {type(module) for module in unet.modules()}
    assert {SmallGroupNorm, NarrowCrossAttention} <= kinds and not {nn.GroupNorm, CrossAttention} & kinds
    assert list(unet.state_dict()) == keys and (unet(*inputs) - before).norm() < 0.02 * before.norm()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_bfloat16_switches_them_on(precision):
    model = random_model(TINY)
    set_precision(model, precision)
    assert any(isinstance(module, SmallGroupNorm) for module in model.model.modules()) == (precision == "bf16")
    assert not any(isinstance(module, SmallGroupNorm) for module in model.first_stage_model.modules())
