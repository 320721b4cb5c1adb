"""``skipdit demo``: the whole way, from checkpoint to report, on a laptop and without a network."""

from __future__ import annotations

import contextlib
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from skipdit_cli import console, files
from skipdit_cli.commands import demo_page, options
from skipdit_cli.errors import NotFiniteError

Video = Annotated[bool, typer.Option("--video", help="Handwritten digits in motion instead of still ones.")]
Steps = Annotated[int, typer.Option("--num-inference-steps", "--steps", min=13, help="Denoising steps.")]
TrainSteps = Annotated[
    int | None, typer.Option(min=1, help="Optimizer steps of each stage of training.", show_default=False)
]
PerDigit = Annotated[int | None, typer.Option(min=1, help="Samples of each digit.", show_default=False)]
Rounds = Annotated[int, typer.Option(min=1, help="How often every case is timed.")]


@dataclass(frozen=True)
class Show:
    """What the demo shows. ``data`` is a folder below the output, written first; without it the preset's own."""

    preset: str
    samples_per_digit: int
    train_steps: int
    batch_size: int
    guidance_scale: float
    data: str | None = None


STILL = Show("digits", samples_per_digit=7, train_steps=100, batch_size=64, guidance_scale=1.5)
MOVING = Show("digits-video", samples_per_digit=1, train_steps=60, batch_size=8, guidance_scale=3.0, data="videos")


def demo(
    ctx: typer.Context,
    output: options.Output = Path("skipdit-demo"),
    video: Video = False,
    num_inference_steps: Steps = 50,
    train_steps: TrainSteps = None,
    samples_per_digit: PerDigit = None,
    rounds: Rounds = 2,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """See all of it work on handwritten digits, in 3 minutes.

    Converts, trains, samples and benches the embedded model: no GPU, no network. Leaves a page with pictures. With
    --video the digits move; the model is trained on mp4 files that are written first, and the page has animations.
    """
    import torch

    files.check_folder(output, files.DEMO, overwrite)
    torch.set_num_threads(1)  # matrices this small gain nothing from a second one, and lose much on a busy machine
    show = MOVING if video else STILL
    labels = [digit for digit in range(10) for _ in range(samples_per_digit or show.samples_per_digit)]
    with files.work_in(output, files.DEMO):
        with contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext():
            commands = _train(ctx, output, show, train_steps or show.train_steps)
        report = _bench(output, show, labels, num_inference_steps, rounds, commands)
    console.table(*demo_page.table(report["rows"]))
    console.say(demo_page.summary(report["rows"]))
    console.say(f"The report, with all pictures: {output}/report.html")
    console.emit({**report, "command": "demo", "output": str(output)})


def _bench(output: Path, show: Show, labels: list[int], steps: int, rounds: int, commands: list[str]) -> dict:
    """Bench the trained model, and leave the page of all."""
    from skipdit_cli.bench.run import Bench
    from skipdit_cli.models import open_model

    sampling = {"guidance_scale": show.guidance_scale, "seed": 0, "batch_size": len(labels)}
    sampling["num_inference_steps"] = steps
    pipe, vanilla = open_model(str(output / "model")), open_model(None, show.preset)
    bench = Bench(pipe, _policies(steps), labels, vanilla=vanilla, **sampling)
    with console.progress("bench", bench.steps(rounds)) as advance:
        rows = bench.run(rounds, advance=advance)
    for why in bench.broken.values():
        raise NotFiniteError(why)
    report = bench.report(rows, show.preset, {**sampling, "class_labels": labels, "rounds": rounds})
    with files.install(output) as part:
        demo_page.save(part, report, bench.generated, labels, commands)
    return report


def _train(ctx: typer.Context, output: Path, show: Show, steps: int) -> list[str]:
    """Convert the embedded model and train it in the paper's two stages, by the commands a user would give."""
    folder = shlex.quote(str(output))
    run = f"--preset {show.preset} --train-batch-size {show.batch_size} --max-train-steps {steps}"
    if show.data is not None:
        with files.install(output) as part:
            written = _write_videos(part / show.data)
        console.say(f"Wrote {written} videos of moving digits, in {output / show.data}/DIGIT/NUMBER.mp4.")
        run += f" --data {folder}/{show.data}"
    commands = [
        f"convert --preset {show.preset} -o {folder}/converted",
        f"finetune -m {folder}/converted {run} --train skip -o {folder}/stage1",
        f"finetune -m {folder}/stage1 {run} --train all --learning-rate 2e-4 -o {folder}/model",
    ]
    files.note(output, "converted/", "stage1/", "model/")
    for command in commands:
        console.say(f"\n$ skipdit {command}")
        code = ctx.find_root().command.main(shlex.split(command), prog_name="skipdit", standalone_mode=False)
        if code:
            raise typer.Exit(code)
    return commands


def _write_videos(folder: Path, per_digit: int = 4, scale: int = 8) -> int:
    """mp4 files of moving digits, in class directories, for ``finetune`` to read."""
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


def _policies(steps: int) -> list:
    """The paper's schedule, then ours: fewer full steps, placed late, the residual forecast."""
    from skipdit_cli.cache import CachePolicy

    ours = [
        CachePolicy(1, full_steps=m, forecast="taylor2", target="residual") for m in (13 * steps // 50, steps // 5)
    ]
    return [*(CachePolicy(1, interval=k) for k in (2, 3, 5)), *ours]
