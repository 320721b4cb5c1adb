"""``skipdit bench``: the speed and quality of every way to sample a model, with and without the cache."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any

from skipdit_cli import console, files
from skipdit_cli.bench.bench_settings import BenchSettings
from skipdit_cli.commands import bench_policies, bench_report, options, parsing, pipeline_setup, report_file
from skipdit_cli.commands.flags import with_settings
from skipdit_cli.errors import CheckError, UsageError
from skipdit_cli.presets import preset_path
from skipdit_cli.settings import run_arguments

EXACT_LIMIT = 300.0
"""Seconds that the exact solutions may take where ``--exact`` is not given."""


@with_settings(BenchSettings)
def bench(
    model: options.Model = None,
    preset: options.Preset = None,
    settings: BenchSettings = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure the speed and quality of every way to sample a model.

    One interleaved run: vanilla, Skip-DiT, both with the cache, and vanilla with fewer steps, of the best sampler too.

    skipdit bench --preset dit-xl-2-256 --random-weights --cache-interval 2,3 --steps 10
    """
    settings.check()
    policies, speedups = bench_policies.make_all(settings)
    plans = bench_policies.read_plans(settings)
    conditions = _parse_conditions(settings)
    _check_output(settings, model, preset)
    if settings.output is not None:
        files.hold(settings.output)
    inputs = parsing.read_inputs(settings.pipeline)

    from skipdit_cli.bench.peers.known_peers import parse_peers
    from skipdit_cli.bench.results.html_report import collect_samples, make_report
    from skipdit_cli.bench.results.picture import save_pictures
    from skipdit_cli.bench.results.tables import save_report
    from skipdit_cli.bench.run import Bench
    from skipdit_cli.cards.card import check_card

    card = check_card(model) if settings.update_card else None
    device, dtype = pipeline_setup.choose_device(settings.pipeline, settings.compile)
    if not settings.random_weights:
        _check_unloaded(settings, policies, conditions, inputs, model, preset)
    pipe, vanilla = _open_pipelines(settings, model, preset, device, dtype)
    conditions = _choose_conditions(settings, conditions, pipe)
    settings = _fill_in_defaults(settings, pipe, conditions)
    policies = bench_policies.with_thresholds(pipe, policies, speedups, conditions, settings, inputs)
    peers = parse_peers(settings.peers)
    run = Bench(pipe, policies, conditions, vanilla=vanilla, peers=peers, **run_arguments(settings), **inputs)
    bench_policies.add_plans(run, plans, settings)
    _check_has_pictures(run, settings)
    record = _make_record(settings, conditions, inputs["arguments"])
    rows = _measure(run, settings, {"model": model or preset, "vanilla": settings.vanilla, **record})
    report = run.report(rows, model or preset, record)
    if settings.overhead:
        bench_report.add_overhead(report)
    if settings.output is not None:
        with files.fill_folder(settings.output, files.BENCH) as folder:
            save_report(report, folder)
        run.kept.remove()
    bench_report.print_report(report, settings.output, card)
    if settings.picture is not None:
        save_pictures(run, rows, settings.picture_paths())
        console.say(f"Wrote {' and '.join(map(str, settings.picture_paths()))}.")
    if settings.html is not None:
        report_file.save_html(make_report(report, collect_samples(run), f"Bench of {report['model']}"), settings.html)
    _check_minimums(rows, settings.min_speedup, settings.min_psnr, report["warnings"])


def _parse_conditions(settings: BenchSettings) -> dict[str, Any]:
    """Return the class labels and the prompts that were given, each None where there are none."""
    return {
        "class_labels": settings.class_labels,
        "prompts": parsing.read_prompts(settings.pipeline.prompt, settings.pipeline.prompts_file),
    }


def _check_output(settings: BenchSettings, model: str | None, preset: str | None) -> None:
    output, shared = settings.output, settings.pipeline
    models = {"model": model, "--vanilla": settings.vanilla, "--lora": shared.lora}
    inputs = {"--image": shared.image, "--prompts-file": shared.prompts_file}
    reads = {**models, **inputs, "--preset": preset and preset_path(preset)}
    for path in settings.picture_paths():
        files.check_apart(path, reads)
        files.check_outside(path, models)
        files.check_file(path, settings.overwrite)
    report_file.check_html(settings.html, settings.overwrite, reads)
    if output is None:
        return
    files.check_apart(output, reads)
    files.check_outside(output, models)
    if output / "bench.png" in settings.picture_paths():
        raise UsageError(f"Got --picture {settings.picture}, which --output {output} writes; give another name.")
    files.check_folder(output, files.BENCH, settings.overwrite)


