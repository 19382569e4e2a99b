"""The device and the arithmetic of a flag."""

import pytest
import torch

from ldm.device import pick_device, pick_precision
from ldm.util import UserError


@pytest.fixture
def gpus(monkeypatch):
    """gpus(n): pretend that this machine has n of them, all with bfloat16."""
    def there(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    return there


@pytest.mark.parametrize(("name", "count", "expected"), [
    ("auto", 0, "cpu"), ("auto", 2, "cuda"), ("cpu", 2, "cpu"), ("cuda", 1, "cuda"), ("cuda:1", 2, "cuda:1")])
def test_auto_prefers_a_gpu(gpus, name, count, expected):
    gpus(count)
    assert pick_device(name) == torch.device(expected)


@pytest.mark.parametrize(("name", "count"), [("cuda", 0), ("cuda:1", 1), ("cuda:7", 2)])
def test_a_gpu_that_is_not_there_is_refused(gpus, name, count):
    gpus(count)
    with pytest.raises(UserError, match=f"--device {name} .*--device cpu"):
        pick_device(name)


@pytest.mark.parametrize(("asked", "device", "cpu", "expected"), [
    ("auto", "cpu", {"avx512_bf16": True}, "bf16"), ("auto", "cpu", {"avx512_bf16": False}, "fp32"), ("auto", "cpu", {}, "fp32"),
    ("auto", "cuda", {}, "bf16"), ("bf16", "cpu", {}, "bf16"), ("fp32", "cuda", {}, "fp32")])
def test_auto_precision_suits_the_device(gpus, monkeypatch, asked, device, cpu, expected):
    gpus(1)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert pick_precision(asked, torch.device(device)) == expected
