"""``skipdit demo``: the whole way, from checkpoint to report, on a laptop and without a network."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from skipdit_cli import console
from skipdit_cli.commands import options

Steps = Annotated[int, typer.Option("--num-inference-steps", "--steps", min=13, help="Denoising steps.")]
TrainSteps = Annotated[int, typer.Option(min=1, help="Optimizer steps of each stage of training.")]
PerDigit = Annotated[int, typer.Option(min=1, help="Samples of each digit.")]
Rounds = Annotated[int, typer.Option(min=1, help="How often every case is timed.")]
GUIDANCE = 1.5


def demo(
    ctx: typer.Context,
    output: options.Output = Path("skipdit-demo"),
    num_inference_steps: Steps = 50,
    train_steps: TrainSteps = 100,
    samples_per_digit: PerDigit = 7,
    rounds: Rounds = 2,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """See all of it work on handwritten digits, in 3 minutes.

    Converts, trains, samples and benches the embedded model: no GPU, no network. Leaves a page with pictures.
    """
    import torch

    from skipdit_cli.checkpoints import check_target, open_model
    from skipdit_cli.measure.bench import Bench

    check_target(output, overwrite)
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    torch.set_num_threads(1)  # matrices this small gain nothing from a second one, and lose much on a busy machine
    with contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext():
        commands = _train(ctx, output, train_steps)
    console.use_json(json)
    labels = [digit for digit in range(10) for _ in range(samples_per_digit)]
    sampling = {"guidance_scale": GUIDANCE, "seed": 0, "batch_size": len(labels)}
    sampling["num_inference_steps"] = num_inference_steps
    pipe, vanilla = open_model(str(output / "model")), open_model(None, "digits")
    bench = Bench(pipe, _policies(num_inference_steps), labels, vanilla=vanilla, **sampling)
    with console.progress("bench", bench.steps(rounds)) as advance:
        rows = bench.run(rounds, advance=advance)
    report = bench.report(rows, "digits", {**sampling, "class_labels": labels, "rounds": rounds})
    _save(output, report, bench.generated, labels, commands, samples_per_digit)
    console.table(*_table(rows))
    console.say(_summary(rows))
    console.say(f"The report, with all pictures: {output}/report.html")
    console.emit({**report, "command": "demo", "output": str(output)})


def _train(ctx: typer.Context, output: Path, steps: int) -> list[str]:
    """Convert the embedded model and train it in the paper's two stages, by the commands a user would give."""
    folder = shlex.quote(str(output))
    run = f"--preset digits --train-batch-size 64 --max-train-steps {steps}"
    commands = [
        f"convert --preset digits -o {folder}/converted",
        f"finetune -m {folder}/converted {run} --train skip -o {folder}/stage1",
        f"finetune -m {folder}/stage1 {run} --train all --learning-rate 2e-4 -o {folder}/model",
    ]
    for command in commands:
        console.say(f"\n$ skipdit {command}")
        code = ctx.find_root().command.main(shlex.split(command), prog_name="skipdit", standalone_mode=False)
        if code:
            raise typer.Exit(code)
    return commands


def _policies(steps: int) -> list:
    """The paper's schedule, then ours: fewer full steps, placed late, the residual forecast."""
    from skipdit_cli.cache import CachePolicy

    ours = [
        CachePolicy(1, full_steps=m, forecast="taylor2", target="residual") for m in (13 * steps // 50, steps // 5)
    ]
    return [*(CachePolicy(1, interval=k) for k in (2, 3, 5)), *ours]


def _table(rows: list[dict]) -> tuple[list[str], list[list[str]]]:
    from skipdit_cli.measure.report import table

    columns, lines = table(rows)
    return [*columns, "read"], [[*line, f"{row['recognised']:.0%}"] for line, row in zip(lines, rows)]


def _summary(rows: list[dict]) -> str:
    cached = max((row for row in rows if row["case"] == "skip-cache"), key=lambda row: row["psnr"] or 100)
    shares = {"vanilla": rows[0], "Skip-DiT": next(row for row in rows if row["case"] == "skip"), "cached": cached}
    said = ", ".join(f"{name} {row['recognised']:.1%}" for name, row in shares.items())
    return (
        f"Digits read by a machine trained on real ones: {said}. Closest to uncached: {cached['schedule']} with "
        f"{cached['forecast']} on the {cached['cache_target']}, {cached['psnr']:.1f} dB at "
        f"{cached['speedup_vs_vanilla']:.2f} times vanilla's speed (limit {cached['limit']:.2f} of Skip-DiT's)."
    )


def _save(folder: Path, report: dict, generated: list, labels: list[int], commands: list[str], columns: int) -> None:
    """The share of digits read into each row; pictures, bench files and the page into the folder."""
    from skipdit_cli import media
    from skipdit_cli.measure import page
    from skipdit_cli.measure.digits import recognised
    from skipdit_cli.measure.report import READING, save_report

    rows, figures = report["rows"], []
    for at, (row, made) in enumerate(zip(rows, generated)):
        row["recognised"] = recognised(made.images, labels)
        name, words = f"{at:02d}-{row['case']}.png", row["schedule"] or f"{row['steps']} steps"
        media.save_png(media.grid(made.images, columns, scale=5, smooth=True), folder / name, {"demo": row})
        if row["case"] != "vanilla-cache":
            figures.append(page.picture(name, f"{row['case']}, {words}: {row['recognised']:.0%} read", width=280))
    save_report(report, folder)
    parts = [
        page.paragraph(_summary(rows)),
        page.heading("What was run"),
        *(page.command(f"skipdit {text}") for text in commands),
        page.heading("Speed and quality"),
        page.table(*_table(rows)),
        page.paragraph(READING + " read: digits that a support vector machine trained on real ones reads right."),
        *(page.paragraph(note) for note in report["notes"]),
        page.picture("bench.png", "Speed against quality."),
        page.heading("The samples: one row a digit, every picture from the same noise"),
        *figures,
    ]
    page.save_page(folder / "report.html", "skipdit demo: handwritten digits", parts)
