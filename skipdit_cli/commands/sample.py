"""``skipdit sample``: images or videos from class labels or prompts, with a chosen cache depth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from skipdit_cli import console, processes
from skipdit_cli.commands import options, parsing, pipeline_setup, replay, sample_files, sample_target, speedup
from skipdit_cli.commands.flags import with_settings
from skipdit_cli.commands.sample_share import share_of
from skipdit_cli.errors import UsageError
from skipdit_cli.sampling.sample_settings import SampleSettings, count_steps
from skipdit_cli.settings import SAMPLES, flag_name, run_arguments

From = Annotated[
    Path | None,
    typer.Option(
        "--from",
        help="Image or video of 'skipdit sample' to make again; flags that are given win over its record.",
        metavar="FILE",
        is_eager=True,
        rich_help_panel=SAMPLES,
    ),
]


@with_settings(SampleSettings)
def sample(
    model: options.Model = None,
    preset: options.Preset = None,
    plan: options.Plan = None,
    settings: SampleSettings = None,
    from_file: From = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Sample images or videos, with a chosen cache depth.

    --cache LEVEL turns the cache on: fast, balanced or quality. So does --cache-layers N: every second step then
    runs only the first and the last N blocks, which is the paper's schedule with n = 2 (its n is --cache-interval).

    A video goes to clip.mp4 or clip.gif, with clip.json (how it was made) and clip.png (its frames) beside it.

    skipdit sample --preset digits --class-labels 0,1,2,3 --cache balanced -o digits.png

    skipdit sample -m latte-t2v --prompt "a cat on a roof" --cache-layers 1 -o cat.mp4
    """
    settings.check()
    team = processes.join(settings.pipeline.device)
    target = team.on_main(lambda: sample_target.claim_target(settings, model, preset, plan, from_file))
    speedup.check(settings.cache, settings.compile)
    policy = parsing.cache_policy(settings.cache, count_steps(settings.pipeline, settings.num_inference_steps))
    prompts = parsing.read_prompts(settings.pipeline.prompt, settings.pipeline.prompts_file)
    inputs = parsing.read_inputs(settings.pipeline)

    from skipdit_cli.models import named_model
    from skipdit_cli.sampling import schedulers
    from skipdit_cli.sampling.generate import generate_batches
    from skipdit_cli.sampling.pipelines.context_parallel import check_context_parallel
    from skipdit_cli.sampling.pixels import is_video
    from skipdit_cli.sampling.refusals import check_unloaded

    schedulers.check_name(settings.pipeline.scheduler)
    device, dtype = pipeline_setup.choose_device(settings.pipeline, settings.compile)
    name = named_model(model, preset)
    outline = pipeline_setup.outline_of(name, settings.pipeline)
    chosen_plan = pipeline_setup.plan_in_force(plan, preset, policy)
    if chosen_plan is not None:
        chosen_plan.check_run(outline, inputs["scheduler"], settings.num_inference_steps)
        policy = chosen_plan.policy
    conditions = choose_conditions(settings, prompts, outline)
    sample_target.check_kind(target, outline)
    settings = fill_in_defaults(settings, outline, dtype)
    arguments = {**run_arguments(settings), **inputs}
    check_context_parallel(settings, outline.transformer, device, dtype)
    check_unloaded(outline, conditions, policy, **arguments)
    run = replay.describe_run(settings, name, conditions, outline)
    resume = team.on_main(lambda: sample_target.is_resumed(target, run, settings.overwrite))
    pipe = open_pipeline(outline, settings, device, dtype)
    if chosen_plan is not None and (difference := chosen_plan.difference(pipe, settings.guidance_scale)):
        console.warn(difference)
    size = settings.pipeline.height, settings.pipeline.width, settings.pipeline.num_frames
    sample_target.check_size(target, pipe, len(conditions), settings.batch_size, *size)
    settings, policy = team.on_main(lambda: speedup.calibrate(pipe, settings, policy, conditions, arguments))
    record = replay.make_record(settings, name, conditions)
    writers = team if settings.context_parallel is None else processes.Team()
    output = sample_files.open_output(target, settings, record, conditions, is_video(pipe), run, resume, writers)
    share = share_of(team, pipe, settings, conditions, output)
    with output, console.progress("denoise", share.total) as advance:
        arguments |= {"advance": share.counting(advance), "skip": share.leaves_out, "decode": share.writes}
        arguments |= {"on_halved": _halved(settings, output, advance)}
        for batch, part in generate_batches(pipe, conditions, policy=policy, **arguments):
            if share.writes:
                output.add(batch, part)
        written = output.finish() if share.writes else []
    if team.is_main:
        _report(pipe, output, written, policy)


def _halved(settings: SampleSettings, output, advance) -> Callable[[Any], None] | None:
    """Return what is called where a batch does not fit into memory: it warns, and the records say the smaller one.

    There is nothing to call under context parallelism, where no process can change its batches alone.
    """
    if settings.context_parallel is not None:
        return None

    def note(halving: Any) -> None:
        console.warn(halving.sentence)
        output.record["batch_size"] = halving.batch_size
        steps = count_steps(settings.pipeline, settings.num_inference_steps)
        advance.extend(halving.batches * steps + halving.lost_steps)

    return note