def _check_unloaded(
    settings: BenchSettings, policies: list, conditions: dict, inputs: dict, model: str | None, preset: str | None
) -> None:
    """Refuse what the model cannot run, as far as its outline tells, before its weights are loaded."""
    from skipdit_cli.models import named_model
    from skipdit_cli.sampling import refusals

    outline = pipeline_setup.outline_of(named_model(model, preset), settings.pipeline)
    samples = _choose_conditions(settings, conditions, outline)
    for policy in policies:
        refusals.check_unloaded(outline, samples, policy, **run_arguments(settings), **inputs)


def _choose_conditions(settings: BenchSettings, conditions: dict, pipe) -> list[int] | list[str] | list[None]:
    """Return one condition per sample: the given ones, or class labels spread evenly over those of the model.

    The conditions of an unconditional model, and of a text-conditional one with random weights, are None.

    Args:
        pipe: The pipeline or its outline.
    """
    from skipdit_cli.sampling.pipelines.call_arguments import is_text_conditional
    from skipdit_cli.sampling.pixels import check_memory

    if not settings.random_weights:
        pipeline_setup.check_conditions(pipe, **conditions)
    shared, count = settings.pipeline, settings.batch_size or (1 if settings.random_weights else 4)
    labels, classes = conditions["class_labels"], _count_classes(pipe)
    samples = conditions["prompts"] if labels is None else pipeline_setup.parse_labels(labels, pipe)
    check_memory(pipe, len(samples or range(count)), shared.height, shared.width, shared.num_frames)
    if samples:
        return samples
    if classes is None or is_text_conditional(pipe):
        return [None] * count
    return pipeline_setup.spread_labels(classes, count)


def _count_classes(pipe) -> int | None:
    return pipe.transformer.config.get("num_embeds_ada_norm")


def _open_pipelines(settings: BenchSettings, model: str | None, preset: str | None, device, dtype) -> tuple:
    """Return the pipeline to bench and that of the rows without skip branches, which may be the same one."""
    from skipdit_cli.models import open_model

    shared = settings.pipeline
    loading = {"dtype": dtype, **vars(shared.hub)}
    pipe = _random_pipeline(settings, model, preset, dtype) if settings.random_weights else None
    pipes = [pipe or open_model(model, preset, **loading)]
    if settings.vanilla is not None:
        pipes.append(open_model(settings.vanilla, None, branches=False, **loading))
    pipes = [pipeline_setup.prepare(pipe, shared, device) for pipe in pipes]
    return pipes[0], pipes[-1]


def _random_pipeline(settings: BenchSettings, model: str | None, preset: str | None, dtype):
    """Return the model of the preset with random weights and the skip branches of ``--merge``."""
    from skipdit_cli.models import random_pipeline
    from skipdit_cli.presets import load_preset
    from skipdit_cli.skip import MERGES

    if settings.merge not in (*MERGES, "none"):
        raise UsageError(f"Got --merge '{settings.merge}' but expected one of {', '.join(MERGES)}, none.")
    if preset is None or model is not None:
        raise UsageError("Got --random-weights, which needs --preset NAME and no --model; see 'skipdit presets list'.")
    merge = None if settings.merge == "none" else settings.merge
    return random_pipeline(load_preset(preset), dtype, settings.pipeline.seed, merge)


def _fill_in_defaults(settings: BenchSettings, pipe, conditions: list) -> BenchSettings:
    """Return the settings with the guidance scale and the size of the largest batch that are in force."""
    from skipdit_cli.sampling.generate import batches
    from skipdit_cli.sampling.run_settings import default_guidance

    scale, default = settings.guidance_scale, default_guidance(pipe)
    if scale is None:
        scale = 1.0 if settings.random_weights and default is not None else default
    slices = batches(pipe, conditions, settings.batch_size, alone=settings.pipeline.image is not None)
    return replace(settings, guidance_scale=scale, batch_size=max(part.stop - part.start for part in slices))


