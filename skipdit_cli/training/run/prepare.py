"""What must stand before the first step: accelerate, the learning rate's course, the modes of the model."""

from __future__ import annotations

import torch
from accelerate import Accelerator, DistributedType
from diffusers.models.embeddings import LabelEmbedding
from diffusers.optimization import get_scheduler

from skipdit_cli.errors import UsageError
from skipdit_cli.families.pipeline_parts import transformer_of
from skipdit_cli.sampling.latents import spatial_compression
from skipdit_cli.sampling.pipelines.call_arguments import call_parameters
from skipdit_cli.training.objective.text_conditioning import patch_of, text_conditioning_of
from skipdit_cli.training.training_settings import TrainingSettings


def make_accelerator(settings: TrainingSettings) -> Accelerator:
    """
    Raises:
        UsageError: The machine cannot run the precision, or the launcher asks for what the loop cannot do.
    """
    try:
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # said aloud, or several CPU processes would not join up
            mixed_precision=settings.mixed_precision,
            gradient_accumulation_steps=settings.gradient_accumulation_steps,
            log_with=None if settings.report_to == "none" else settings.report_to,
            project_dir=settings.output / "logs",
        )
    except ValueError as cause:
        raise UsageError(f"Got --mixed-precision {settings.mixed_precision}, refused here: {cause}.") from cause
    if settings.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UsageError("Got --mixed-precision fp16 without a GPU; the CPU trains in no (float32) and bf16.")
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise UsageError(f"Launched with {accelerator.distributed_type}; expected one process, or several with DDP.")
    return accelerator


def make_schedule(optimizer: torch.optim.Optimizer, settings: TrainingSettings):
    """The learning rate by step. diffusers' ``constant`` ignores warm-up, so with one it is the other constant."""
    warm = settings.lr_warmup_steps
    name = "constant_with_warmup" if settings.lr_scheduler == "constant" and warm else settings.lr_scheduler
    return get_scheduler(name, optimizer, num_warmup_steps=warm, num_training_steps=settings.max_train_steps)


def set_train_mode(transformer, only_branches: bool | None = None) -> None:
    """Train mode, but for the label embeddings: in train mode each block's copy would drop labels by itself.

    Args:
        only_branches: Whether the trunk is frozen; None leaves that as it is.
    """
    transformer.train()
    for module in transformer.modules():
        if isinstance(module, LabelEmbedding):
            module.eval()
    if only_branches is not None:
        transformer.requires_grad_(not only_branches)
        if only_branches:
            transformer.skip_branches.requires_grad_(True)


def pixel_shape(pipe, height: int | None = None, width: int | None = None) -> tuple[tuple[int, int], int]:
    """((height, width), channels) of the pictures a pipeline is trained on.

    Args:
        height, width: Those asked for; None for the model's own.
    Raises:
        UsageError: It works on latents and has no VAE to make them, or the size is not one of it.
    """
    config, vae = transformer_of(pipe).config, pipe.vae
    if vae is None and config.in_channels not in (1, 3):
        raise UsageError(
            f"The model has {config.in_channels} channels, so it works on latents, but it has no VAE to make them: "
            "give 'train' a --vae FOLDER_OR_HUB_ID, or 'finetune' a folder that holds vae/."
        )
    unit, size = 1 if vae is None else spatial_compression(vae), own_size(pipe)
    for at, (flag, pixels, patch) in enumerate(zip(("--height", "--width"), (height, width), patch_of(pipe))):
        if pixels is None:
            continue
        if text_conditioning_of(pipe) is None and pixels != size[at]:
            raise UsageError(f"Got {flag} {pixels}, but this model is of {size[at]} pixels; leave the flag out.")
        if pixels % (unit * patch):
            raise UsageError(f"Got {flag} {pixels} but expected a multiple of {unit * patch}.")
        size[at] = pixels
    return tuple(size), config.in_channels if vae is None else vae.config.in_channels


def own_size(pipe) -> list[int]:
    """Height and width of the pictures a model is made for: its config's, or its pipeline's."""
    unit, config = 1 if pipe.vae is None else spatial_compression(pipe.vae), transformer_of(pipe).config
    if "sample_size" in config:
        return [unit * config.sample_size] * 2
    own = [call_parameters(pipe)[name].default for name in ("height", "width")]
    return [unit * pipe.default_sample_size if pixels is None else pixels for pixels in own]
