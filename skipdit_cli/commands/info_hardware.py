"""``skipdit info --plan-hardware``: the memory, the time and the cost of a model on other hardware."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skipdit_cli import console
from skipdit_cli.formats import GIB

if TYPE_CHECKING:
    from skipdit_cli.planning.hardware.hardware_plan import HardwarePlan, Trained
    from skipdit_cli.planning.hardware.planned_time import Seconds

PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "AdamW, two moments",
    "average": "moving average (EMA)",
    "activations": "activations",
    "inputs": "latents and conditions",
    "communication": "buffers of communication",
    "allowance": "CUDA context, fragmentation",
}
"""The rows of the table of memory, by field of ``Placement``."""
REMEMBERED = 4
"""Tensors that ``taylor2`` keeps for each stream: the boundary, the shallow output and two earlier residuals."""


def show_plan(model: str | None, preset: str | None, settings) -> None:
    """Print the plan of ``--plan-hardware``, and emit all its numbers for ``--json``.

    Args:
        settings: The ``InfoSettings``.
    """
    from skipdit_cli.models.outline import read_outline
    from skipdit_cli.planning.hardware.accelerators import parse_hardware
    from skipdit_cli.planning.hardware.hardware_plan import make_plan

    hardware = parse_hardware(settings.hardware.plan_hardware)
    outline = read_outline(model, preset, True, settings.conditioning, **vars(settings.hub))
    plan = make_plan(outline, hardware, settings.hardware, settings.num_inference_steps)
    _show_memory(plan, outline.name)
    _show_time(plan, settings.hardware)
    _show_sampling(plan, settings.num_inference_steps)
    console.emit(
        {
            "command": "info",
            "model": outline.name,
            "class": type(outline.transformer).__name__,
            "num_inference_steps": settings.num_inference_steps,
            **plan.facts(),
        }
    )


def _show_memory(plan: HardwarePlan, name: str) -> None:
    work, device = plan.workload, plan.hardware.device
    columns = ["GiB per device", *(_title(each) for each in plan.training)]
    rows = [[text, *(_gib(getattr(each.placement, field)) for each in plan.training)] for field, text in PARTS.items()]
    rows.append(["peak", *(_gib(each.placement.peak) for each in plan.training)])
    turned = "without" if work.gradient_checkpointing else "with"
    if plan.other is not None:
        rows.append([f"peak {turned} checkpointing", *(_gib(each.other_peak or 0) for each in plan.training)])
    rows.append(["fits", *("yes" if each.fits else "no" for each in plan.training)])
    stage = "the skip branches" if work.only_branches else "all weights"
    batch = f"{console.count(work.batch, 'sample')} a device and pass"
    title = f"Training {stage} of {name}: {batch}, {work.mixed_precision} mixed precision, {device.memory / GIB:g} GiB"
    console.table(columns, rows, title=title)
    if plan.other is not None:
        console.say(
            f"The activations {turned} --gradient-checkpointing: {_gib(plan.other.activations)} GiB. The peak is less "
            "than the sum: activations are freed while gradients come."
        )
    if plan.stored:
        console.say(f"The VAE and text encoders come on top where they are used: {_gib(plan.stored)} GiB as stored.")


def _show_time(plan: HardwarePlan, settings) -> None:
    from skipdit_cli.planning.hardware.planned_time import UTILISATION

    device = plan.hardware.device
    steps = console.count(settings.max_train_steps, "step")
    flops = f"{plan.footprint.flops / 1e12:,.2f} TFLOPs a pass were counted"
    if plan.training[0].step is None:
        console.say(f"{flops}. Give the peak of the device for times, such as {plan.hardware.text}:100GFLOPS.")
        return
    columns = ["training", "samples a step", "s a step", f"h for {steps}", "device hours"]
    columns += ["cost"] if settings.price_per_hour is not None else []
    rows = []
    for each in plan.training:
        row = [_title(each), each.samples, _range(each.step), _range(each.hours), _range(each.device_hours)]
        rows.append([*row, _range(each.cost)] if settings.price_per_hour is not None else row)
    console.say("")
    console.table(columns, rows)
    peak = device.fp32 if plan.workload.mixed_precision == "no" else device.bf16
    console.say(
        f"{flops}; the range assumes {UTILISATION[0]:.0%} to {UTILISATION[1]:.0%} of {(peak or 0) / 1e12:g} TFLOP/s "
        f"({device.source}), and communication that is hidden or not. Nothing of it was measured on this device."
    )


def _show_sampling(plan: HardwarePlan, steps: int) -> None:
    sampling, boundary, remembered = plan.sampling, "", 0
    if sampling.boundary is not None:
        remembered = REMEMBERED * sampling.boundary
        boundary = f", the cache {_gib(sampling.boundary)} with --forecast reuse and up to {_gib(remembered)} else"
    guided = " with guidance" if plan.guided else ""
    total = sampling.weights + sampling.activations + remembered
    batch = console.count(plan.sampling_batch, "sample")
    text = (
        f"Sampling a batch of {batch}{guided} in bfloat16: {_gib(total)} GiB (weights {_gib(sampling.weights)}, one "
        f"forward {_gib(sampling.activations)}{boundary})"
    )
    if plan.sampling_time is not None:
        text += f"; {_range(plan.sampling_time)} s for {console.count(steps, 'full step')} on one device"
    console.say(f"{text}.")


def _title(each: Trained) -> str:
    placement = each.placement
    return placement.name if placement.devices == 1 else f"{placement.name} x{placement.devices}"


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}" if size > GIB / 20 else f"{size / GIB:.2g}"


def _range(seconds: Seconds | None) -> str:
    return "-" if seconds is None else f"{seconds.least:.3g} to {seconds.most:.3g}"
