"""Training samples: what the frozen model generates for them is kept, and continued after a stop."""

import torch

from ldm.finetuning.samples import generated_latents
from ldm.sharing import OneDevice
from tests.baselines.test_baselines import CAR


def test_drawn_latents_that_were_cut_off_are_gone_on_with(tiny_model, tmp_path, monkeypatch):
    jobs = [(CAR, number) for number in range(10)]
    flags = {"model_hash": "abc", "scale": 2.0, "seed": 0, "steps": 2}
    whole = generated_latents(OneDevice(), tiny_model, jobs, tmp_path / "a", **flags)
    path, = (tmp_path / "a").glob("*.pt")
    torch.save(whole[:8].clone(), path)
    assert torch.equal(generated_latents(OneDevice(), tiny_model, jobs, tmp_path / "a", **flags), whole)
    assert whole.shape == (10, 4, 4, 4)
    assert generated_latents(OneDevice(), tiny_model, [], tmp_path / "none", **flags).shape == (0, 4, 4, 4)
