"""Frozen predictions made ahead, and kept on disk: the same prefix as without, and never another run's."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from ldm.apl.examples import Texts
from ldm.apl.look_ahead import LookAhead, Share, TargetCache
from ldm.apl.prefix import build_prefix
from ldm.apl.training_run import arguments_of, target_key
from tests.apl.test_trainer import prepared, train, training_set

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cache(tmp_path):
    """A cache of the tiny model: cache(limit=..., **key)."""
    def make(limit=1e9, **key):
        return TargetCache(tmp_path / "targets", key, limit=limit, dtype=torch.float32, device=torch.device("cpu"))
    return make


@pytest.fixture
def frozen_calls(tiny_model, monkeypatch):
    """The number of rows in each call of the U-Net without a gradient."""
    calls, predict = [], tiny_model.apply_model

    def counted(x, t, c):
        if not torch.is_grad_enabled():
            calls.append(len(x))
        return predict(x, t, c)

    monkeypatch.setattr(tiny_model, "apply_model", counted)
    return calls


def vectors(prefix):
    return next(prefix.embedding_parameters()).detach()


@pytest.mark.parametrize("method", ["apl", "apl-released"])
def test_looking_ahead_changes_nothing_but_rounding(fabric, tiny_model, pictures, tmp_path, method):
    one, four = (vectors(train(fabric, tiny_model, pictures, tmp_path / str(steps), steps_ahead=steps, train_method=method))
                 for steps in (1, 4))
    torch.testing.assert_close(one, four, rtol=0, atol=1e-5)


def test_a_group_of_steps_is_one_call(fabric, tiny_model, pictures, tmp_path, frozen_calls):
    train(fabric, tiny_model, pictures, tmp_path, steps_ahead=4)
    assert len(frozen_calls) == 2 and 16 < frozen_calls[0] < 32 and 8 < frozen_calls[1] < 16  # of 4 and 2 steps of 4 samples


def test_a_sweep_over_alpha_computes_the_targets_once_and_learns_the_same(fabric, tiny_model, pictures, tmp_path, cache, frozen_calls):
    alphas = (0.0, 0.5, 1.0, 2.0, 3.0)
    for alpha in alphas:
        train(fabric, tiny_model, pictures, tmp_path / f"alone-{alpha}", alpha=alpha)
    frozen_calls.clear()
    for alpha in alphas:
        train(fabric, tiny_model, pictures, tmp_path / f"sweep-{alpha}", alpha=alpha, cache=cache())
        assert len(frozen_calls) == 2  # of the first alpha
    files = [[(tmp_path / f"{kind}-{alpha}" / "6.pt").read_bytes() for alpha in alphas] for kind in ("alone", "sweep")]
    assert files[0] == files[1] and len(set(files[0])) == 5


def test_pictures_are_not_needed_where_the_targets_are_kept(fabric, tiny_model, pictures, tmp_path, cache, monkeypatch):
    train(fabric, tiny_model, pictures, tmp_path / "first", cache=cache())
    monkeypatch.setattr(tiny_model, "encode_first_stage", None)
    train(fabric, tiny_model, pictures, tmp_path / "second", cache=cache(), lr=0.02, init="uniform01")


def test_another_key_has_other_targets(cache, tmp_path):
    targets = {"noisy_latent": torch.ones(1, 4, 4, 4), "eps_attributes": torch.ones(1, 4, 4, 4), "eps_name": torch.ones(0, 4, 4, 4)}
    cache(seed=0).save(range(1), targets)
    assert cache(seed=0).has(range(1)) and not cache(seed=0).has(range(2)) and not cache(seed=1).has(range(1))
    assert [json.loads(path.read_text()) for path in sorted((tmp_path / "targets").glob("*/key.json"))] in (
        [{"seed": 0}, {"seed": 1}], [{"seed": 1}, {"seed": 0}])


def test_bfloat16_targets_take_half_the_space_and_come_back_the_same(tmp_path):
    key = {"precision": "bf16"}
    cache = TargetCache(tmp_path, key, limit=1e9, dtype=torch.bfloat16, device=torch.device("cpu"))
    eps = torch.randn(3, 4, 4, 4).bfloat16().float()  # as a U-Net in bfloat16 predicts it
    cache.save(range(3), {"eps_attributes": eps})
    assert torch.equal(cache.load(range(3), {"eps_attributes": (3, 4, 4, 4)})["eps_attributes"], eps)
    assert next(tmp_path.rglob("*.safetensors")).stat().st_size < 3 * 64 * 2 + 200


def test_a_full_cache_takes_no_more_and_says_so_once(fabric, tiny_model, pictures, tmp_path, cache, capsys):
    limit = 16 * 3 * 64 * 4 + 400  # the first group of steps, and hardly more
    full = cache(limit)
    prefix = train(fabric, tiny_model, pictures, tmp_path / "full", cache=full)
    assert full.has(range(0, 4)) and not full.has(range(4, 6))
    assert capsys.readouterr().err.count("takes no more") == 1
    assert torch.equal(vectors(prefix), vectors(train(fabric, tiny_model, pictures, tmp_path / "alone")))


@pytest.mark.parametrize(("content", "message"), [
    (b"\x00" * 20, "cannot be read"), (torch.ones(2, 4, 4, 4), "holds no targets of this training"),
    (torch.ones(4, 4, 2, 2), "holds no targets of this training"), (torch.tensor(1.0), "holds no targets of this training")])
def test_a_wrong_file_in_the_cache_is_named_and_made_again(cache, content, message, capsys):
    there = cache()
    there.save(range(4), {"eps_attributes": torch.ones(4, 4, 4, 4) if isinstance(content, bytes) else content})
    if isinstance(content, bytes):
        there._path(range(4)).write_bytes(content)
    assert there.load(range(4), {"eps_attributes": (4, 4, 4, 4)}) is None
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    """The key of the miniature's targets under flags of train.py: key(*flags, share=...)."""
    def make(*flags, share=None):
        options, run = prepared("--preset", "mini", *flags)
        return target_key(options, run, arguments_of(options, run, "fp32"), share or Share(options.batch_size, 4), torch.device("cpu"))
    return make


