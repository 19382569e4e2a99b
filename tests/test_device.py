"""The devices and the arithmetic of a flag."""

import pytest
import torch

from ldm.device import devices_of, pick_device, pick_precision
from ldm.util import UserError


@pytest.fixture
def gpus(monkeypatch):
    """gpus(n): pretend that this machine has n of them, all with bfloat16."""
    def there(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    return there


@pytest.mark.parametrize(("flag", "count", "expected"), [
    ("auto", 0, ("cpu", 1, 1)), ("auto", 2, ("cuda", [0], 1)), ("cpu", 2, ("cpu", 1, 1)), ("cpu:3", 0, ("cpu", 3, 3)),
    ("1", 2, ("cuda", [1], 1)), ("0,1", 2, ("cuda", [0, 1], 2))])
def test_auto_prefers_a_gpu(gpus, flag, count, expected):
    gpus(count)
    assert devices_of(flag) == expected


@pytest.mark.parametrize(("flag", "expected"), [("auto", "cuda:0"), ("cpu:2", "cpu"), ("1,0", "cuda:1")])
def test_what_is_not_shared_takes_the_first_device(gpus, flag, expected):
    gpus(2)
    assert pick_device(flag) == torch.device(expected)


@pytest.mark.parametrize(("flag", "count"), [("0", 0), ("1", 1), ("0,7", 2)])
def test_a_gpu_that_is_not_there_is_refused(gpus, flag, count):
    gpus(count)
    with pytest.raises(UserError, match=f"--devices {flag} .*--devices cpu"):
        devices_of(flag)


@pytest.mark.parametrize(("asked", "device", "cpu", "expected"), [
    ("auto", "cpu", {"avx512_bf16": True}, "bf16"), ("auto", "cpu", {"avx512_bf16": False}, "fp32"), ("auto", "cpu", {}, "fp32"),
    ("auto", "cuda", {}, "bf16"), ("bf16", "cpu", {}, "bf16"), ("fp32", "cuda", {}, "fp32")])
def test_auto_precision_suits_the_device(gpus, monkeypatch, asked, device, cpu, expected):
    gpus(1)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu, raising=False)  # torch 2.6 lacks it
    assert pick_precision(asked, torch.device(device)) == expected
