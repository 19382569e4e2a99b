"""The benchmark compares like with like: equal gradients, equal pictures, ratios of pairs; and it writes what it measured."""

import json

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F

from args.benchmark_args import parse_benchmark_args
from args.common import options_of
from ldm.apl.launch import launch
from ldm.apl.prefix import build_prefix
from ldm.benchmark import naive as naive_module
from ldm.benchmark import parts
from ldm.benchmark.__main__ import main
from ldm.benchmark.diffusers_twin import diffusers_images, diffusers_unet, our_images, unet_state
from ldm.benchmark.measure import Implementation, paired, ratios
from ldm.benchmark.naive import REMEDIES, NaiveSteps, released_operators, wastes_of
from ldm.benchmark.ours import OurSteps, as_trained, random_examples, random_model
from ldm.benchmark.parts import Benchmark, BenchmarkOptions, growth_rows
from ldm.benchmark.plot import write_plot
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from tests.conftest import TINY, TINY_XL
from tests.refusals import refusal

KINDS = ("identity", "regularising", "apl-released")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def built():
    return random_model(TINY, seed=0, device=CPU)


@pytest.fixture
def model(built):
    """Without the gradients that naive steps leave behind."""
    yield built
    built.zero_grad(set_to_none=True)


@pytest.fixture
def config_path(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({"model": TINY}))
    return tmp_path / "tiny.yaml"


def gradient(steps, examples):
    """Of the prefix, (m, d), after a step on each example."""
    steps.run(examples)
    return next(steps.prefix.embedding_parameters()).grad


def naive_gradient(model, kind, examples, without=()):
    """Of the naive step with all wastes but those in `without`."""
    return gradient(NaiveSteps(model, build_prefix(model), kind, set(REMEDIES) - set(without)), examples)


@pytest.mark.parametrize("kind", KINDS)
def test_the_naive_step_has_our_gradient(model, kind):
    examples = random_examples(model, 1, regularising=kind == "regularising", seed=3)
    ours = gradient(OurSteps(launch("cpu"), model, build_prefix(model), kind), examples)
    theirs = naive_gradient(model, kind, examples)
    assert ours.norm() > 0 and (ours - theirs).norm() < 1e-4 * ours.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_no_waste_changes_the_gradient(model, kind):
    examples = random_examples(model, 1, regularising=kind == "regularising", seed=4)
    theirs = naive_gradient(model, kind, examples)
    for without in [*([waste] for waste in wastes_of(kind)), wastes_of(kind)]:
        gradient = naive_gradient(model, kind, examples, without)
        assert (gradient - theirs).norm() < 1e-4 * theirs.norm(), without


def test_only_the_waste_itself_computes_gradients_of_the_weights(model):
    examples = random_examples(model, 2, regularising=False, seed=5)
    weights = list(model.model.parameters())
    naive_gradient(model, "identity", examples, ["weight_gradients"])
    assert not any(weight.grad is not None for weight in weights)
    naive_gradient(model, "identity", examples)
    assert all(weight.grad is not None and not weight.requires_grad for weight in weights)


@pytest.mark.parametrize(("kind", "calls", "fewer"), [("identity", 3, 3), ("regularising", 3, 2), ("apl-released", 3, 2)])
def test_the_naive_step_asks_three_times_where_two_may_do(model, kind, calls, fewer):
    examples, batches = random_examples(model, 1, regularising=kind == "regularising", seed=6), []
    hook = model.model.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    naive_gradient(model, kind, examples)
    asked, batches[:] = list(batches), []
    naive_gradient(model, kind, examples, ["asks_twice"])
    hook.remove()
    assert asked == [1] * calls and batches == [1] * fewer


