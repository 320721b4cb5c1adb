"""``skipdit sample`` on a model that stays loaded: what ``skipdit play`` runs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from skipdit_cli.commands import parsing, pipeline_setup, replay, sample_files
from skipdit_cli.commands.flags import settings_from
from skipdit_cli.commands.sample import choose_conditions, fill_in_defaults, open_pipeline
from skipdit_cli.commands.values import SCHEDULER_NAMES
from skipdit_cli.errors import UsageError, install_extra
from skipdit_cli.sampling.sample_settings import PipelineSettings, SampleSettings, count_steps
from skipdit_cli.settings import flag_name, plain_type, run_arguments, setting_fields, values_of

if TYPE_CHECKING:
    from skipdit_cli.play.choices import Choices, PlanFile
    from skipdit_cli.play.player import Conditions, Model, Player, Sample

ON_THE_PAGE = ("prompt", "prompts_file", "negative_prompt", "seed")
"""Fields of ``PipelineSettings`` that the page sets for every picture."""


def check_packages() -> None:
    """Refuse to start without Gradio.

    Raises:
        UsageError: It is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UsageError(f"The page needs one more package, gradio; run {install_extra('play')}.")


def typed_flags(settings: PipelineSettings) -> tuple[list[str], list[str]]:
    """Return the flags of ``skipdit sample`` that settings differ from their defaults by, without those on the page.

    Returns:
        Those of the model and its preparation, and those of the scheduler.
    """
    flags: tuple[list[str], list[str]] = ([], [])
    values = values_of(settings)
    for field, _ in setting_fields(PipelineSettings):
        value: Any = values[field.name]
        if value == field.default or field.name in ON_THE_PAGE:
            continue
        flag, words = flag_name(field.name), flags[field.name in SCHEDULER_NAMES]
        if value is True:
            words.append(flag)
            continue
        for item in value if isinstance(value, list) else [value]:
            words += [flag, str(item)]
    return flags


def read_plans(names: Sequence[str] | None) -> list[PlanFile]:
    """Return the plans in files and in folders, which ``skipdit calibrate`` writes for several budgets.

    Raises:
        UsageError: There is no such file, it is no plan, or a folder holds none.
    """
    from skipdit_cli.planning.plan import load_plan
    from skipdit_cli.play.choices import PlanFile

    files: list[Path] = []
    for path in map(Path, names or ()):
        found = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
        if not found:
            raise UsageError(f"Got --plan {path}, a folder without .yaml files; 'skipdit calibrate' makes plans.")
        files += found
    return [PlanFile(load_plan(file), str(file)) for file in files]


class LoadedSample:
    """``skipdit sample`` on one loaded pipeline; see ``play.player.SampleCommand``.

    Args:
        ctx: The context of the running command.
        name: The path or hub id of the model.
        outline: The outline of the pipeline.
        pipe: The pipeline; None to parse flags alone.
        dtype: Its dtype.
    """

    def __init__(self, ctx, name: str | Path, outline: Any, pipe: Any = None, dtype: Any = None):
        self.root, self.name, self.outline, self.pipe, self.dtype = ctx.find_root(), name, outline, pipe, dtype

    def parse(self, flags: Sequence[str]) -> tuple[SampleSettings, dict[str, Any]]:
        """Return the settings that ``skipdit sample`` reads from these flags, and its other parameters by name."""
        command = self.root.command.commands["sample"]
        sources = self.root.meta.get("sources", {})
        try:
            parameters = command.make_context("sample", list(flags), parent=self.root).params
        finally:
            self.root.meta["sources"] = sources  # of the command that is running; its contexts share them
        for field, kind in setting_fields(SampleSettings):  # as Typer converts them for the command itself
            value = parameters[field.name]
            if plain_type(kind) is list:
                parameters[field.name] = list(value) if value else None
            elif plain_type(kind) is Path and value is not None:
                parameters[field.name] = Path(value)
        return settings_from(SampleSettings, parameters), parameters

    def __call__(self, flags: Sequence[str], is_cached: bool, advance: Callable[[], None]) -> Sample:
        from skipdit_cli.play.player import Sample
        from skipdit_cli.sampling.generate import generate
        from skipdit_cli.sampling.pixels import is_video
        from skipdit_cli.sampling.refusals import check_unloaded

        settings, others = self.parse(flags)
        settings.check()
        policy = parsing.cache_policy(settings.cache, count_steps(settings.pipeline, settings.num_inference_steps))
        prompts = parsing.read_prompts(settings.pipeline.prompt, None)
        inputs = parsing.read_inputs(settings.pipeline)
        plan = pipeline_setup.plan_in_force(others["plan"], others["preset"], policy) if is_cached else None
        if plan is not None:
            plan.check_run(self.outline, inputs["scheduler"], settings.num_inference_steps)
            policy = plan.policy
        policy = policy if is_cached else None
        conditions = choose_conditions(settings, prompts, self.outline)
        settings = fill_in_defaults(settings, self.outline, self.dtype)
        arguments: dict[str, Any] = {**run_arguments(settings), **inputs}
        check_unloaded(self.outline, conditions, policy, **arguments)
        result = generate(self.pipe, conditions, policy=policy, advance=advance, **arguments)
        record = replay.make_record(settings, self.name, conditions)
        with TemporaryDirectory(prefix="skipdit-play-") as folder:
            target = Path(folder) / ("play.mp4" if is_video(self.outline) else "play.png")
            with sample_files.SampleFile(target, None, record) as output:
                output.add(slice(len(conditions)), result)
                output.finish()
            content = target.read_bytes()
        warning = None if plan is None else plan.difference(self.pipe, settings.guidance_scale)
        return Sample(content, target.suffix, result, warning)


