"""``skipdit sample``: images or videos from class labels or prompts, with a chosen cache depth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from skipdit_cli import console, files
from skipdit_cli.commands import options, parsing, pipeline_setup, replay, sample_files, sample_target, speedup
from skipdit_cli.commands.flags import with_settings
from skipdit_cli.errors import UsageError
from skipdit_cli.presets import preset_path
from skipdit_cli.sampling.sample_settings import SampleSettings, count_steps
from skipdit_cli.settings import SAMPLES, flag_name, run_arguments
from skipdit_cli.version import __version__

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
    target = _choose_target(settings, model, preset, plan, from_file)
    for path in sample_target.outputs(target, settings.npz):
        files.hold(path)
    speedup.check(settings.cache, settings.compile)
    policy = parsing.cache_policy(settings.cache, count_steps(settings.pipeline, settings.num_inference_steps))
    prompts = parsing.read_prompts(settings.pipeline.prompt, settings.pipeline.prompts_file)
    inputs = parsing.read_inputs(settings.pipeline)

    from skipdit_cli.models import named_model
    from skipdit_cli.sampling import schedulers
    from skipdit_cli.sampling.generate import generate_batches
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
    check_unloaded(outline, conditions, policy, **arguments)
    run = _describe_run(settings, name, conditions, outline)
    resume = sample_target.is_resumed(target, run, settings.overwrite)
    pipe = open_pipeline(outline, settings, device, dtype)
    if chosen_plan is not None and (difference := chosen_plan.difference(pipe, settings.guidance_scale)):
        console.warn(difference)
    size = settings.pipeline.height, settings.pipeline.width, settings.pipeline.num_frames
    sample_target.check_size(target, pipe, len(conditions), settings.batch_size, *size)
    settings, policy = speedup.calibrate(pipe, settings, policy, conditions, arguments)
    output = _open_output(pipe, settings, target, conditions, name, run, resume)
    with output, console.progress("denoise", _count_steps(pipe, settings, conditions, output)) as advance:
        arguments |= {"skip": output.has, "on_halved": _halved(settings, output, advance)}
        made = generate_batches(pipe, conditions, policy=policy, advance=advance, **arguments)
        for batch, part in made:
            output.add(batch, part)
        written = output.finish()
    _report(pipe, output, written, policy)


def _open_output(pipe, settings: SampleSettings, target: Path, conditions: list, name, run: dict, resume: bool):
    """Return what writes the samples: a ``SampleFile`` or a ``SampleFolder``."""
    from skipdit_cli.sampling.pixels import is_video

    record = replay.make_record(settings, name, conditions)
    if target.suffix:
        return sample_files.SampleFile(target, settings.npz, record)
    suffix = ".mp4" if is_video(pipe) else f".{settings.format or 'png'}"
    return sample_files.SampleFolder(target, settings.npz, record, conditions, suffix, run, resume)


def _halved(settings: SampleSettings, output, advance) -> Callable[[Any], None]:
    """Return what is called where a batch does not fit into memory: it warns, and the records say the smaller one."""

    def note(halving: Any) -> None:
        console.warn(halving.sentence)
        output.record["batch_size"] = halving.batch_size
        steps = count_steps(settings.pipeline, settings.num_inference_steps)
        advance.extend(halving.batches * steps + halving.lost_steps)

    return note


def _count_steps(pipe, settings: SampleSettings, conditions: list, output) -> int:
    """Return the number of denoising steps over all batches that are not there yet."""
    from skipdit_cli.sampling.generate import batches

    slices = batches(pipe, conditions, settings.batch_size, alone=settings.pipeline.image is not None)
    return sum(not output.has(b) for b in slices) * count_steps(settings.pipeline, settings.num_inference_steps)


def _describe_run(settings: SampleSettings, name, conditions: list, outline) -> dict:
    """Return all that the files of a run depend on, as plain data: what a resumed run has to share."""
    record, npz = replay.make_record(settings, name, conditions), settings.npz
    weights = max((path.stat().st_mtime_ns for path in outline.folder.glob("*/*.safetensors")), default=0)
    versions = {package: version(package) for package in ("torch", "diffusers")}
    facts = {"weights of the model": weights, "versions": {**versions, "skipdit": __version__}}
    return {**record, "npz": npz and str(npz), "format": settings.format, **facts}


def _choose_target(
    settings: SampleSettings, model: str | None, preset: str | None, plan: str | None, from_file: Path | None
) -> Path:
    reads = {"model": model, "--preset": preset and preset_path(preset), "--plan": plan, "--from": from_file}
    reads |= {"--image": settings.pipeline.image, "--prompts-file": settings.pipeline.prompts_file}
    reads |= {"--lora": settings.pipeline.lora, "--vae": settings.vae}
    return sample_target.choose_target(settings.output, settings.npz, settings.overwrite, reads, settings.format)


def open_pipeline(outline, settings: SampleSettings, device, dtype):
    """Load the pipeline, with another VAE if one was given, and prepare it."""
    from skipdit_cli.models import load_pipeline, load_vae

    offline, parts = settings.pipeline.hub.local_files_only, {}
    if settings.vae is not None:
        parts["vae"] = load_vae(settings.vae, dtype=dtype, local_files_only=offline)
    pipe = load_pipeline(outline.folder, dtype=dtype, **parts)
    return pipeline_setup.prepare(pipe, settings.pipeline, device, settings.compile)


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
    from skipdit_cli.sampling.generate import join
    from skipdit_cli.sampling.pixels import is_pixel_space

    cost = join(output.costs, policy) if output.costs else None  # none where an interrupted run had made all
    if getattr(pipe, "vae", True) is None and not is_pixel_space(pipe):
        console.warn("this model works on latents and has no VAE here: what is shown are its first latent channels.")
    shape, record, report = output.shape, output.record, cost and cost.report
    _warn_about_size(shape, record)
    made = console.count(shape[0], "image" if len(shape) == 4 else "video")
    if len(shape) == 5:
        made += f" of {console.count(shape[1], 'frame')}"
    if output.kept:
        made += f", {output.kept:,} of them from before the interruption,"
    console.say(f"{made} in {cost.denoise_seconds if cost else 0:.2f} s of denoising: {output.target}")
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
