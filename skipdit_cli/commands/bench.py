"""``skipdit bench``: what the cache gains, what it costs, and what else could be had for the same time."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import Annotated

import typer

from skipdit_cli import console, files
from skipdit_cli.commands import pipeline_options
from skipdit_cli.commands.conditions import NegativePrompt, Prompt, PromptsFile
from skipdit_cli.commands.options import (
    Debug,
    Device,
    Dtype,
    Json,
    LocalFilesOnly,
    Model,
    Output,
    Overwrite,
    Preset,
    Revision,
    Seed,
)
from skipdit_cli.commands.parsing import (
    check_conditions,
    parse_integers,
    parse_pipeline_arguments,
    read_image,
    read_prompts,
)
from skipdit_cli.errors import CheckError, UsageError
from skipdit_cli.presets import preset_path
from skipdit_cli.sampling.sample_settings import check_strength
from skipdit_cli.settings import CACHE

RUN = "Measuring"


def bench(
    model: Model = None,
    preset: Preset = None,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights", help="Build the preset's transformer at full size; its speed alone, no download."
        ),
    ] = False,
    merge: Annotated[
        str, typer.Option(help="Skip branches for --random-weights: residual, replace or none.")
    ] = "residual",
    vanilla: Annotated[
        str | None,
        typer.Option(help="Model of the rows without branches; else this model's own trunk, its branches taken off."),
    ] = None,
    cache_layers: Annotated[str, typer.Option(help="List of N.", rich_help_panel=CACHE)] = "1",
    cache_interval: Annotated[
        str | None,
        typer.Option(help="List of K (the paper's n). 2,3,5 if no --full-steps either.", rich_help_panel=CACHE),
    ] = None,
    full_steps: Annotated[
        str | None, typer.Option(help="List of M: as many full steps, late-dense.", rich_help_panel=CACHE)
    ] = None,
    forecast: Annotated[str, typer.Option(help="List of reuse, linear, taylor2.", rich_help_panel=CACHE)] = "reuse",
    cache_target: Annotated[str, typer.Option(help="List of boundary, residual.", rich_help_panel=CACHE)] = "boundary",
    num_inference_steps: Annotated[int, typer.Option("--num-inference-steps", "--steps", min=1)] = 50,
    guidance_scale: Annotated[
        float | None,
        typer.Option(min=0, help="As of sample; 1.0 with --random-weights.", show_default=False),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="ddim, ddpm, dpm++, ...; the model's own if not given.")
    ] = None,
    class_labels: Annotated[
        str | None, typer.Option(help="One class a picture; evenly spread if not given.", show_default=False)
    ] = None,
    prompt: Prompt = None,
    prompts_file: PromptsFile = None,
    negative_prompt: NegativePrompt = None,
    num_frames: pipeline_options.NumFrames = None,
    height: pipeline_options.Height = None,
    width: pipeline_options.Width = None,
    image: pipeline_options.Image = None,
    strength: pipeline_options.Strength = None,
    pipeline_arg: pipeline_options.PipelineArg = None,
    lora: pipeline_options.Lora = None,
    cpu_offload: pipeline_options.CpuOffload = None,
    vae_tiling: pipeline_options.VaeTiling = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Pictures at once. 4; 1 with --random-weights.", show_default=False)
    ] = None,
    seed: Seed = 0,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="How often every case runs. 3, or as many as fit 5 minutes.", rich_help_panel=RUN),
    ] = None,
    warmup: Annotated[
        int, typer.Option(min=0, help="Uncounted short runs before; with --compile at least one.", rich_help_panel=RUN)
    ] = 1,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the model.", rich_help_panel=RUN)] = False,
    min_speedup: Annotated[
        float | None,
        typer.Option(min=0, help="Exit 3 unless a cached row is this much faster than vanilla.", rich_help_panel=RUN),
    ] = None,
    min_psnr: Annotated[
        float | None, typer.Option(help="Exit 3 unless that row has this PSNR as well.", rich_help_panel=RUN)
    ] = None,
    output: Output = None,
    overwrite: Overwrite = False,
    update_card: Annotated[
        bool, typer.Option("--update-card", help="Write the table into README.md of the --model folder.")
    ] = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    local_files_only: LocalFilesOnly = False,
    revision: Revision = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure speed and quality beside every alternative.

    One interleaved run: vanilla, Skip-DiT, both with the cache, and vanilla with fewer steps.

    skipdit bench --preset dit-xl-2-256 --random-weights --cache-interval 2,3 --steps 10
    """
    from skipdit_cli.bench.cases import make_policies
    from skipdit_cli.bench.run import Bench, compiled
    from skipdit_cli.bench.tables import READING, results, save_report, table
    from skipdit_cli.cards.card import check_card, put_bench
    from skipdit_cli.models import named_model
    from skipdit_cli.models.outline import read_outline
    from skipdit_cli.sampling import fitting
    from skipdit_cli.sampling.device import select_device
    from skipdit_cli.sampling.generate import batches
    from skipdit_cli.sampling.refusals import check_unloaded

    intervals = "2,3,5" if cache_interval is None and full_steps is None else cache_interval
    policies = make_policies(
        parse_integers(cache_layers, "--cache-layers"),
        parse_integers(intervals or "", "--cache-interval"),
        parse_integers(full_steps or "", "--full-steps"),
        _words(forecast),
        _words(cache_target),
    )
    labels = None if class_labels is None else parse_integers(class_labels, "--class-labels")
    prompts = read_prompts(prompt, prompts_file)
    if random_weights and (prompts or negative_prompt):
        raise UsageError("Got a prompt with --random-weights, which has no text encoder; leave it out.")
    if output is not None:
        models = {"model": model, "--vanilla": vanilla, "--lora": lora}
        read = {"--image": image, "--prompts-file": prompts_file, "--preset": preset and preset_path(preset)}
        files.check_apart(output, {**models, **read})
        files.check_outside(output, models)
        files.check_folder(output, files.BENCH, overwrite)
    asked = {"negative_prompt": negative_prompt, "num_frames": num_frames, "height": height, "width": width}
    size = (height, width, num_frames)
    for flag, value in {"--num-frames": num_frames, "--height": height, "--width": width}.items():
        if value is not None and value < 1:
            raise UsageError(f"Got {flag} {value} but expected 1 or more.")
    check_strength(strength, image, num_inference_steps)
    asked |= {"strength": strength, "arguments": parse_pipeline_arguments(pipeline_arg)}
    card = check_card(model) if update_card else None
    start = read_image(image)
    where, precision = select_device(device, dtype)
    fitting.check_offload(cpu_offload, where, compile)
    fitting.check_lora(lora)
    if not random_weights:
        hub = {"revision": revision, "local_files_only": local_files_only}
        outline = read_outline(named_model(model, preset), **hub)
        outline = outline if image is None else replace(outline, kind=fitting.image_pipeline_class(outline.kind))
        of_outline = _samples(outline, labels, prompts, batch_size, random_weights, size)
        for policy in policies:
            check_unloaded(outline, of_outline, policy, guidance_scale=guidance_scale, image=start, **asked)
    with ExitStack() as stack:
        folder = stack.enter_context(files.replace_folder(output, files.BENCH, overwrite)) if output else None
        loading = {"dtype": precision, "local_files_only": local_files_only, "revision": revision}
        pipes = _open(model, preset, merge if random_weights else None, seed, vanilla, loading)
        for at, pipe in enumerate(pipes):
            pipes[at] = pipe = pipe if image is None else fitting.image_pipeline(pipe)
            fitting.fit(pipe, where, lora, cpu_offload, vae_tiling, local_files_only=local_files_only)
        pipe = pipes[0]
        samples = _samples(pipe, labels, prompts, batch_size, random_weights, size)
        at_once = batches(pipe, samples, batch_size, alone=start is not None)
        sampling = {
            "num_inference_steps": num_inference_steps,
            "guidance_scale": _guidance(guidance_scale, pipe, random_weights),
            "scheduler": scheduler,
            "seed": seed,
            "batch_size": max(batch.stop - batch.start for batch in at_once),
            **asked,
        }
        run = Bench(pipe, policies, samples, vanilla=pipes[-1], image=start, **sampling)
        if min_psnr is not None and not run.has_pictures:
            raise UsageError("Got --min-psnr, but this model has no VAE to make pictures; leave the flag out.")
        stack.enter_context(compiled(pipes) if compile else nullcontext())
        with console.progress("Bench", run.steps(rounds)) as advance:
            rows = run.run(rounds, max(warmup, 1) if compile else warmup, advance)
        settings = {**sampling, "image": image and str(image), **_conditions(samples), "lora": lora}
        settings |= {"cpu_offload": cpu_offload, "vae_tiling": vae_tiling, "warmup": warmup, "compile": compile}
        report = run.report(rows, model or preset, {**settings, "random_weights": random_weights})
        if folder:
            save_report(report, folder)
    console.table(*table(rows))
    for line in (READING, *report["notes"], *([f"Wrote {output}/bench.json, bench.md and bench.png."] * bool(output))):
        console.say(line)
    if card:
        put_bench(card, results(report))
        console.say(f"Wrote the table into {card}.")
    console.emit(report)
    _check(rows, min_speedup, min_psnr)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _samples(
    pipe,
    labels: list[int] | None,
    prompts: list[str] | None,
    batch_size: int | None,
    random_weights: bool,
    size: tuple[int | None, int | None, int | None],
) -> list[int] | list[str] | list[None]:
    """The classes or texts asked for, else classes evenly over the model's; None for each of a model that has none,
    and where random weights have no text."""
    from skipdit_cli.sampling.pipelines.call_arguments import is_text_conditional
    from skipdit_cli.sampling.pixels import check_memory

    if not random_weights:
        check_conditions(pipe, labels, prompts)
    count, classes = batch_size or (1 if random_weights else 4), pipe.transformer.config.get("num_embeds_ada_norm")
    check_memory(pipe, len(labels or prompts or range(count)), *size)
    if labels or prompts:
        return labels or prompts
    if classes is None or is_text_conditional(pipe):
        return [None] * count
    return [at * classes // count % classes for at in range(count)]


def _guidance(given: float | None, pipe, random_weights: bool) -> float:
    from skipdit_cli.sampling.run_settings import default_guidance

    own = default_guidance(pipe)
    return given if given is not None else 1.0 if random_weights and own is not None else own


def _conditions(samples: list) -> dict:
    """What was sampled, for the report."""
    return {"prompt" if isinstance(samples[0], str) else "class_labels": samples}


def _open(model, preset, random_merge, seed, vanilla, loading) -> list:
    """The pipeline to bench, and if it is another one that for the rows without branches."""
    from skipdit_cli.models import open_model, random_pipeline
    from skipdit_cli.presets import load_preset
    from skipdit_cli.skip import MERGES

    if random_merge is None:
        pipe = open_model(model, preset, **loading)
    elif random_merge not in (*MERGES, "none"):
        raise UsageError(f"Got --merge '{random_merge}' but expected one of {', '.join(MERGES)}, none.")
    elif preset is None or model is not None:
        raise UsageError("Got --random-weights, which needs --preset NAME and no --model; see 'skipdit presets list'.")
    else:
        merge = None if random_merge == "none" else random_merge
        pipe = random_pipeline(load_preset(preset), loading["dtype"], seed, merge)
    return [pipe, *([] if vanilla is None else [open_model(vanilla, None, branches=False, **loading)])]


def _check(rows: list[dict], min_speedup: float | None, min_psnr: float | None) -> None:
    """Raise ``CheckError`` unless one cached row reaches every given minimum."""
    name = "skip-cache" if any(row["case"] == "skip-cache" for row in rows) else "vanilla-cache"
    cached = [row for row in rows if row["case"] == name]
    good = [row for row in cached if min_psnr is None or row["identical"] or (row["psnr"] or 0) >= min_psnr]
    if any(row["speedup_vs_vanilla"] >= (min_speedup or 0) for row in good):
        return
    if not good:
        best = max(row["psnr"] or 0 for row in cached)
        raise CheckError(f"No {name} row reaches --min-psnr {min_psnr:g}; the best has {best:.1f} dB.")
    best = max(row["speedup_vs_vanilla"] for row in good)
    within = "" if min_psnr is None else f" with --min-psnr {min_psnr:g}"
    raise CheckError(f"No {name} row reaches --min-speedup {min_speedup:g}{within}; the best has {best:.2f}.")
