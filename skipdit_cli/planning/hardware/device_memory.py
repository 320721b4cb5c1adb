"""The memory of one device when a model is trained: in one process, or in several, in one of three ways."""

from __future__ import annotations

from dataclasses import dataclass

from skipdit_cli.planning.hardware.footprint import Footprint

ONE, DDP, FSDP, ZERO = "one process", "DDP", "FSDP2", "ZeRO-2"
"""All weights in one process; a replica in each; weights, gradients, optimizer and average sharded; gradients and
optimizer sharded (DeepSpeed)."""
CONTEXT = 3 << 28
"""Bytes of the CUDA context and of torch's libraries on a GPU, an allowance: 0.75 GiB."""
FRAGMENTATION = 0.05
"""The share of a GPU's memory that fragmentation and its own use take, an allowance."""
MOMENTS = 2
"""Float32 numbers of AdamW for each weight that is trained."""
BUCKET = 500_000_000
"""Elements of DeepSpeed's ``reduce_bucket_size``, its default."""


@dataclass(frozen=True)
class Placement:
    """The bytes that one device holds in a training step.

    Args:
        name: One of ``ONE``, ``DDP``, ``FSDP`` and ``ZERO``.
        devices: Processes that share the model.
        weights, gradients, optimizer, average: What stays on the device. Without a moving average the last is 0.
        activations: What the forward pass leaves for the backward pass.
        inputs: Latents, noise and conditions.
        communication: Buffers: DDP's buckets, the blocks that FSDP2 gathers, DeepSpeed's bucket.
        allowance: The CUDA context and fragmentation; 0 on a CPU.
        peak: The most at once, with the allowance: in the backward pass, or in the optimizer's step. It is less than
            the sum of all parts, for activations are freed while gradients come.
        is_optimizer_peak: Whether that is in the optimizer's step.
    """

    name: str
    devices: int
    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    inputs: int
    communication: int
    allowance: int
    peak: int
    is_optimizer_peak: bool


def place(
    name: str,
    footprint: Footprint,
    devices: int,
    *,
    ema: bool = True,
    accumulates: bool = False,
    gpu_memory: int | None = None,
) -> Placement:
    """Return the memory of one device.

    Weights, gradients and what is sent are float32 under mixed precision, too: autocast makes the copies that products
    are computed with, and they are among the activations.

    Args:
        name: One of ``ONE``, ``DDP``, ``FSDP`` and ``ZERO``.
        footprint: The footprint of the model; its ``sharded_peak`` is for ``1 / devices``.
        devices: Processes that share the model; 1 for ``ONE``.
        ema: Whether a moving average is kept.
        accumulates: Whether gradients of earlier micro-batches are there when a backward pass begins.
        gpu_memory: Bytes of the device for the allowance; None on a CPU.
    """
    shards = devices if name in (FSDP, ZERO) else 1
    weights, trained = float(footprint.weights), footprint.trained
    gradients, optimizer, average = trained / shards, MOMENTS * trained / shards, float(trained * ema)
    working = float(footprint.sharded_peak if shards > 1 else footprint.peak) + gradients * accumulates
    communication = float(trained) if name == DDP else 0.0
    if name == FSDP:
        weights, average = weights / shards, average / shards
        gathered = 2 * footprint.largest_block + footprint.outside_blocks
        communication = float(gathered + min(trained, footprint.largest_block))
    elif name == ZERO:
        optimizer = (MOMENTS + 1) * trained / shards  # with a float32 copy of its share of the weights
        communication = min(BUCKET, trained // 4) * 4.0
    kept = weights + optimizer + average + communication + footprint.inputs
    temporary = trained / shards if ema or gpu_memory is not None else 0.0
    backward, step = kept + working, kept + gradients + temporary
    allowance = 0 if gpu_memory is None else CONTEXT + int(FRAGMENTATION * gpu_memory)
    return Placement(
        name,
        devices,
        weights=int(weights),
        gradients=int(gradients),
        optimizer=int(optimizer),
        average=int(average),
        activations=footprint.activations,
        inputs=footprint.inputs,
        communication=int(communication),
        allowance=allowance,
        peak=int(max(backward, step)) + allowance,
        is_optimizer_peak=step > backward,
    )
