"""The time and the cost of training and sampling on other hardware, as a range, from counted FLOPs and bytes."""

from __future__ import annotations

from dataclasses import dataclass

from skipdit_cli.planning.hardware.accelerators import Hardware
from skipdit_cli.planning.hardware.device_memory import DDP, FSDP, ONE
from skipdit_cli.planning.hardware.footprint import Footprint

UTILISATION = (0.25, 0.55)
"""The shares of a device's peak that a transformer's products reach in training and sampling: an assumption. Small
models and batches reach less than the lower one."""
OPTIMIZER_PASSES = 16
"""How often each trained weight's float32 is read or written in AdamW, gradient clipping and the moving average."""


@dataclass(frozen=True)
class Seconds:
    """A range of time.

    Args:
        least: With the higher utilisation, and communication hidden behind computation.
        most: With the lower utilisation, and communication after computation.
    """

    least: float
    most: float

    def times(self, factor: float) -> Seconds:
        """Return so many times the range."""
        return Seconds(self.least * factor, self.most * factor)


def step_seconds(
    name: str, footprint: Footprint, hardware: Hardware, half: bool, micro_batches: int = 1
) -> Seconds | None:
    """Return the time of one optimizer step, or None where the peak of the device is not known.

    Args:
        name: How the model is placed, as for ``place``.
        footprint: That of one micro-batch.
        half: Whether products are in bfloat16 or float16.
        micro_batches: Forward and backward passes of a step.
    """
    device, devices = hardware.device, 1 if name == ONE else hardware.count
    peak = device.bf16 if half else device.fp32
    if peak is None:
        return None
    shards = 1 if name in (ONE, DDP) else devices
    optimizer = OPTIMIZER_PASSES * footprint.trained / shards / device.bandwidth if device.bandwidth else 0.0
    exchange = _exchanged(name, footprint, devices) / hardware.link if hardware.link else 0.0
    fast, slow = (micro_batches * footprint.flops / peak / share for share in reversed(UTILISATION))
    return Seconds(max(fast, exchange) + optimizer, slow + exchange + optimizer)


def sampling_seconds(flops: int, steps: int, hardware: Hardware) -> Seconds | None:
    """Return the time of the denoising of one batch on one device in bfloat16, or None where its peak is not known.

    Args:
        flops: Of one forward.
        steps: Denoising steps.
    """
    if hardware.device.bf16 is None:
        return None
    fast, slow = (steps * flops / hardware.device.bf16 / share for share in reversed(UTILISATION))
    return Seconds(fast, slow)


def _exchanged(name: str, footprint: Footprint, devices: int) -> float:
    """Return the bytes that one device sends in a step: all-reduce of the gradients, or what the shards need."""
    if name == ONE or devices == 1:
        return 0.0
    share = (devices - 1) / devices
    if name == FSDP:  # weights before the forward and the backward pass, gradients after it
        return share * (2 * footprint.weights + footprint.trained)
    return 2 * share * footprint.trained