def open_player(ctx, settings, plans: Sequence[PlanFile], model: str | None, preset: str | None) -> Player:
    """Load the model and return its player.

    Args:
        ctx: The context of ``skipdit play``.
        settings: Its ``PlaySettings``.
        plans: Those that the slider chooses from.

    Raises:
        UsageError: There is no such model, or a plan or a setting does not fit it.
    """
    from skipdit_cli.models import named_model
    from skipdit_cli.play.player import Player

    device, dtype = pipeline_setup.choose_device(settings.pipeline, False)
    name = named_model(model, preset)
    outline = pipeline_setup.outline_of(name, settings.pipeline)
    for each in plans:
        each.plan.check_run(outline, each.plan.sampler, each.plan.steps)
    flags = [*(["-m", model] if model else []), *(["--preset", preset] if preset else [])]
    typed, run_flags = typed_flags(settings.pipeline)
    if settings.num_inference_steps is not None:
        run_flags = [*run_flags, "--num-inference-steps", str(settings.num_inference_steps)]
    vae = ["--vae", settings.vae] if settings.vae is not None else []
    flags = [*flags, *typed, *vae]
    command = LoadedSample(ctx, name, outline, dtype=dtype)
    run, _ = command.parse([*flags, *run_flags])
    run.check()
    start = _start(settings, run, outline)
    command.pipe = open_pipeline(outline, run, device, dtype)
    choices = _choices(command, run, start, plans)
    return Player(_describe(outline, str(model or preset), flags, run_flags), choices, start, command)


def _start(settings, run: SampleSettings, outline) -> Conditions:
    """Return the conditions that the page begins with.

    Args:
        settings: The ``PlaySettings``.
        run: The settings of ``skipdit sample`` on this model.
    """
    from skipdit_cli.families.labels import check_labels
    from skipdit_cli.play.player import Conditions
    from skipdit_cli.sampling.pipelines.call_arguments import is_text_conditional
    from skipdit_cli.sampling.run_settings import default_guidance

    scales = (settings.guidance_scale, run.guidance_scale, default_guidance(outline))
    scale = next((scale for scale in scales if scale is not None), None)
    negative, seed = settings.pipeline.negative_prompt, settings.pipeline.seed
    prompts = settings.pipeline.prompt or run.pipeline.prompt
    if is_text_conditional(outline):
        pipeline_setup.check_conditions(outline, settings.class_labels, prompts or [""])
        return Conditions(None, prompts[0] if prompts else "", negative, seed, scale)
    pipeline_setup.check_conditions(outline, settings.class_labels, settings.pipeline.prompt)
    (label,) = pipeline_setup.choose_labels(settings.class_labels or run.class_labels, 1, outline)
    check_labels([label], outline.transformer.config.get("num_embeds_ada_norm"))
    return Conditions(label, None, None, seed, scale)


def _choices(command: LoadedSample, run: SampleSettings, start: Conditions, plans: Sequence[PlanFile]) -> Choices:
    """Return the ways to sample the model, after one denoising step that shows its timesteps and warms it up."""
    from skipdit_cli.planning.first_step import first_step
    from skipdit_cli.planning.flops import StepFlops
    from skipdit_cli.play.choices import Choices
    from skipdit_cli.sampling.schedulers import make_scheduler
    from skipdit_cli.sampling.schedulers.candidates import is_deterministic

    inputs: dict[str, Any] = parsing.read_inputs(run.pipeline)
    settings = fill_in_defaults(run, command.outline, command.dtype)
    scheduler = make_scheduler(inputs["scheduler"], command.pipe)
    step = first_step(command.pipe, [start.label], decode=False, **run_arguments(settings), **inputs)
    if is_deterministic(scheduler, inputs["arguments"]):
        return Choices(step.timesteps, step.levels, plans)
    flops = StepFlops(command.pipe.transformer, step.calls)
    return Choices(step.timesteps, step.levels, plans, has_live_block=True, share=flops.reused((1, 0)) / flops.full)


def _describe(outline, name: str, flags: Sequence[str], run_flags: Sequence[str]) -> Model:
    """Return what the page needs to know of the model."""
    from skipdit_cli.play.player import Model
    from skipdit_cli.sampling.pipelines.call_arguments import is_text_conditional
    from skipdit_cli.sampling.pixels import is_video
    from skipdit_cli.sampling.run_settings import default_guidance

    classes = None if is_text_conditional(outline) else outline.transformer.config.get("num_embeds_ada_norm")
    names = {int(label): name.split(",")[0].strip() for label, name in (outline.config.get("id2label") or {}).items()}
    labels = [(f"{label}: {names[label]}" if label in names else str(label), label) for label in range(classes or 0)]
    scale = default_guidance(outline)
    is_guided = scale is not None and (classes is None or scale > 1)
    return Model(name, labels, is_text_conditional(outline), is_guided, is_video(outline), flags, run_flags)
