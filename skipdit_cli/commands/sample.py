"""``skipdit sample``: images or videos of a class, of a text, or of nothing, with a chosen cache depth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from skipdit_cli import console
from skipdit_cli.commands import conditions, options, pipeline_options, replay, sample_files
from skipdit_cli.errors import UsageError
from skipdit_cli.presets import preset_path

ClassLabels = Annotated[
    str | None, typer.Option(help="Class ids, or names the model knows: 207,360. Repeated up to --num-images.")
]
NumImages = Annotated[
    int | None,
    typer.Option(help="How many; of texts, of each. One per label if not given.", show_default=False),
]
Vae = Annotated[
    str | None,
    typer.Option(help="VAE folder or hub id to decode with, in place of the model's own.", show_default=False),
]
Fps = Annotated[
    float | None,
    typer.Option(help="Frames a second of a video; its pipeline's own if not given, or 8.", show_default=False),
]
Guidance = Annotated[
    float | None,
    typer.Option(help="Classifier-free guidance; 1 turns it off. 4 for classes, what its pipeline says for texts."),
]
CfgChannels = Annotated[str, typer.Option(help="Guide 'all' noise channels (diffusers), or '3' (DiT repository).")]
Scheduler = Annotated[str | None, typer.Option(help="ddim, ddpm, dpm++, unipc, ...; the model's own if not given.")]
Steps = Annotated[int, typer.Option("--num-inference-steps", "--steps", help="Denoising steps.")]
BatchSize = Annotated[
    int | None, typer.Option(help="Samples made at once; if not given 8, of texts 1.", show_default=False)
]
Npz = Annotated[
    Path | None, typer.Option(help="Also write arr_0, uint8 [N,H,W,3], for ADM's evaluator; videos [N,F,H,W,3].")
]
From = Annotated[
    Path | None,
    typer.Option("--from", help="Make a picture or video of ours again; flags win over it.", is_eager=True),
]
Compile = Annotated[bool, typer.Option("--compile", help="torch.compile the transformer first.")]


def sample(
    model: options.Model = None,
    preset: options.Preset = None,
    from_file: From = None,
    output: options.Output = None,
    class_labels: ClassLabels = None,
    prompt: conditions.Prompt = None,
    prompts_file: conditions.PromptsFile = None,
    negative_prompt: conditions.NegativePrompt = None,
    num_images: NumImages = None,
    num_frames: pipeline_options.NumFrames = None,
    fps: Fps = None,
    num_inference_steps: Steps = 50,
    guidance_scale: Guidance = None,
    cfg_channels: CfgChannels = "all",
    scheduler: Scheduler = None,
    seed: options.Seed = 0,
    batch_size: BatchSize = None,
    cache_layers: options.CacheLayers = None,
    cache_interval: options.CacheInterval = None,
    cache_window: options.CacheWindow = None,
    full_steps: options.FullSteps = None,
    forecast: options.Forecast = "reuse",
    cache_target: options.CacheTarget = "boundary",
    height: pipeline_options.Height = None,
    width: pipeline_options.Width = None,
    image: pipeline_options.Image = None,
    strength: pipeline_options.Strength = None,
    pipeline_arg: pipeline_options.PipelineArg = None,
    lora: pipeline_options.Lora = None,
    cpu_offload: pipeline_options.CpuOffload = None,
    vae_tiling: pipeline_options.VaeTiling = False,
    vae: Vae = None,
    npz: Npz = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    compile: Compile = False,
    revision: options.Revision = None,
    local_files_only: options.LocalFilesOnly = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Sample images or videos, with a chosen cache depth.

    --cache-layers N turns the cache on: every second step then runs only the first and the last N
    blocks, which is the paper's method with n = 2 (its n is --cache-interval).

    A video goes to clip.mp4 or clip.gif, with clip.json (how it was made) and clip.png (its frames) beside it.

    skipdit sample --preset digits --class-labels 0,1,2,3 --cache-layers 1 -o digits.png

    skipdit sample -m latte-t2v --prompt "a cat on a roof" --cache-layers 1 -o cat.mp4
    """
    given = dict(locals())
    policy = options.cache_policy(cache_layers, cache_interval, cache_window, full_steps, forecast, cache_target)
    _check(given)
    prompts = conditions.read_prompts(prompt, prompts_file)
    pipeline_options.check_strength(strength, image, num_inference_steps)
    asked = {"arguments": pipeline_options.read_arguments(pipeline_arg)}
    asked["image"] = pipeline_options.read_image(image)
    reads = {"model": model, "--preset": preset and preset_path(preset), "--from": from_file, "--image": image}
    reads |= {"--prompts-file": prompts_file, "--lora": lora, "--vae": vae}
    target = sample_files.choose_target(output, npz, overwrite, reads)

    from skipdit_cli.models import load_pipeline, load_vae, named_model
    from skipdit_cli.models.outline import read_outline
    from skipdit_cli.sampling import device as devices
    from skipdit_cli.sampling import fitting, pixels, refusals, schedulers
    from skipdit_cli.sampling import generate as generation

    schedulers.check_name(scheduler)
    where, precision = devices.select_device(device, dtype)
    given["dtype"] = str(precision).removeprefix("torch.")  # what "auto" means differs from machine to machine
    fitting.check_offload(cpu_offload, where, compile)
    fitting.check_lora(lora)
    hub = {"revision": revision, "local_files_only": local_files_only}
    named = named_model(model, preset)
    outline = read_outline(named, **hub)
    outline = outline if image is None else replace(outline, kind=fitting.image_pipeline_class(outline.kind))
    conditions.check_given(outline, class_labels, prompts)
    pixels.check_memory(outline, len(prompts or [1]) * (num_images or 1), height, width, num_frames)
    samples = _texts(prompts, num_images) if prompts else _labels(class_labels, num_images, outline)
    settings = _settle(replay.recorded(given, named), samples, outline)
    sample_files.check_kind(target, outline)
    run = {name: settings[name] for name in _OF_A_RUN if name in settings} | asked
    refusals.check_unloaded(outline, samples, policy, **run)
    parts = {} if vae is None else {"vae": load_vae(vae, dtype=precision, local_files_only=local_files_only)}
    pipe = load_pipeline(outline.folder, dtype=precision, **parts)
    pipe = pipe if image is None else fitting.image_pipeline(pipe)
    sample_files.check_size(target, pipe, len(samples), height, width, num_frames)
    fitting.fit(pipe, where, lora, cpu_offload, vae_tiling, compile, local_files_only)
    batches = len(generation.batches(pipe, samples, settings["batch_size"], alone=image is not None))
    steps = int(num_inference_steps * (strength or 1))
    with console.progress("denoise", steps * batches) as advance:
        made = generation.generate(pipe, samples, policy=policy, advance=advance, **run)
    written = sample_files.save(made.images, target, npz, settings, samples, made.sounds)
    _report(pipe, made, target, written, settings)


