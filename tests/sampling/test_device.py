"""``place``: what --device and --dtype may be."""

import pytest
import torch

from skipdit_cli.errors import UsageError
from skipdit_cli.sampling.device import select_device as place


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize("dtype", ["auto", "float32", "fp32"])
def test_the_cpu_runs_float32_unless_told(dtype):
    assert place("auto", dtype) == (torch.device("cpu"), torch.float32)


def test_aliases():
    assert place("cpu", "bf16") == place("cpu", "bfloat16") == (torch.device("cpu"), torch.bfloat16)


def test_auto_prefers_cuda_with_bfloat16_then_mps_with_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert place() == (torch.device("mps"), torch.float32)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert place() == (torch.device("cuda"), torch.bfloat16)
    assert place("cuda:1", "fp16") == (torch.device("cuda:1"), torch.float16)
    with pytest.raises(UsageError, match="cuda:2, but torch finds 2 CUDA devices"):
        place("cuda:2")


@pytest.mark.parametrize(
    ("device", "dtype", "says"),
    [
        ("cuda", "auto", "no CUDA device"),
        ("mps", "auto", "no mps device"),
        ("gpu", "auto", "allowed are auto, cpu"),
        ("cuda:x", "auto", "allowed are auto, cpu"),
        ("cpu:1", "auto", "allowed are auto, cpu"),
        ("cpu", "float61", "Did you mean 'float16'"),
        ("cpu", "fp16", "use --dtype bfloat16"),
    ],
)
def test_what_cannot_run_is_refused(device, dtype, says):
    with pytest.raises(UsageError, match=says):
        place(device, dtype)
