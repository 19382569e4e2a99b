"""train.py --dry_run: what is missing and where it comes from, and counts that can be checked in the head."""

import functools
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import train
from args.train_args import parse_train_args, train_inputs
from ldm.apl.dry_run import Work, _work, cost_of, duration, flop_counter, where_from
from ldm.cpu_bf16 import attention
from tests.conftest import TINY
from tests.refusals import refusal

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tiny_cost(tmp_path_factory):
    """What the tiny model takes: tiny_cost(**arguments of cost_of), counted once."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.yaml"
    path.write_text(yaml.safe_dump({"model": TINY}))
    return functools.cache(lambda **given: cost_of(path, **given))


def test_the_public_preset_names_every_missing_file_and_its_origin(capsys):
    said = refusal(capsys, train.main, ["--preset", "sd-v1-5", "--config_path", "absent.yaml", "--dry_run"])
    assert "of the 9 files and folders above are missing" in said


def test_every_input_of_the_public_presets_has_an_origin():
    for preset in ("sd-v1-5", "sd-v1-4", "realistic-vision-v5-1"):
        inputs = train_inputs(parse_train_args(["--preset", preset, "--dry_run"]))
        assert [str(given.path) for given in inputs if given.flaw and not where_from(given.path)] == []


def test_a_product_of_two_matrices_takes_what_it_takes():
    from torch._subclasses.fake_tensor import FakeTensorMode
    with FakeTensorMode():
        left, right = torch.ones(4, 8), torch.ones(8, 2)
        work = _work(lambda: (left @ right).sum(), 2, nn.Identity())
    assert work == Work(flops=2 * 4 * 8 * 2 / 2, peak=4 * (4 * 2 + 1))


@pytest.mark.parametrize(("dtype", "backend"), [
    (torch.float32, SDPBackend.MATH), (torch.float32, SDPBackend.FLASH_ATTENTION), (torch.bfloat16, SDPBackend.MATH)])
def test_attention_takes_two_products_and_its_gradient_four_whichever_kernel_computes_it(dtype, backend):
    query, key, value = (torch.ones(2, 3, rows, 16, dtype=dtype, requires_grad=True) for rows in (5, 7, 7))
    with flop_counter() as flops, sdpa_kernel(backend):
        attention(query, key, value).sum().backward()
    assert flops.get_total_flops() == (2 + 4) * 2 * (2 * 3 * 5 * 16 * 7)


def test_what_the_fake_model_counts_the_real_one_does(tiny_model, tiny_cost):
    cost = tiny_cost(batch_size=2, precision="fp32")
    with torch.no_grad(), flop_counter() as flops:
        tiny_model.apply_model(torch.zeros(3, 4, 4, 4), torch.zeros(3, dtype=torch.int64), torch.zeros(3, 77, 32))
    assert cost.frozen.flops == flops.get_total_flops() / 3
    assert cost.weights == sum(4 * weight.numel() for weight in tiny_model.parameters())
    assert 1.5 < cost.step.flops / cost.frozen.flops < 3  # a gradient of activations, none of weights


def test_half_the_precision_takes_half_the_memory_of_the_unet(tiny_cost):
    fp32, bf16 = (tiny_cost(batch_size=2, precision=precision) for precision in ("fp32", "bf16"))
    assert 0.4 < bf16.frozen.peak / fp32.frozen.peak < 0.75 and bf16.encode == fp32.encode


def test_stable_diffusion_trains_in_5_gb_and_draws_16_pictures_in_10():
    config = ROOT / "configs" / "stable-diffusion" / "v1-inference.yaml"
    cost = cost_of(config, batch_size=1, precision="bf16")
    assert cost.peak < 5e9 and cost.weights + max(cost.frozen.peak, cost.decode.peak) < 10e9
    assert abs(cost.frozen.flops - 0.803e12) < 1e9


def test_checkpointing_and_fewer_samples_ahead_take_less_memory(tiny_cost):
    plain, spare = (tiny_cost(batch_size=8, precision="fp32", samples_ahead=ahead, checkpointing=checkpointing)
                    for ahead, checkpointing in ((64, False), (16, True)))
    assert spare.step.peak < 0.5 * plain.step.peak and spare.frozen.peak < 0.4 * plain.frozen.peak


def test_steps_and_pictures_are_sums_of_calls(tiny_cost):
    cost = tiny_cost(batch_size=2, precision="fp32")
    assert cost.training_flops(10, names=0.5) == 10 * (1.5 * cost.frozen.flops + cost.step.flops)
    assert cost.sampling_flops(3, ddim_steps=5) == 3 * (10 * cost.frozen.flops + cost.decode.flops)


def test_durations_are_read_at_a_glance():
    assert [duration(seconds) for seconds in (40, 720, 12_600)] == ["40 s", "12 min", "3.5 h"]