def test_eager_attention_reaches_every_network_and_is_taken_back(model, monkeypatch):
    fused, text_model = F.scaled_dot_product_attention, model.cond_stage_model.transformer.text_model
    shapes, plain = [], naive_module._attention
    monkeypatch.setattr(naive_module, "_attention", lambda q, k, v: shapes.append(tuple(q.shape)) or plain(q, k, v))
    image, context = torch.zeros(1, 3, 32, 32), model.get_learned_conditioning("a person")
    with released_operators(model, ["eager_attention"]):
        assert text_model.config._attn_implementation == "eager"
        torch.testing.assert_close(model.get_learned_conditioning("a person"), context, rtol=1e-4, atol=1e-5)
        model.encode_first_stage(image)
        assert shapes == [(1, 1, 16, 16)]
        model.apply_model(torch.zeros(1, 4, 4, 4), torch.zeros(1), context)
    assert len(shapes) > 1 and F.scaled_dot_product_attention is fused and text_model.config._attn_implementation != "eager"


def test_attention_with_its_probabilities_in_memory_equals_the_fused_one():
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    torch.testing.assert_close(naive_module._attention(q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_the_twin_has_a_unet_of_its_own_and_no_other_weights(model):
    copied = as_trained(model, "bf16")
    shared = {weight.data_ptr() for weight in model.parameters()} & {weight.data_ptr() for weight in copied.parameters()}
    assert len(shared) == sum(1 for _ in model.first_stage_model.parameters()) + sum(1 for _ in model.cond_stage_model.parameters())
    assert next(copied.model.parameters()).dtype == torch.bfloat16
    assert next(model.model.parameters()).dtype == torch.float32


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone():
    before = torch.get_rng_state()
    first, second, other = (random_model(TINY, seed=seed, device=CPU).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], second[key]) for key in first) and any(not torch.equal(first[key], other[key]) for key in first)
    assert torch.equal(torch.get_rng_state(), before) and all(value.any() for value in first.values())


@pytest.mark.parametrize(("which", "precision"), [("tiny_model", "fp32"), ("tiny_model", "bf16"), ("tiny_xl_model", "fp32")])
def test_diffusers_draws_the_same_pictures(which, precision, request):
    pytest.importorskip("diffusers")
    model = as_trained(request.getfixturevalue(which), precision)
    ours, theirs = our_images(model, 2), diffusers_images(model, TINY_XL if which == "tiny_xl_model" else TINY)(2)
    assert ours.shape == theirs.shape == (2, 32, 32, 3) and ours.dtype == theirs.dtype == np.uint8
    assert np.abs(ours.astype(int) - theirs).max() <= (1 if precision == "fp32" else 8)
    assert np.abs(ours[0].astype(int) - ours[1]).mean() > 8


def test_diffusers_holds_a_unet_whose_first_level_is_wider_than_its_entrance():
    pytest.importorskip("diffusers")
    shape = TINY["params"]["unet_config"]["params"] | {"channel_mult": [2, 4], "attention_resolutions": [2]}
    ours = UNetModel(**shape).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    theirs = diffusers_unet(**shape)
    theirs.load_state_dict(unet_state(ours.state_dict(), shape["num_res_blocks"]))
    latent, timestep, context = torch.randn(1, 4, 4, 4), torch.tensor([9]), torch.randn(1, 77, 32)
    torch.testing.assert_close(theirs(latent, timestep, context).sample, ours(latent, timestep, context), rtol=1e-3, atol=1e-5)


def test_ratios_are_of_the_pairs_and_the_first_round_does_not_count():
    order = []
    given = iter([99.0, 99.0, 4.0, 2.0, 9.0, 3.0, 8.0, 1.0])  # seconds of naive, ours, naive, ours, ...
    variants = {"naive": Implementation(lambda: order.append("naive")), "ours": Implementation(lambda: order.append("ours"), times=2)}

    def clock(run):
        run()
        return next(given)

    seconds = paired(variants, repeats=3, clock=clock, title="")
    assert order == ["naive", "ours"] * 4
    assert seconds == {"naive": [4.0, 9.0, 8.0], "ours": [1.0, 1.5, 0.5]}
    assert ratios(seconds["naive"], seconds["ours"]) == {"ratio": 6.0, "low": 4.0, "high": 16.0}