def open_pipeline(outline, settings: SampleSettings, device, dtype):
    """Load the pipeline, with another VAE if one was given, and prepare it."""
    from skipdit_cli.models import load_pipeline, load_vae
    from skipdit_cli.sampling.pipelines.context_parallel import enable_context_parallel

    offline, parts = settings.pipeline.hub.local_files_only, {}
    if settings.vae is not None:
        parts["vae"] = load_vae(settings.vae, dtype=dtype, local_files_only=offline)
    pipe = load_pipeline(outline.folder, dtype=dtype, **parts)
    pipe = pipeline_setup.prepare(pipe, settings.pipeline, device, settings.compile)
    if settings.context_parallel is not None:
        enable_context_parallel(pipe, settings.context_parallel, processes.count())
    return pipe


def choose_conditions(settings: SampleSettings, prompts: list[str] | None, outline) -> list[int | str | None]:
    """Return one condition per sample: a prompt, a class label, or None for an unconditional model."""
    from skipdit_cli.sampling.pixels import check_memory

    shared, count = settings.pipeline, settings.num_images or 1
    pipeline_setup.check_conditions(outline, settings.class_labels, prompts)
    check_memory(outline, len(prompts or [1]) * count, shared.height, shared.width, shared.num_frames)
    if prompts:
        return [prompt for prompt in prompts for _ in range(count)]
    return pipeline_setup.choose_labels(settings.class_labels, settings.num_images, outline)


def fill_in_defaults(settings: SampleSettings, outline, dtype) -> SampleSettings:
    """Return the settings with the defaults that depend on the model or the machine, so that a record holds them.

    Raises:
        UsageError: ``--fps`` was given for a model of images.
    """
    from skipdit_cli.sampling.pipelines.call_arguments import default_fps, is_text_conditional
    from skipdit_cli.sampling.pixels import is_video
    from skipdit_cli.sampling.run_settings import default_guidance

    scale, fps = settings.guidance_scale, settings.fps
    if fps is not None and not is_video(outline):
        raise UsageError(f"Got --fps {fps:g}, but this model makes images; leave the flag out.")
    return replace(
        settings,
        guidance_scale=default_guidance(outline) if scale is None else scale,
        batch_size=settings.batch_size or (1 if is_text_conditional(outline) else 8),
        fps=default_fps(outline) if fps is None and is_video(outline) else fps,
        pipeline=replace(settings.pipeline, dtype=str(dtype).removeprefix("torch.")),
    )


def _report(pipe, output, written: list[Path], policy) -> None:
    """Say what was made and how fast; emit the JSON object of ``--json``."""
    from skipdit_cli.sampling.pixels import is_pixel_space

    cost = output.costs.joined(policy)
    if getattr(pipe, "vae", True) is None and not is_pixel_space(pipe):
        console.warn("this model works on latents and has no VAE here: what is shown are its first latent channels.")
    shape, record, report = output.shape, output.record, cost and cost.report
    _warn_about_size(shape, record)
    made = console.count(shape[0], "image" if len(shape) == 4 else "video")
    if len(shape) == 5:
        made += f" of {console.count(shape[1], 'frame')}"
    if output.kept:
        made += f", {output.kept:,} of them from before the interruption,"
    by = f" by {processes.count()} processes" if processes.count() > 1 else ""
    console.say(f"{made} in {cost.denoise_seconds if cost else 0:.2f} s of denoising{by}: {output.target}")
    if output.has_sound:
        console.say(sample_files.where_sounds_are(output.target, shape[0]))
    if report:
        console.say(str(report))
        if policy.threshold is not None:
            speedup.warn_about(report, policy)
        elif not report.reused_steps:
            level = record.get("cache")
            hint = f"--cache {level} reuses none of so few" if level else None
            console.warn(f"no step was reused; {hint or 'see --cache-interval, --cache-window and --full-steps'}.")
    console.emit(
        {
            "command": "sample",
            "files": [str(path) for path in written],
            "settings": record,
            "kept": output.kept,
            "processes": processes.count(),
            "denoise_seconds": cost.denoise_seconds if cost else 0.0,
            "total_seconds": cost.total_seconds if cost else 0.0,
            "skip_branches": hasattr(pipe.transformer, "skip_branches"),
            "cache": report and report.counts(policy.threshold is not None),
        }
    )


def _warn_about_size(shape: tuple[int, ...], record: dict) -> None:
    """Warn where a pipeline rounded the size that was given; some do it without a word."""
    for name, actual in zip(("width", "height", "num_frames"), reversed(shape[1:-1])):
        if record.get(name, actual) != actual:
            console.warn(f"{flag_name(name)} {record[name]} was asked for, and the pipeline made {actual}.")
