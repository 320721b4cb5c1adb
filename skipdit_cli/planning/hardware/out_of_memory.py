"""The end of a training run whose device is too small: what takes how much, and what would fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from accelerate import DistributedType

from skipdit_cli.errors import SkipditError, is_out_of_memory
from skipdit_cli.formats import GIB
from skipdit_cli.planning.hardware.device_memory import DDP, FSDP, ONE, ZERO, Placement, place
from skipdit_cli.planning.hardware.footprint import Footprint, Workload, supports_checkpointing, training_footprint
from skipdit_cli.sampling.device import free_memory, memory_figures
from skipdit_cli.sampling.latents import spatial_compression

ADVICE = "give a smaller --train-batch-size with more --gradient-accumulation-steps, or --gradient-checkpointing"


class OutOfMemoryError(SkipditError):
    """A training step needs more memory than its device has."""


@contextmanager
def explained(trainer) -> Iterator[None]:
    """Turn an out-of-memory error of a training step into a sentence with figures.

    Args:
        trainer: The ``Trainer`` of the run: its model, settings, pipeline, accelerator, and the size of its images.

    Raises:
        OutOfMemoryError: In the place of torch's error.
    """
    try:
        yield
    except Exception as cause:
        if not is_out_of_memory(cause):
            raise
        settings, accelerator = trainer.settings, trainer.accelerator
        workload = Workload(
            settings.train_batch_size,
            _latents_of(trainer),
            settings.mixed_precision,
            settings.gradient_checkpointing,
            only_branches=None,
        )
        processes, figures = accelerator.num_processes, memory_figures(accelerator.device)
        sharding = {DistributedType.FSDP: FSDP, DistributedType.DEEPSPEED: ZERO}.get(accelerator.distributed_type)
        name = sharding or (DDP if processes > 1 else ONE)
        message = explain(
            trainer.transformer, workload, accelerator.device, figures, name, processes, ema=settings.use_ema
        )
        raise OutOfMemoryError(message) from cause


def _latents_of(trainer) -> tuple[int | None, int, int]:
    """Return latent frames, height and width of a run's samples."""
    vae, frames, config = trainer.pipe.vae, trainer.session.num_frames, trainer.transformer.config
    space = 1 if vae is None else spatial_compression(vae)
    if frames is not None and "video_length" not in config and vae is not None:
        time = vae.config.get("scale_factor_temporal") or getattr(vae, "temporal_compression_ratio", 1)
        frames = (frames - 1) // time + 1
    height, width = (side // space for side in trainer.size)
    return frames, height, width


def explain(
    transformer,
    workload: Workload,
    device: torch.device,
    figures: str,
    name: str = ONE,
    processes: int = 1,
    *,
    ema: bool = True,
) -> str:
    """Return the sentence for a step that did not fit.

    Args:
        transformer: The model, whose ``requires_grad`` flags say what is trained.
        workload: What one process trains on.
        device: Its device.
        figures: The memory as it was measured.
        name: How the model is placed, as for ``place``.
        processes: The number of processes.
        ema: Whether a moving average is kept.
    """
    got = f"The device ran out of memory in a training step ({figures})"
    try:
        share = 1 / processes
        footprint = training_footprint(transformer, workload, share)
        smaller = training_footprint(transformer, replace(workload, batch=max(1, workload.batch // 4)), share)
        checkpointed = None
        if not workload.gradient_checkpointing and supports_checkpointing(transformer):
            checkpointed = training_footprint(transformer, replace(workload, gradient_checkpointing=True), share)
    except Exception:  # whatever a model cannot do without weights: the error at hand is the one to report
        return f"{got}; {ADVICE}."
    gpu = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None

    def placed(some: Footprint) -> Placement:
        return place(name, some, processes, ema=ema, gpu_memory=gpu)

    now = placed(footprint)
    parts = {
        "weights": now.weights,
        "gradients": now.gradients,
        "optimizer": now.optimizer,
        "EMA": now.average,
        f"activations of a batch of {workload.batch}": now.activations,
        "buffers of communication": now.communication,
    }
    listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size)
    options = []
    if checkpointed is not None:
        options.append(f"--gradient-checkpointing {_reach(placed(checkpointed))}")
    if workload.batch > 1:
        options.append(f"--train-batch-size {max(1, workload.batch // 4)} {_reach(placed(smaller))}")
    total = gpu or free_memory()
    advice = f"; {', '.join(options)}" if options else ""
    if min(placed(each).peak for each in (smaller, checkpointed or smaller)) > total:
        advice += "; give both, --train skip, --no-use-ema, or a larger device"
    return f"{got}: by count it needs {now.peak / GIB:.2f} GiB ({listed}){advice}."


def _reach(placement: Placement) -> str:
    return f"would bring that to {placement.peak / GIB:.2f} (activations {placement.activations / GIB:.2f})"
