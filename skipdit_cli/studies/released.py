"""The study of the released weights: conversion, official schedules, latency, and inputs of FID and VBench."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from skipdit_cli.console import count
from skipdit_cli.studies.released_weights import requirements
from skipdit_cli.studies.released_weights.latency import latency
from skipdit_cli.studies.released_weights.released_models import (
    CLASSES,
    PROMPTS,
    UNCACHED,
    VAE,
    Released,
    cases_of,
    model_named,
    sampling_flags,
)
from skipdit_cli.studies.released_weights.vbench import name_for_vbench
from skipdit_cli.studies.spread import spread
from skipdit_cli.studies.study import Findings, Study
from skipdit_cli.studies.study_run import StudyRun

ARRAY = "samples.npz"
"""The array of all samples of a way to sample, in its folder."""
VBENCH = "vbench"


@dataclass(frozen=True)
class ReleasedSettings:
    """The settings of study ``released``.

    Args:
        models: Names of ``released_models.MODELS``.
        weights: The folder with the released files, the VAE and the text encoder.
        intervals: The intervals of the caches, of those that have a preset.
        image_samples, video_samples: Samples of each way to sample a model without prompts.
        videos_per_prompt: Videos for each prompt; images are one for each.
        video_prompts, image_prompts: Text files with one prompt a line.
        latency_rounds, latency_batch: Timed rounds, and samples of each.
        num_inference_steps: Denoising steps; None for the official number.
        batch_size: Samples of a batch; None for the default of ``sample``.
        tflops: The throughput of the device for the estimate of hours; None to measure it.
        utilisation: The share of it that sampling reaches.
        num_attention_heads, sample_size, num_frames: Flags of ``convert``, for files of another size.
    """

    models: tuple[str, ...]
    weights: str
    intervals: tuple[int, ...]
    image_samples: int
    video_samples: int
    videos_per_prompt: int
    video_prompts: str
    image_prompts: str
    latency_rounds: int
    latency_batch: int = 1
    num_inference_steps: int | None = None
    batch_size: int | None = None
    tflops: float | None = None
    utilisation: float = 0.4
    num_attention_heads: int | None = None
    sample_size: int | None = None
    num_frames: int | None = None


def commands(settings: ReleasedSettings, seeds: tuple[int, ...]) -> dict[str, str]:
    """Return one conversion for each model, and one run of ``sample`` for each way to sample it."""
    lines = {}
    for name in settings.models:
        model = model_named(name)
        if model.weight_bytes:
            lines[name] = _convert(settings, model)
        for case, preset in cases_of(model, settings.intervals).items():
            lines[f"{name}-{case}"] = _sample(settings, name, f"{name}-{case}", preset)
    return lines


def _convert(settings: ReleasedSettings, model: Released) -> str:
    words = ["convert", "-m", str(Path(settings.weights, model.file))]
    for companion in model.companions:
        words += ["--vae" if companion == VAE else "--text-from", str(Path(settings.weights, companion))]
    flags = {"num-attention-heads": settings.num_attention_heads}
    if model.kind == PROMPTS:
        flags |= {"sample-size": settings.sample_size, "num-frames": settings.num_frames}
    return shlex.join([*words, *_flags(flags)])


def _sample(settings: ReleasedSettings, name: str, output: str, preset: str | None) -> str:
    model = model_named(name)
    flags: dict[str, Any] = sampling_flags(model) if preset is None else {"preset": preset}
    if model.kind == PROMPTS:
        flags |= {"prompts-file": requirements.prompts_file(settings, model)}
        flags |= {"num-images": settings.videos_per_prompt if model.is_video else 1}
    else:
        samples = settings.video_samples if model.is_video else settings.image_samples
        flags |= {"num-images": samples}
        if model.kind == CLASSES:
            flags |= {"class-labels": f"0-{min(samples, model.classes) - 1}"}
    flags |= {"num-inference-steps": settings.num_inference_steps or flags.get("num-inference-steps")}
    flags |= {"batch-size": settings.batch_size}
    line = shlex.join(["sample", *_flags(flags)]) + f" -m {_source(settings, name)}"
    if not (model.is_video and model.kind == PROMPTS):  # VBench reads video files
        line += f" --npz {{run}}/{output}/{ARRAY}"
    return line


def _source(settings: ReleasedSettings, name: str) -> str:
    """Return the pipeline folder of a model, in a command line."""
    model = model_named(name)
    return f"{{run}}/{name}" if model.weight_bytes else shlex.quote(str(Path(settings.weights, model.file)))


def _flags(values: dict[str, Any]) -> list[str]:
    return [word for name, value in values.items() if value is not None for word in (f"--{name}", str(value))]


def measure(run: StudyRun) -> Findings:
    """Time every way to sample each model, and name the videos for VBench."""
    settings: ReleasedSettings = run.settings
    tables = {name: _latency(run, name) for name in settings.models}
    inputs = [_inputs(run, name, case) for name in settings.models for case in tables[name]]
    return _find(settings, tables, inputs)


def _latency(run: StudyRun, name: str) -> dict[str, Any]:
    settings: ReleasedSettings = run.settings
    model, batch = model_named(name), settings.latency_batch
    conditions: list[Any] = [None] * batch
    if model.kind == CLASSES:
        conditions = list(range(batch))
    elif model.kind == PROMPTS:
        prompts = requirements.read_prompts(requirements.prompts_file(settings, model))
        conditions = [prompts[at % len(prompts)] for at in range(batch)]
    flags = sampling_flags(model)
    flags["num-inference-steps"] = settings.num_inference_steps or flags["num-inference-steps"]
    source = str(run.folder(name)) if model.weight_bytes else str(Path(settings.weights, model.file))
    return run.measured(
        f"{name}-latency",
        latency,
        model=source,
        cases=cases_of(model, settings.intervals),
        conditions=conditions,
        flags=flags,
        rounds=settings.latency_rounds,
        device=run.device,
    )


def _inputs(run: StudyRun, name: str, case: str) -> dict[str, Any]:
    """Return where the input of an evaluation lies, and how many samples it has; make that of VBench."""
    model, output = model_named(name), f"{name}-{case}"
    paths = [path for path in run.result(output)["files"] if Path(path).stem.isdigit()]
    if not (model.is_video and model.kind == PROMPTS):
        samples = [path for path in paths if Path(path).suffix != ".json"]
        if model.is_video:
            samples = [path for path in samples if Path(path).suffix == ".mp4"]
        return {"name": output, "input": f"{output}/{ARRAY}", "samples": len(samples)}
    from skipdit_cli import files

    files.note(run.place, f"{VBENCH}/{output}/")
    total = name_for_vbench(
        [path for path in paths if Path(path).suffix == ".mp4"],
        requirements.read_prompts(run.settings.video_prompts),
        run.settings.videos_per_prompt,
        str(run.place / VBENCH / output),
    )
    return {"name": output, "input": f"{VBENCH}/{output}", "samples": total}


def _find(settings: ReleasedSettings, tables: dict[str, Any], inputs: list[dict[str, Any]]) -> Findings:
    """Return the latency table beside the paper's figures, and the inputs of the evaluations."""
    from skipdit_cli.reports import Column, Table

    rows, numbers, compared = [], {}, []
    for name, table in tables.items():
        model = model_named(name)
        for case, measured in table.items():
            speedups = [one / own for one, own in zip(table[UNCACHED]["seconds"], measured["seconds"])]
            psnrs = [value for value in measured["psnr"] if value is not None]
            interval = None if case == UNCACHED else int(case[1:])
            paper = model.speedups.get(interval) if interval else None
            paper_psnr = model.psnrs.get(interval) if interval else None
            numbers[f"{name}-{case}"] = {**measured, "speedups": speedups, "paper": paper, "paper_psnr": paper_psnr}
            rows.append(
                [
                    f"{name} {case}",
                    spread(measured["seconds"], 3),
                    spread(speedups, 2),
                    _number(paper, "{:.2f}"),
                    spread(psnrs, 1) if psnrs else "-",
                    _number(paper_psnr, "{:.1f}"),
                ]
            )
            if paper is not None:
                compared.append(f"{name} {case} {fmean(speedups):.2f} times (the paper's figure: {paper:.2f})")
    columns = [
        Column("way to sample", "The model, and the interval n of its official cache.", numeric=False),
        Column("seconds", "Seconds of denoising of a batch: mean and standard deviation over the rounds."),
        Column("speedup", "Over the uncached model with its branches, in the same round."),
        Column("paper", "The speedup in the paper's figure, on other hardware; - where no figure shows it."),
        Column("PSNR", "To the uncached samples from the same noise, in dB, mean over the rounds that differ."),
        Column("paper's PSNR", "As read off the paper's figure, within 0.05 dB; - where no figure shows it."),
    ]
    input_rows = [[each["name"], f"{each['samples']:,}", each["input"]] for each in inputs]
    inputs_table = Table(
        "Inputs of evaluations",
        [
            Column("way to sample", "As above.", False),
            Column("samples", "How many."),
            Column("input", "In the folder of the run.", False),
        ],
        input_rows,
    )
    shortened = settings.num_inference_steps is not None
    return Findings(
        f"Speedups of the caches: {', '.join(compared)}." if compared else _plain_lead(rows),
        details=[
            f"{count(len(inputs), 'input')} for FID or VBench, of {sum(i['samples'] for i in inputs):,} samples."
        ],
        tables=[Table("Latency beside the paper's figures", columns, rows), inputs_table],
        notes=[
            "Class labels are taken in turn, each as often as the others; the DiT repository draws them at random.",
            "An .npz is what ADM's evaluator and 'skipdit evaluate' read; a folder of vbench/ is one --videos_path.",
            "Numbers that only the paper's tables hold are left out, for they could not be verified.",
        ],
        warnings=["The number of denoising steps is not the official one, so the paper's figures do not apply."]
        if shortened
        else [],
        numbers={"latency": numbers, "inputs": inputs},
    )


def _plain_lead(rows: list[list[str]]) -> str:
    return "Speedups of the caches: " + ", ".join(f"{row[0]} {row[2]} times" for row in rows) + "."


def _number(value: float | None, text: str) -> str:
    return "-" if value is None else text.format(value)


STUDY = Study(
    name="released",
    summary="do the released weights give the papers' speedups?",
    claim=(
        "Skip-DiT's caches make DiT-XL/2 1.46 to 2.03 times as fast at n = 2 to 5, and text-to-video Latte 1.49 to "
        "1.90 times at n = 2 to 4 with 29.5 to 26.0 dB (figures of the repository OpenSparseLLMs/Skip-DiT)."
    ),
    settings=ReleasedSettings,
    commands=commands,
    measure=measure,
    needs=requirements.describe,
    check=requirements.check,
)