_OF_A_RUN = (
    "negative_prompt", "num_frames", "fps", "height", "width", "num_inference_steps", "guidance_scale", "cfg_channels",
    "scheduler", "seed", "batch_size", "strength",
)  # fmt: skip


def _check(given: dict) -> None:
    counts = ("num_images", "num_frames", "height", "width", "num_inference_steps", "batch_size")
    pipeline_options.check_positive(**{name: given[name] for name in counts})
    scale, seed, fps = given["guidance_scale"], given["seed"], given["fps"]
    if scale is not None and not 0 <= scale < float("inf"):
        raise UsageError(f"Got --guidance-scale {scale:g} but expected 1 (off) or more.")
    if not 0 <= seed < 2**32:
        raise UsageError(f"Got --seed {seed} but expected 0..{2**32 - 1}.")
    if given["cfg_channels"] not in ("3", "all"):
        raise UsageError(f"Got --cfg-channels '{given['cfg_channels']}' but expected 3 or all.")
    if fps is not None and not 0 < fps <= 100:
        raise UsageError(f"Got --fps {fps:g} but expected more than 0 and at most 100.")


def _texts(prompts: list[str], num_images: int | None) -> list[str]:
    """One text a sample: ``num_images`` of the first, then as many of the next."""
    return [text for text in prompts for _ in range(num_images or 1)]


