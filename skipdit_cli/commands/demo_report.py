"""The files of ``skipdit demo``: an image or animation of every row, the bench's files, and the HTML report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skipdit_cli.bench.results.html_report import Samples

STAGES = {"stage1": "stage 1: skip branches only", "model": "stage 2: all weights"}
"""The folders of the two training stages, in their order, and their names."""


def table(rows: list[dict], width: int | None = None) -> tuple[list[str], list[list[str]]]:
    """Return the columns and lines of the bench's table, with the share of digits that are recognised.

    Args:
        rows: Rows of the bench.
        width: Characters in a line, if columns may be left out; None for all columns.
    """
    from skipdit_cli.bench.results.tables import table

    columns, lines = table(rows, width=width and width - len("  read"))
    return [*columns, "read"], [[*line, share] for line, share in zip(lines, _shares(rows))]


def summary(report: dict) -> list[str]:
    """Return the result: digits recognised, the verdict on accuracy, and warnings."""
    return [
        _digits_read(report["rows"]),
        report["verdict"],
        *([report["target"]] if report["target"] else []),
        *(f"Warning: {warning}" for warning in report["warnings"]),
    ]


def _digits_read(rows: Sequence[dict]) -> str:
    """Return the share of digits recognised without and with branches, and with a cache."""
    cases = {"vanilla": rows[0], "Skip-DiT": next(row for row in rows if row["case"] == "skip")}
    cached = [row for row in rows if row["case"] == "skip-cache"]
    cases["cached"] = max(cached, key=lambda row: row["psnr_exact"] or row["psnr"] or 100)
    shares = ", ".join(f"{name} {row['recognised']:.1%}" for name, row in cases.items())
    return f"Digits read by a classifier trained on real ones: {shares}."


def _shares(rows: Sequence[dict]) -> list[str]:
    return [f"{row['recognised']:.0%}" for row in rows]


def save(folder: Path, trained: Path, report: dict, samples: Samples, labels: list[int], commands: list[str]) -> None:
    """Add the share of digits recognised to each row; write the samples, the bench's files and the HTML report.

    Args:
        folder: An existing folder.
        trained: The folder with the training stages.
        report: The report of the bench, whose rows are changed.
        samples: What the bench sampled.
        labels: The digit of each sample.
        commands: The commands that trained the model, without "skipdit".
    """
    from skipdit_cli.bench.digit_accuracy import recognition_rate
    from skipdit_cli.bench.results.tables import save_report
    from skipdit_cli.reports import save as save_html

    rows = report["rows"]
    for number, (row, pictures) in enumerate(zip(rows, samples.images)):
        row["recognised"] = recognition_rate(pictures, labels)
        _save_samples(folder / f"{number:02d}-{row['case']}", pictures, labels, {"demo": row})
    save_report(report, folder)
    save_html(_make_report(trained, report, samples, commands), folder / "report.html")


def _make_report(trained: Path, report: dict, samples: Samples, commands: Sequence[str]):
    """Return the HTML report: that of the bench, with digits recognised, loss curves and all commands."""
    from skipdit_cli.bench.results.html_report import make_report, make_table
    from skipdit_cli.reports import Command, make_loss_plot

    is_video = samples.images[0].ndim == 5
    purposes = ("Convert the model: add skip branches.", "Train the branches.", "Train all weights.")
    notes = ["It recognises 90 % of the frames of the real moving digits."] if is_video else []
    verdicts = [text for text in (report["verdict"], report["target"]) if text]
    curves = make_loss_plot({name: trained / stage / "metrics.jsonl" for stage, name in STAGES.items()})
    return make_report(
        report,
        samples,
        f"skipdit demo: handwritten digits{' in motion' if is_video else ''}",
        details=[_digits_read(report["rows"]), *notes, *verdicts],
        tables=[make_table(report["rows"], read=_shares(report["rows"]))],
        curves=[] if curves is None else [curves],
        commands=[
            Command(report["command"], "Run the whole demo again."),
            *(Command(f"skipdit {command}", purpose) for command, purpose in zip(commands, purposes)),
        ],
    )


def _save_samples(stem: Path, images, labels: list[int], record: dict) -> None:
    """Write a PNG with one row per digit, or a GIF of all videos side by side."""
    from skipdit_cli import media

    if images.ndim == 4:
        path = stem.with_suffix(".png")
        media.save_png(media.grid(images, len(labels) // 10, scale=5, smooth=True), path, record)
    else:
        path = stem.with_suffix(".gif")
        media.save_video(media.video_grid(images, scale=4, columns=5), path, 8, record)