@pytest.mark.weights
@pytest.mark.parametrize("flags", [["--alpha", "3"], ["--num_vectors", "20"], ["--lr", "0.1"], ["--init", "uniform01"], ["--lr_decay", "0"],
                                   ["--iterations", "9"], ["--seed", "5", "--data_seed", "0"], ["--prompt", "other"]])
def test_a_sweep_shares_its_targets(key, flags):
    assert key(*flags) == key()


@pytest.mark.weights
@pytest.mark.parametrize("flags", [["--seed", "5"], ["--data_seed", "5"], ["--ddim_steps", "9"], ["--mix", "0.4"], ["--batch_size", "2"],
                                   ["--train_method", "apl-released"], ["--train_method", "apl-no-reg"], ["--compile"],
                                   ["--templates", "data/templates.txt"], ["--ckpt_path", "data/mini/mini-clip.safetensors"],
                                   ["--config_path", "configs/stable-diffusion/narrow-inference.yaml"]])
def test_another_training_has_targets_of_its_own(key, flags):
    assert key(*flags) != key()


@pytest.mark.weights
def test_every_device_and_every_picture_counts(key, tmp_path):
    shares = [Share(4, 4), Share(4, 2), Share(4, 4, 0, 2), Share(4, 4, 1, 2)]
    assert len({repr(key(share=share)) for share in shares}) == 4
    shutil.copytree(ROOT / "data" / "mini" / "s_reg", tmp_path / "s_reg")
    before = key("--caption_images", str(tmp_path / "s_reg"))
    picture = next(path for path in sorted((tmp_path / "s_reg").rglob("*")) if path.is_file())
    os.utime(picture, ns=(1, 1))
    assert key("--caption_images", str(tmp_path / "s_reg")) == before
    picture.write_bytes(picture.read_bytes() + b"0")
    assert key("--caption_images", str(tmp_path / "s_reg")) != before


def test_a_finished_run_computes_nothing():
    assert list(Share(batch_size=4, steps=4).groups(first_step=6, iterations=6)) == []


def test_every_device_takes_its_samples_of_each_step(tiny_model, pictures):
    shares = [Share(batch_size=4, steps=2, rank=rank, world_size=2) for rank in (0, 1)]
    assert [list(share.numbers(3)) for share in shares] == [[12, 14], [13, 15]]
    assert list(shares[0].groups(first_step=3, iterations=5)) == [range(2, 4), range(4, 5)]


def test_batches_have_identities_first(tiny_model, pictures):
    data = training_set(tiny_model, pictures)
    texts = Texts(tiny_model, build_prefix(tiny_model, num_vectors=2))
    for batch in LookAhead(tiny_model, data, texts, Share(8, 1), first_step=0, iterations=3):
        assert batch.is_identity.tolist() == sorted(batch.is_identity.tolist(), reverse=True)
        same = [torch.equal(a, b) for a, b in zip(batch.eps_name, batch.eps_attributes, strict=True)]
        assert same == [not of_identity for of_identity in batch.is_identity]
