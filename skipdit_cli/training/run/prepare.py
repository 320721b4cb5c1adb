"""The set-up of optimisation: the accelerator, the learning rate schedule and the mode of the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import Accelerator, DistributedType, InitProcessGroupKwargs
from diffusers.models.embeddings import LabelEmbedding
from diffusers.optimization import get_scheduler

from skipdit_cli.errors import UsageError
from skipdit_cli.training.distributed.parallelism import Replicated, Sharded
from skipdit_cli.training.distributed.sharding import check_fsdp, fsdp_is_requested
from skipdit_cli.training.distributed.zero import ZeroPartitioned, check_zero, zero_is_requested
from skipdit_cli.training.training_settings import TrainingSettings

TIME_LIMIT = timedelta(hours=3)
"""How long a process waits for the others, of which one may save a large checkpoint; NCCL's default is 10 minutes."""


def make_accelerator(settings: TrainingSettings) -> Accelerator:
    """Return the accelerator of a run.

    Raises:
        UsageError: The machine does not support the precision, or the launcher's way of distributing is not supported.
    """
    if fsdp_is_requested():
        check_fsdp()
    if zero_is_requested():
        check_zero(settings.mixed_precision)
    try:
        accelerator = Accelerator(
            # Without it, several CPU processes would not form a group; with it, accelerate leaves DeepSpeed out.
            cpu=not torch.accelerator.is_available() and not zero_is_requested(),
            mixed_precision=settings.mixed_precision,
            gradient_accumulation_steps=settings.gradient_accumulation_steps,
            log_with=None if settings.report_to == "none" else settings.report_to,
            project_dir=settings.output / "logs",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=TIME_LIMIT)],
        )
    except ValueError as cause:
        raise UsageError(f"Got --mixed-precision {settings.mixed_precision}, refused here: {cause}.") from cause
    if settings.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UsageError("Got --mixed-precision fp16 without a GPU; the CPU trains in no (float32) and bf16.")
    if accelerator.distributed_type == DistributedType.MEGATRON_LM:
        raise UsageError("Launched with Megatron-LM; expected one process, or several with DDP, FSDP2 or ZeRO-2.")
    return accelerator


def make_parallelism(accelerator: Accelerator, settings: TrainingSettings) -> Replicated:
    """Return how the processes of a run share the model, as the launcher requests it."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return ZeroPartitioned(accelerator, settings)
    if fsdp_is_requested() and accelerator.num_processes > 1:
        return Sharded(accelerator, settings)
    return Replicated(accelerator, settings)


def make_schedule(optimizer: torch.optim.Optimizer, settings: TrainingSettings):
    """Return the learning rate schedule.

    diffusers' ``constant`` ignores warm-up, so ``constant_with_warmup`` takes its place where there is one.
    """
    warmup = settings.lr_warmup_steps
    name = "constant_with_warmup" if settings.lr_scheduler == "constant" and warmup else settings.lr_scheduler
    return get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=settings.max_train_steps)


def set_train_mode(transformer, only_branches: bool | None = None) -> None:
    """Set train mode, except on label embeddings: in train mode, each block's copy would drop labels by itself.

    Args:
        only_branches: Whether to freeze the trunk; None leaves ``requires_grad`` as it is.
    """
    transformer.train()
    for module in transformer.modules():
        if isinstance(module, LabelEmbedding):
            module.eval()
    if only_branches is not None:
        transformer.requires_grad_(not only_branches)
        if only_branches:
            transformer.skip_branches.requires_grad_(True)


@contextmanager
def on_device(modules: Iterable, device: torch.device) -> Iterator[None]:
    """Have modules, each on a device of its own, on one device for a while."""
    former = [(module, module.device) for module in modules]
    for module, _ in former:
        module.to(device)
    try:
        yield
    finally:
        for module, place in former:
            module.to(place)