def _labels(text: str | None, num_images: int | None, pipe) -> list[int | None]:
    """One label a sample: the given ones in turn, or the model's classes in turn; None of a model without classes."""
    classes = pipe.transformer.config.get("num_embeds_ada_norm")
    names = getattr(pipe, "labels", None) or {}
    if text is None and classes is None:
        labels = [None]
    elif text is None:
        labels = list(range(classes))[: num_images or 1]
    else:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        labels = options.parse_integers(",".join(str(names.get(part, part)) for part in parts), "--class-labels")
    if not labels:
        raise UsageError("Got an empty --class-labels but expected one or more ids, such as 0,1.")
    count = num_images or len(labels)
    return [labels[i % len(labels)] for i in range(count)]


def _settle(settings: dict, samples: list[int | str | None], pipe) -> dict:
    """The settings with what depends on the model filled in, to be recorded.

    Raises:
        UsageError: One that a model of this kind has no use for.
    """
    from skipdit_cli.sampling.pipelines.call_arguments import default_fps, is_text_conditional
    from skipdit_cli.sampling.pixels import is_video
    from skipdit_cli.sampling.run_settings import default_guidance

    scale, own = settings.get("guidance_scale", default_guidance(pipe)), sample_files.which(samples)
    own["batch_size"] = settings.get("batch_size", 1 if is_text_conditional(pipe) else 8)
    if scale is not None:
        own["guidance_scale"] = scale
    if is_video(pipe):
        own["fps"] = settings.get("fps", default_fps(pipe))
    elif "fps" in settings:
        raise UsageError(f"Got --fps {settings['fps']:g}, but this model makes images; leave the flag out.")
    settings.pop("num_images", None)
    return dict(sorted({**settings, **own}.items()))  # in one order, so that a replay writes the same bytes


def _report(pipe, made, target: Path, written: list[Path], settings: dict) -> None:
    from skipdit_cli.sampling.pixels import is_pixel_space

    if getattr(pipe, "vae", True) is None and not is_pixel_space(pipe):
        console.warn("this model works on latents and has no VAE here: what is shown are its first latent channels.")
    _warn_of_size(made.images.shape, settings)
    count = len(made.latents)
    kind = "image" if made.images.ndim == 4 else "video"
    frames = made.images.shape[1]
    plural = "s" * (count > 1) + (f" of {frames} frame{'s' * (frames > 1)}" if kind == "video" else "")
    console.say(f"{count} {kind}{plural} in {made.denoise_seconds:.2f} s of denoising: {target}")
    if made.sounds:
        console.say(sample_files.where_sounds_are(target, count))
    if made.report:
        console.say(str(made.report))
        if not made.report.reused_steps:
            console.warn("no step was reused; see --cache-interval, --cache-window and --full-steps.")
    console.emit(
        {
            "command": "sample",
            "files": [str(path) for path in written],
            "settings": settings,
            "denoise_seconds": made.denoise_seconds,
            "total_seconds": made.total_seconds,
            "skip_branches": hasattr(pipe.transformer, "skip_branches"),
            "cache": vars(made.report) if made.report else None,
        }
    )


def _warn_of_size(shape: tuple[int, ...], settings: dict) -> None:
    """Some pipelines round, and say so in their own words or not at all."""
    sizes = dict(zip(("width", "height", "num_frames"), reversed(shape[1:-1])))
    for name, made in sizes.items():
        if settings.get(name, made) != made:
            console.warn(f"--{name.replace('_', '-')} {settings[name]} was asked for, and the pipeline made {made}.")
