"""What ``skipdit sample`` and ``bench`` do alike: choose the device, read the outline, prepare the pipeline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from skipdit_cli.errors import UsageError
from skipdit_cli.presets import load_preset
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


def plan_in_force(file: str | None, preset: str | None, policy):
    """Return the plan of ``--plan``, or the preset that is one; None where there is none, or another cache is set.

    Args:
        policy: The cache that the flags describe, all layers of them.
    """
    from skipdit_cli.planning.plan import load_plan, plan_of

    named = load_preset(preset) if file is None and preset is not None else None
    if named is not None and not named.made_for:
        return None
    plan = plan_of(named) if named is not None else load_plan(file) if file is not None else None
    return plan if plan is not None and plan.candidate.policy == policy else None


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


def choose_labels(text: str | None, num_images: int | None, outline) -> list[int | None]:
    """Return one class label per sample: those of ``--class-labels`` in turn, else all of the model."""
    num_classes = outline.transformer.config.get("num_embeds_ada_norm")
    if text is None and num_classes is None:
        labels: list[int | None] = [None]
    elif text is None:
        labels = [*range(num_classes)][: num_images or 1]
    else:
        labels = [*parse_labels(text, outline)]
    if not labels:
        raise UsageError("Got an empty --class-labels but expected one or more ids, such as 0,1.")
    return [labels[i % len(labels)] for i in range(num_images or len(labels))]


def check_conditions(pipe, class_labels: object, prompts: list[str] | None) -> None:
    """Refuse class labels together with prompts, prompts for a model that takes none, and a text-conditional pipeline
    without either.

    Args:
        pipe: The pipeline or its outline.

    Raises:
        UsageError: Both were given, a class-conditional or unconditional model got a prompt, or a text-conditional
            pipeline has none.
    """
    from skipdit_cli.families.labels import check_labels
    from skipdit_cli.sampling.pipelines.call_arguments import is_text_conditional

    if prompts is not None and class_labels is not None:
        raise UsageError("Got --prompt and --class-labels; give the one that the model is conditioned on.")
    if prompts is None and class_labels is None and is_text_conditional(pipe):
        raise UsageError(
            "Got no --prompt, but this is a text-conditional pipeline; give --prompt TEXT or --prompts-file FILE."
        )
    if prompts and not is_text_conditional(pipe):
        check_labels(prompts, pipe.transformer.config.get("num_embeds_ada_norm"))


def parse_labels(text: str, pipe) -> list[int]:
    """Return the labels of ``--class-labels``: numbers, ranges, and names that the model has for its classes.

    Args:
        pipe: The pipeline or its outline.

    Raises:
        UsageError: A name is unknown or belongs to several classes, or a range is none.
    """
    from skipdit_cli.families.labels import read_labels

    return read_labels(text, (getattr(pipe, "config", None) or {}).get("id2label"))


def spread_labels(classes: int, count: int) -> list[int]:
    """Return ``count`` class labels, spread evenly over the classes of a model."""
    return [at * classes // count % classes for at in range(count)]