def _measure(run, settings: BenchSettings, record: dict) -> list[dict]:
    """Compute the exact solutions, unless they are off, and run all cases in rounds; return the rows.

    Args:
        record: The settings that the rows depend on.
    """
    from skipdit_cli.bench.kept_rounds import KeptRounds
    from skipdit_cli.bench.results.tables import environment
    from skipdit_cli.bench.solving import count_steps, solve
    from skipdit_cli.bench.timing import MOST_ROUNDS
    from skipdit_cli.families.fingerprint import weights_fingerprint
    from skipdit_cli.sampling.fitting import compiled

    machine = environment(run.pipe.transformer.device, run.pipe.transformer.dtype)
    weights = [weights_fingerprint(pipe) for pipe in (run.pipe, run.vanilla)]
    basis = {**record, **machine, "date": None, "weights": weights, "rounds": settings.rounds}
    kept = KeptRounds(settings.output, {name: repr(value) for name, value in basis.items()}, settings.overwrite)
    if settings.exact or (settings.exact is None and not settings.random_weights):
        run.add_baselines()
        with console.progress("Exact solution", count_steps(run)) as advance:
            solve(run, EXACT_LIMIT if settings.exact is None else None, advance)
    with (
        compiled([run.pipe, run.vanilla]) if settings.compile else nullcontext(),
        console.progress("Bench", run.steps((settings.rounds or MOST_ROUNDS) - kept.rounds)) as advance,
    ):
        try:
            return run.run(settings.rounds, max(settings.warmup, int(settings.compile)), advance, kept)
        except KeyboardInterrupt:
            if kept.path is not None and sum(kept.sessions):
                rounds = console.count(sum(kept.sessions), "round")
                console.say(f"{kept.path} keeps {rounds}; the same command goes on from there.")
            raise


def _check_has_pictures(run, settings: BenchSettings) -> None:
    """Refuse what needs pixels of a model that decodes none."""
    for flag, value in (("--min-psnr", settings.min_psnr), ("--picture", settings.picture)):
        if value is not None and not run.has_pictures:
            raise UsageError(f"Got {flag}, but this model has no VAE to make pictures; leave the flag out.")


def _make_record(settings: BenchSettings, conditions: list, arguments: dict) -> dict:
    """Return what the report records of the settings, beside the device and the versions."""
    shared = settings.pipeline
    recorded = [field.name for field in fields(settings) if field.metadata.get("recorded")]
    return {
        **run_arguments(settings),
        "arguments": arguments,
        **_sampler_record(shared),
        "image": shared.image and str(shared.image),
        "prompt" if isinstance(conditions[0], str) else "class_labels": conditions,
        "lora": shared.lora,
        "cpu_offload": shared.cpu_offload,
        "vae_tiling": shared.vae_tiling,
        **{name: getattr(settings, name) for name in recorded},
    }


def _sampler_record(shared) -> dict:
    """Return the flags of the sampler that are set beside the name of its scheduler."""
    values = {name: getattr(shared, name) for name in ("scheduler_spacing", "scheduler_arg", "timesteps")}
    return {name: value for name, value in values.items() if value is not None}


def _check_minimums(rows: list[dict], min_speedup: float | None, min_psnr: float | None, warnings: list[str]) -> None:
    """Refuse a bench of which no cached row reaches both minimums, or of which the load of the machine hides it.

    Raises:
        CheckError: There is no such row, or the times are too uncertain to tell.
    """
    from skipdit_cli.bench.machine import is_in_doubt

    name = "skip-cache" if any(row["case"] == "skip-cache" for row in rows) else "vanilla-cache"
    cached = [row for row in rows if row["case"] == name]
    good = [row for row in cached if min_psnr is None or row["identical"] or (row["psnr"] or 0) >= min_psnr]
    if good and min_speedup is not None and warnings:
        fastest = max(good, key=lambda row: row["speedup_vs_vanilla"])
        if is_in_doubt(fastest["speedup_vs_vanilla"], fastest["limit"], min_speedup):
            raise CheckError(
                f"Got --min-speedup {min_speedup:g}, which these times cannot judge (measured "
                f"{fastest['speedup_vs_vanilla']:.2f}, limit {fastest['limit']:.2f}): {warnings[0]} "
                "Run it again on an idle machine."
            )
    if any(row["speedup_vs_vanilla"] >= (min_speedup or 0) for row in good):
        return
    if not good:
        best = max(row["psnr"] or 0 for row in cached)
        raise CheckError(f"No {name} row reaches --min-psnr {min_psnr:g}; the best has {best:.1f} dB.")
    best = max(row["speedup_vs_vanilla"] for row in good)
    suffix = "" if min_psnr is None else f" with --min-psnr {min_psnr:g}"
    raise CheckError(f"No {name} row reaches --min-speedup {min_speedup:g}{suffix}; the best has {best:.2f}.")
