"""What ``skipdit sample`` and ``bench`` do alike: choose the device, read the outline, prepare the pipeline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from skipdit_cli.sampling.sample_settings import PipelineSettings


def choose_device(settings: PipelineSettings, compile: bool):
    """Return the device and the dtype to run with, after checking what needs no model.

    Args:
        compile: Whether the run compiles the transformers.
    """
    from skipdit_cli.sampling import fitting
    from skipdit_cli.sampling.device import select_device

    device, dtype = select_device(settings.device, settings.dtype)
    fitting.check_offload(settings.cpu_offload, device, compile)
    fitting.check_lora(settings.lora)
    return device, dtype


def outline_of(name: str | Path, settings: PipelineSettings):
    """Return the outline of a model; with ``--image``, that of the pipeline on its parts that starts from one."""
    from skipdit_cli.models.outline import read_outline
    from skipdit_cli.sampling.fitting import image_pipeline_class

    outline = read_outline(name, **vars(settings.hub))
    if settings.image is None or outline.kind is None:
        return outline
    return replace(outline, kind=image_pipeline_class(outline.kind))


def prepare(pipe, settings: PipelineSettings, device, compile: bool = False):
    """Make a loaded pipeline ready to run, and return it; with ``--image``, the one on its parts that starts from one.

    Args:
        compile: Compile its transformers.
    """
    from skipdit_cli.sampling import fitting

    if settings.image is not None:
        pipe = fitting.image_pipeline(pipe)
    offline = settings.hub.local_files_only
    fitting.fit(pipe, device, settings.lora, settings.cpu_offload, settings.vae_tiling, compile, offline)
    return pipe
