"""``skipdit demo``: all steps from a checkpoint to a report, on a laptop and without a network."""

from __future__ import annotations

import contextlib
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import typer

from skipdit_cli import console, files
from skipdit_cli.commands import demo_report, options
from skipdit_cli.commands.flags import with_settings
from skipdit_cli.commands.nested import run_command
from skipdit_cli.errors import NotFiniteError
from skipdit_cli.settings import OUTPUT, SAMPLES, setting, steps_setting


@dataclass(frozen=True)
class DemoSettings:
    """The settings of ``skipdit demo``."""

    output: Path = setting(Path("skipdit-demo"), "Folder for the report and everything that it shows.")
    video: bool = setting(False, "Videos of moving digits in place of images.", SAMPLES)
    samples_per_digit: int | None = setting(
        None, "Samples per digit. [default: 3, or 1 with --video]", SAMPLES, minimum=1, maximum=10_000
    )
    num_inference_steps: int = steps_setting("Number of denoising steps, 13 or more.", minimum=13)
    train_steps: int | None = setting(
        None, "Optimizer steps of each training stage. [default: 100, or 60 with --video]", "Training", minimum=1
    )
    rounds: int = setting(2, "Runs of each case that are timed.", "Measurement", minimum=1, maximum=10_000)
    overwrite: bool = setting(False, "Replace an existing output.", OUTPUT)


@dataclass(frozen=True)
class Scenario:
    """What the demo trains and samples.

    Args:
        preset: The embedded model.
        samples_per_digit, train_steps: Defaults of the flags of these names.
        batch_size: Samples per training batch.
        guidance_scale: Of the samples.
        data: Folder of training videos inside the output, which is written first; None for the data of the preset.
    """

    preset: str
    samples_per_digit: int
    train_steps: int
    batch_size: int
    guidance_scale: float
    data: str | None = None


IMAGES = Scenario("digits", samples_per_digit=3, train_steps=100, batch_size=64, guidance_scale=1.5)
VIDEOS = Scenario("digits-video", samples_per_digit=1, train_steps=60, batch_size=8, guidance_scale=3.0, data="videos")

EXACT_LIMIT = 300.0
"""Seconds that the exact solutions may take; on a slower machine the report does without them."""


@with_settings(DemoSettings)
def demo(
    ctx: typer.Context,
    settings: DemoSettings = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Run everything once on handwritten digits, in a few minutes.

    Converts, trains, samples and benches the embedded model: no GPU, no network. Writes a report with pictures,
    one HTML file. With --video the digits move, and the model is trained on mp4 files that are written first.
    """
    import torch

    output, scenario = settings.output, VIDEOS if settings.video else IMAGES
    files.check_folder(output, files.DEMO, settings.overwrite)
    files.hold(output)
    torch.set_num_threads(1)  # more threads gain nothing for matrices this small, and cost much on a busy machine
    with files.work_in(output, files.DEMO):
        with contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext():
            commands = _train(ctx, output, scenario, settings.train_steps or scenario.train_steps)
        report = _bench(settings, scenario, commands)
    console.table(*demo_report.table(report["rows"], console.screen().width))
    for line in demo_report.summary(report):
        console.say(line)
    console.say(f"The report, with all pictures: {output}/report.html")
    console.emit({**report, "command": "demo", "output": str(output)})


def _bench(settings: DemoSettings, scenario: Scenario, commands: list[str]) -> dict:
    """Bench the trained model and write the page; return the report of the bench."""
    from skipdit_cli.bench.results.html_report import collect_samples
    from skipdit_cli.bench.run import Bench
    from skipdit_cli.bench.solving import count_steps, solve
    from skipdit_cli.models import open_model

    labels = [digit for digit in range(10) for _ in range(settings.samples_per_digit or scenario.samples_per_digit)]
    arguments = {"guidance_scale": scenario.guidance_scale, "seed": 0, "batch_size": len(labels)}
    arguments["num_inference_steps"] = settings.num_inference_steps
    pipe, vanilla = open_model(str(settings.output / "model")), open_model(None, scenario.preset)
    bench = Bench(pipe, _make_policies(settings.num_inference_steps), labels, vanilla=vanilla, **arguments)
    bench.add_baselines()
    with console.progress("exact solution", count_steps(bench)) as advance:
        solve(bench, EXACT_LIMIT, advance)
    with console.progress("bench", bench.steps(settings.rounds)) as advance:
        rows = bench.run(settings.rounds, advance=advance)
    for reason in bench.broken.values():
        raise NotFiniteError(reason)
    samples = collect_samples(bench)
    report = bench.report(rows, scenario.preset, {**arguments, "class_labels": labels, "rounds": settings.rounds})
    with files.install(settings.output) as folder:
        demo_report.save(folder, settings.output, report, samples, labels, commands)
    return report


def _train(ctx: typer.Context, output: Path, scenario: Scenario, steps: int) -> list[str]:
    """Convert the embedded model and train it in the two stages of the paper; return the commands that did it."""
    folder = shlex.quote(str(output))
    flags = f"--preset {scenario.preset} --train-batch-size {scenario.batch_size} --max-train-steps {steps}"
    if scenario.data is not None:
        with files.install(output) as part:
            count = _write_videos(part / scenario.data)
        console.say(f"Wrote {count} videos of moving digits, in {output / scenario.data}/DIGIT/NUMBER.mp4.")
        flags += f" --data {folder}/{scenario.data}"
    commands = [
        f"convert --preset {scenario.preset} -o {folder}/converted",
        f"finetune -m {folder}/converted {flags} --train skip -o {folder}/stage1",
        f"finetune -m {folder}/stage1 {flags} --train all --learning-rate 2e-4 -o {folder}/model",
    ]
    files.note(output, "converted/", "stage1/", "model/")
    for command in commands:
        console.say(f"\n$ skipdit {command}")
        code = run_command(ctx, shlex.split(command))
        if code:
            raise typer.Exit(code)
    return commands


def _write_videos(folder: Path, per_digit: int = 4, scale: int = 8) -> int:
    """Write mp4 files of moving digits into one folder per class; return their number."""
    from skipdit_cli import media
    from skipdit_cli.training.data import moving_digits as digits

    indices = [index for label in range(10) for index in digits.showing(label)[:per_digit]]
    with console.progress("write", len(indices)) as advance:
        for index in indices:
            target = folder / str(digits.label(index)) / f"{index:05d}.mp4"
            target.parent.mkdir(parents=True, exist_ok=True)
            frames = digits.moving_digit(index).repeat(scale, 1).repeat(scale, 2)[..., None].repeat(3, 3)
            media.save_video(frames, target, fps=8, metadata={"digit": digits.label(index), "scan": index})
            advance()
    return len(indices)


def _make_policies(steps: int) -> list:
    """Return caches by the schedule of the paper, then with fewer full steps, placed late, and a residual forecast."""
    from skipdit_cli.cache import CachePolicy

    counts = (13 * steps // 50, steps // 5)
    late_dense = [CachePolicy(1, full_steps=m, forecast="taylor2", target="residual") for m in counts]
    return [*(CachePolicy(1, interval=k) for k in (2, 3, 5)), *late_dense]
