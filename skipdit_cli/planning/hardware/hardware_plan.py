"""A plan for other hardware: the memory, the time and the cost of training and sampling one model there."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from skipdit_cli.errors import UsageError, reading
from skipdit_cli.families import family_of
from skipdit_cli.formats import parse_json, read_text
from skipdit_cli.models.outline import Outline
from skipdit_cli.planning.hardware.accelerators import Hardware
from skipdit_cli.planning.hardware.device_memory import DDP, FSDP, ONE, ZERO, Placement, place
from skipdit_cli.planning.hardware.footprint import (
    Footprint,
    SamplingFootprint,
    Workload,
    sampling_footprint,
    supports_checkpointing,
    training_footprint,
)
from skipdit_cli.planning.hardware.hardware_settings import HardwareSettings
from skipdit_cli.planning.hardware.planned_time import Seconds, sampling_seconds, step_seconds

COMPRESSION = 8, 4
"""Pixels for a latent along a side, and frames for a latent frame, where there is no VAE that says it."""


@dataclass(frozen=True)
class Trained:
    """Training in one way of placing the model.

    Args:
        placement: The memory of a device.
        other_peak: Its peak with gradient checkpointing, or without it where the plan has it; None if the model does
            not support it.
        fits: Whether the peak fits into the device.
        step: The time of an optimizer step; None where the peak rate of the device is not known.
        samples: Samples of an optimizer step of all devices.
        hours: The time of all steps.
        device_hours: The same times the devices that are used.
        cost: In the currency of the price; None without a price.
    """

    placement: Placement
    other_peak: int | None
    fits: bool
    step: Seconds | None
    samples: int
    hours: Seconds | None
    device_hours: Seconds | None
    cost: Seconds | None


@dataclass(frozen=True)
class HardwarePlan:
    """All that is known of a model on some hardware.

    Args:
        workload: What one process trains on.
        footprint, other: Its footprint, and that with gradient checkpointing turned on or off; None if the model does
            not support it.
        training: One entry for each way of placing the model.
        sampling: The footprint of one sampling forward, in bfloat16.
        sampling_batch: Samples of a batch, of which guidance makes twice as many where ``guided``.
        sampling_time: The time of the denoising of a batch on one device; None where the peak rate is not known.
        stored: Bytes of the other parts of the pipeline, as stored; None where there is no folder.
    """

    hardware: Hardware
    workload: Workload
    footprint: Footprint
    other: Footprint | None
    training: list[Trained]
    sampling: SamplingFootprint
    sampling_batch: int
    guided: bool
    sampling_time: Seconds | None
    stored: int | None

    def facts(self) -> dict[str, Any]:
        """Return all numbers as plain data, bytes and seconds."""
        facts = asdict(self)
        facts["hardware"]["link"] = self.hardware.link
        return facts


def make_plan(outline: Outline, hardware: Hardware, settings: HardwareSettings, steps: int) -> HardwarePlan:
    """Return the plan for a model.

    Args:
        outline: The model.
        hardware: The devices.
        settings: What is planned.
        steps: Denoising steps of a sample.

    Raises:
        UsageError: The settings do not fit the model, or it cannot be run without weights.
    """
    transformer: Any = outline.transformer
    if settings.train == "skip" and outline.branches is None:
        raise UsageError("Got --train skip, but this model gets no skip branches; give --train all.")
    if settings.gradient_checkpointing and not supports_checkpointing(transformer):
        name = type(transformer).__name__
        raise UsageError(f"Got --gradient-checkpointing, which diffusers' {name} does not support; leave it out.")
    on_cpu = hardware.device.name == "CPU"
    size = latent_size(outline, settings)
    workload = Workload(
        settings.train_batch_size,
        size,
        settings.mixed_precision or ("no" if on_cpu else "bf16"),
        settings.gradient_checkpointing,
        settings.train == "skip",
    )
    share = 1 / hardware.count
    footprint, other = training_footprint(transformer, workload, share), None
    if supports_checkpointing(transformer):
        turned = replace(workload, gradient_checkpointing=not workload.gradient_checkpointing)
        other = training_footprint(transformer, turned, share)
    names = [ONE] if hardware.count == 1 else [ONE, DDP, FSDP, ZERO]
    training = [_train(name, footprint, other, workload, hardware, settings) for name in names]
    by_text = _takes_captions(transformer)
    batch = settings.batch_size or (1 if by_text else 8)
    guided = by_text or transformer.config.get("num_embeds_ada_norm") is not None
    sampling = sampling_footprint(transformer, batch * (2 if guided else 1), size)
    seconds = sampling_seconds(sampling.flops, steps, hardware)
    stored = _bytes_of_other_parts(outline)
    return HardwarePlan(hardware, workload, footprint, other, training, sampling, batch, guided, seconds, stored)


def latent_size(outline: Outline, settings: HardwareSettings) -> tuple[int | None, int | None, int | None]:
    """Return latent frames, height and width of the samples; None for each that is the model's own.

    Raises:
        UsageError: The config of the model fixes a size, or it makes images.
    """
    transformer: Any = outline.transformer
    chosen = settings.height, settings.width
    if chosen != (None, None) and not _takes_captions(transformer):
        flag, value = ("--height", chosen[0]) if chosen[0] is not None else ("--width", chosen[1])
        raise UsageError(f"Got {flag} {value}, but the config of this model fixes its size; leave the flag out.")
    space, time = _compression(outline)
    height, width = (None if side is None else math.ceil(side / space) for side in chosen)
    frames = settings.num_frames
    if frames is not None and "3D" not in type(transformer).__name__:
        raise UsageError(f"Got --num-frames {frames}, but this model makes images; leave the flag out.")
    if frames is not None and "video_length" not in transformer.config:
        frames = (frames - 1) // time + 1
    elif frames is not None and frames > transformer.config.video_length:
        longest = transformer.config.video_length
        raise UsageError(f"Got --num-frames {frames} but the model has positions for 1..{longest}.")
    return frames, height, width


def _train(
    name: str,
    footprint: Footprint,
    other: Footprint | None,
    workload: Workload,
    hardware: Hardware,
    settings: HardwareSettings,
) -> Trained:
    devices, half = 1 if name == ONE else hardware.count, workload.mixed_precision != "no"
    micro = settings.gradient_accumulation_steps

    def placed(some: Footprint) -> Placement:
        memory = None if hardware.device.name == "CPU" else hardware.device.memory
        ema, accumulates = settings.use_ema, micro > 1
        return place(name, some, devices, ema=ema, accumulates=accumulates, gpu_memory=memory)

    placement, step = placed(footprint), step_seconds(name, footprint, hardware, half, micro)
    hours = step and step.times(settings.max_train_steps / 3600)
    device_hours = hours and hours.times(devices)
    price = settings.price_per_hour
    return Trained(
        placement,
        None if other is None else placed(other).peak,
        placement.peak <= hardware.device.memory,
        step,
        workload.batch * micro * devices,
        hours,
        device_hours,
        None if price is None or device_hours is None else device_hours.times(price),
    )


def _takes_captions(transformer) -> bool:
    """Return whether a transformer is text-conditional: its family says so, or has no pipeline by class."""
    family = family_of(transformer)
    if family.training is not None:
        return family.training.captions is not None
    return family.pipeline is None or not family.pipeline.by_class


def _compression(outline: Outline) -> tuple[int, int]:
    """Return the pixels of a latent along a side, and the frames of a latent frame."""
    file = outline.folder and outline.folder / "vae" / "config.json"
    if not file or not file.is_file():
        return COMPRESSION
    with reading(str(file), failed="does not say how far the VAE shrinks a picture"):
        config: Any = parse_json(read_text(file), file)
        widths = config.get("block_out_channels") or config.get("encoder_block_out_channels") or [0] * 4
        space = config.get("scale_factor_spatial") or config.get("spatial_compression_ratio") or 2 ** (len(widths) - 1)
        time = config.get("scale_factor_temporal") or config.get("temporal_compression_ratio") or COMPRESSION[1]
        return max(1, int(space)), max(1, int(time))


def _bytes_of_other_parts(outline: Outline) -> int | None:
    """Return the bytes of the weights of text encoders and VAE as they are stored."""
    if outline.folder is None:
        return None
    parts = list(outline.folder.glob("*/*.safetensors"))
    return sum(path.stat().st_size for path in parts if not path.parent.name.startswith(("transformer", "skip")))