def test_growth_is_told_beside_the_first():
    first, second = growth_rows("batch", {1: [2.0, 4.0], 2: [1.0, 1.0]})
    assert (first["ratio"], first["seconds"], first["variant"]) == (1.0, 3.0, "1")
    assert (second["ratio"], second["low"], second["high"], second["unit"]) == (0.375, 0.25, 0.5, "of the first")


def test_nothing_to_draw_draws_nothing(tmp_path):
    write_plot([{"what": "matmul peak", "unit": "GFLOP/s", "low": None}], tmp_path / "plot.png", title="")
    assert not list(tmp_path.iterdir())


def test_the_command_writes_its_files(config_path, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setitem(parts.STEP_BATCHES, "cpu", (1, 16))  # as on a GPU
    main(["--config_path", str(config_path), "--parts", "step", "memory", "sampling", "--kinds", "regularising",
          "--precision", "fp32", "--repeats", "1", "--devices", "cpu", "--out_dir", str(out)])
    rows = json.loads((out / "results.json").read_text())
    assert {path.name for path in out.iterdir()} == {"results.json", "results.csv", "results.md", "plot.png", "arguments.json"}
    assert all({"what", "variant", "ratio", "low", "high", "unit", "seconds", "peak_mb"} == set(row) for row in rows)
    found = {(row["what"], row["variant"]): row for row in rows}
    assert {what for what, _ in found} == {"step regularising", "memory regularising", "sampling"}
    assert found["step regularising", "naive fp32"]["ratio"] == 1.0 and ("step regularising", "ours fp32, batch 16") in found
    assert found["memory regularising", "naive fp32"]["peak_mb"] > found["memory regularising", "ours fp32"]["peak_mb"] > 0
    assert all(row["ratio"] > 0 for row in rows) and "no redundant forward" in capsys.readouterr().out
    arguments = json.loads((out / "arguments.json").read_text())
    assert arguments["arguments"]["seed"] == 0 and torch.__version__.startswith(arguments["versions"]["torch"])


@pytest.mark.slow
def test_shares_of_the_peak_and_growth_up_to_two_processes(config_path, tmp_path):
    main(["--config_path", str(config_path), "--parts", "machine", "step", "growth", "devices", "--kinds", "identity",
          "--precision", "fp32", "--repeats", "1", "--devices", "cpu", "--out_dir", str(tmp_path / "out")])
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    values = {what: [row["variant"] for row in rows if row["what"] == f"growth {what}"] for what in ("batch", "m", "devices")}
    assert values == {"batch": ["1", "2", "4", "8", "16"], "m": ["1", "5", "10", "20", "40"], "devices": ["1", "2"]}
    peak, share = (next(row["ratio"] for row in rows if row["what"] == what) for what in ("matmul peak", "MFU step identity"))
    assert peak > 0 and 0 < share < 1


@pytest.mark.parametrize(("flags", "sentence"), [
    (["--repeats", "0"], "argument --repeats: got '0'; give a whole number of at least 1"),
    (["--parts", "speed"], "argument --parts: invalid choice: 'speed'"),
    (["--devices", "cpu:2"], "--devices cpu:2 names processes, which the part 'devices' starts by itself; give cpu"),
    (["--devices", "99"], "--devices 99 asks for GPU 99"),
    (["--config_path", "nowhere.yaml"], "--config_path nowhere.yaml is not there; give a file"),
    (["--preset", "wide"], "there is no preset 'wide'"),
])
def test_a_mistake_is_one_sentence(config_path, capsys, flags, sentence):
    assert sentence in refusal(capsys, main, ["--config_path", str(config_path), *flags])


def test_bf16_is_left_out_where_the_device_does_not_compute_in_it(config_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    flags = ["--config_path", str(config_path), "--devices", "cpu", "--precision", "bf16"]
    assert "--precision bf16 was given alone" in refusal(capsys, main, flags)
    benchmark = Benchmark(options_of(BenchmarkOptions, parse_benchmark_args([*flags, "fp32"])))
    assert benchmark.precisions == ["fp32"] and benchmark.left_out == ["bf16, in which this device does not compute"]
