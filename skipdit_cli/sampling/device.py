"""The device of a run: its choice, its precision, its memory and its clock."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional

from skipdit_cli import processes
from skipdit_cli.console import count
from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.families.pipeline_parts import transformers_of
from skipdit_cli.formats import GIB
from skipdit_cli.trunk import Interposed, interpose, restore

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def free_memory() -> int:
    """Return the bytes of free memory of this machine or container."""
    import psutil

    free = psutil.virtual_memory().available
    try:  # the limit of a container, which psutil does not see
        limit, used = (Path("/sys/fs/cgroup", name).read_text() for name in ("memory.max", "memory.current"))
        free = min(free, int(limit) - int(used))
    except (OSError, ValueError):
        pass
    return max(free, 0)


def memory_figures(device: torch.device) -> str:
    """Return the memory of a device as measured, in words: what is allocated on a GPU, what is free elsewhere."""
    import psutil

    if device.type == "cuda":
        allocated, total = torch.cuda.max_memory_allocated(device), torch.cuda.mem_get_info(device)[1]
        return f"at most {allocated / GIB:.1f} of the {total / GIB:.1f} GiB of {device} were allocated"
    free, total = free_memory(), psutil.virtual_memory().total
    return f"{free / GIB:.1f} of {total / GIB:.1f} GiB of main memory were free"


def select_device(device: str = "auto", dtype: str = "auto") -> tuple[torch.device, torch.dtype]:
    """Return the device and the precision that ``--device`` and ``--dtype`` name.

    Args:
        device: ``auto`` (cuda, else mps, else cpu), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``. Of several processes,
            each takes the CUDA device of its own.
        dtype: ``auto`` (bfloat16 on cuda, float32 elsewhere) or a key of ``DTYPES``.
    Raises:
        UsageError: A name is unknown, this machine lacks the device, or the device cannot run the precision.
    """
    selected = _device(device)
    if dtype == "auto":
        return selected, torch.bfloat16 if selected.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        hint = nearest(dtype, ["auto", *DTYPES])
        raise UsageError(f"Got --dtype {dtype}, allowed are auto, {', '.join(DTYPES)}.{hint}")
    if selected.type == "cpu" and DTYPES[dtype] is torch.float16:
        raise UsageError(f"Got --dtype {dtype} on the CPU, which runs float32 and bfloat16; use --dtype bfloat16.")
    return selected, DTYPES[dtype]


def _device(name: str) -> torch.device:
    cuda, mps = torch.cuda.device_count(), torch.backends.mps.is_available()
    if cuda and name in ("auto", "cuda") and processes.count() > 1:
        return torch.device("cuda", processes.local_rank())
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    kind, _, number = name.partition(":")
    well_formed = kind in ("cpu", "cuda", "mps") and (number.isdigit() if ":" in name else True)
    if not well_formed or (number and kind != "cuda"):
        hint = nearest(name, ["auto", "cpu", "cuda", "mps"])
        raise UsageError(f"Got --device {name}, allowed are auto, cpu, cuda, cuda:N and mps.{hint}")
    if kind == "cuda" and int(number or 0) >= cuda:
        present = count(cuda, "CUDA device") if cuda else "no CUDA device"
        raise UsageError(f"Got --device {name}, but torch finds {present} here; use --device auto.")
    if kind == "mps" and not mps:
        raise UsageError("Got --device mps, but torch finds no mps device here; use --device auto.")
    return torch.device(name)


def move(pipe, device: torch.device):
    """Move a pipeline to ``device``, with products in float32 where a CPU has no bfloat16 arithmetic; return it."""
    pipe.to(device)
    for transformer in transformers_of(pipe).values():
        if computes_wide(transformer):
            for module in transformer.modules():
                if isinstance(module, torch.nn.Linear):
                    interpose(module, "forward", WideLinear)
    return pipe


def now(device: torch.device) -> float:
    """Return the time in seconds, after the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


class Stopwatch:
    """Time the denoising within a ``with`` block.

    The time runs from the first call of one of the pipeline's transformers to the end of the block, or to the first
    use of the VAE's decoder after that: it leaves out the encoding of prompts and the decoding of latents.

    Attributes:
        seconds: After the block; 0 if no transformer was called.
        calls: Calls of the transformers.
    """

    def __init__(self, pipe):
        self.transformers, self.vae = list(transformers_of(pipe).values()), getattr(pipe, "vae", None)
        self.began: float | None = None
        self.seconds, self.running, self.calls = 0.0, False, 0

    def __enter__(self) -> Stopwatch:
        self.hooks = [transformer.register_forward_pre_hook(self._begin) for transformer in self.transformers]
        if hasattr(self.vae, "decode"):
            interpose(self.vae, "decode", partial(_StopBefore, stop=self._end), _StopBefore)
        return self

    def _begin(self, *_) -> None:
        self.calls += 1
        if self.began is None:
            self.began, self.running = now(self.transformers[0].device), True

    def _end(self) -> None:
        if self.running and self.began is not None:
            self.seconds, self.running = now(self.transformers[0].device) - self.began, False

    def __exit__(self, *exception) -> None:
        for hook in self.hooks:
            hook.remove()
        if hasattr(self.vae, "decode"):
            restore(self.vae, "decode", _StopBefore)
        self._end()


class _StopBefore(Interposed):
    """A method before which ``stop`` is called."""

    def __init__(self, inner, stop):
        super().__init__(inner)
        self.stop = stop

    def __call__(self, *args, **kwargs):
        self.stop()
        return self.inner(*args, **kwargs)


def computes_wide(transformer) -> bool:
    """Return whether a transformer is in bfloat16 on a CPU without instructions for it."""
    on_cpu = transformer.device.type == "cpu" and transformer.dtype is torch.bfloat16
    return on_cpu and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


class WideLinear(Interposed):
    """The ``forward`` of a Linear that multiplies bfloat16 operands in float32, and rounds once.

    The bfloat16 product of torch on such a CPU takes about six times as long, and is no more exact.
    """

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        linear = self.inner.__self__
        bias = None if linear.bias is None else linear.bias.float()
        return functional.linear(x.float(), linear.weight.float(), bias).to(x.dtype)
