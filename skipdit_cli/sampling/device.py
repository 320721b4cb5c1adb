"""Where a model runs, in which precision, and what the time is there."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch.nn import functional

from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.families.pipeline_parts import transformers_of
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
    """Bytes that this machine, or the container that it is, has left."""
    import psutil

    free = psutil.virtual_memory().available
    try:  # of a container, which the machine's own number knows nothing of
        limit, used = (Path("/sys/fs/cgroup", name).read_text() for name in ("memory.max", "memory.current"))
        free = min(free, int(limit) - int(used))
    except (OSError, ValueError):
        pass
    return max(free, 0)


def place(device: str = "auto", dtype: str = "auto") -> tuple[torch.device, torch.dtype]:
    """The device and precision that ``--device`` and ``--dtype`` name.

    Args:
        device: ``auto`` (cuda, else mps, else cpu), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        dtype: ``auto`` (bfloat16 on cuda, float32 elsewhere) or a key of ``DTYPES``.
    Raises:
        UsageError: An unknown name, a device this machine lacks, or a precision the device cannot run.
    """
    where = _device(device)
    if dtype == "auto":
        return where, torch.bfloat16 if where.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        hint = nearest(dtype, ["auto", *DTYPES])
        raise UsageError(f"Got --dtype {dtype}, allowed are auto, {', '.join(DTYPES)}.{hint}")
    if where.type == "cpu" and DTYPES[dtype] is torch.float16:
        raise UsageError(f"Got --dtype {dtype} on the CPU, which runs float32 and bfloat16; use --dtype bfloat16.")
    return where, DTYPES[dtype]


def _device(name: str) -> torch.device:
    cuda, mps = torch.cuda.device_count(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    kind, _, number = name.partition(":")
    well_formed = kind in ("cpu", "cuda", "mps") and (number.isdigit() if ":" in name else True)
    if not well_formed or (number and kind != "cuda"):
        hint = nearest(name, ["auto", "cpu", "cuda", "mps"])
        raise UsageError(f"Got --device {name}, allowed are auto, cpu, cuda, cuda:N and mps.{hint}")
    if kind == "cuda" and int(number or 0) >= cuda:
        found = f"{cuda} CUDA device{'s' if cuda > 1 else ''}" if cuda else "no CUDA device"
        raise UsageError(f"Got --device {name}, but torch finds {found} here; use --device auto.")
    if kind == "mps" and not mps:
        raise UsageError("Got --device mps, but torch finds no mps device here; use --device auto.")
    return torch.device(name)


def move(pipe, device: torch.device):
    """The pipeline on ``device``, with products in float32 where that CPU has no bfloat16 arithmetic."""
    pipe.to(device)
    for transformer in transformers_of(pipe).values():
        if computes_wide(transformer):
            for module in transformer.modules():
                if isinstance(module, torch.nn.Linear):
                    interpose(module, "forward", WideLinear)
    return pipe


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


class Stopwatch:
    """Times a block from the first call of one of the pipeline's transformers in it to its end, or to the first use of
    the decoder after that: so without the encoding of texts and the decoding of latents.

    Attributes:
        seconds: After the block; 0 where no transformer was called.
        calls: How often one was.
    """

    def __init__(self, pipe):
        self.transformers, self.vae = list(transformers_of(pipe).values()), getattr(pipe, "vae", None)
        self.began, self.seconds, self.running, self.calls = None, 0.0, False, 0

    def __enter__(self) -> Stopwatch:
        self.hooks = [transformer.register_forward_pre_hook(self._begin) for transformer in self.transformers]
        if hasattr(self.vae, "decode"):
            interpose(self.vae, "decode", lambda inner: _After(inner, self._end))
        return self

    def _begin(self, *_) -> None:
        self.calls += 1
        if self.began is None:
            self.began, self.running = now(self.transformers[0].device), True

    def _end(self) -> None:
        if self.running:
            self.seconds, self.running = now(self.transformers[0].device) - self.began, False

    def __exit__(self, *exception) -> None:
        for hook in self.hooks:
            hook.remove()
        if hasattr(self.vae, "decode"):
            restore(self.vae, "decode")
        self._end()


class _After(Interposed):
    """A method that begins once ``before`` has been called."""

    def __init__(self, inner, before):
        super().__init__(inner)
        self.before = before

    def __call__(self, *args, **kwargs):
        self.before()
        return self.inner(*args, **kwargs)


def computes_wide(transformer) -> bool:
    """Whether the model is in bfloat16 on a CPU that has no instructions for it."""
    on_cpu = transformer.device.type == "cpu" and transformer.dtype is torch.bfloat16
    return on_cpu and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


class WideLinear(Interposed):
    """A Linear whose bfloat16 operands are multiplied in float32 and rounded once.

    torch's own bfloat16 product on such a CPU takes about six times as long, and is no more exact.
    """

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        linear = self.inner.__self__
        bias = None if linear.bias is None else linear.bias.float()
        return functional.linear(x.float(), linear.weight.float(), bias).to(x.dtype)
