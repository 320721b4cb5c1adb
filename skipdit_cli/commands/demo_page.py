"""The files of ``skipdit demo``: an image or animation of every case, the bench's files, and a page that shows all."""

from __future__ import annotations

from pathlib import Path

WIDTH = 280
"""Width of an image on the page, in pixels."""


def table(rows: list[dict], width: int | None = None) -> tuple[list[str], list[list[str]]]:
    """Return the columns and lines of the bench's table, with the share of digits that are recognised.

    Args:
        width: Characters in a line, if columns may be left out; None for all columns.
    """
    from skipdit_cli.bench.results.tables import table

    columns, lines = table(rows, width=width and width - len("  read"))
    return [*columns, "read"], [[*line, f"{row['recognised']:.0%}"] for line, row in zip(lines, rows)]


def summary(report: dict) -> list[str]:
    """Return the result: digits recognised, the verdict on accuracy, and warnings."""
    rows = report["rows"]
    cases = {"vanilla": rows[0], "Skip-DiT": next(row for row in rows if row["case"] == "skip")}
    cached = [row for row in rows if row["case"] == "skip-cache"]
    cases["cached"] = max(cached, key=lambda row: row["psnr_exact"] or row["psnr"] or 100)
    shares = ", ".join(f"{name} {row['recognised']:.1%}" for name, row in cases.items())
    return [
        f"Digits read by a classifier trained on real ones: {shares}.",
        report["verdict"],
        *([report["target"]] if report["target"] else []),
        *(f"Warning: {warning}" for warning in report["warnings"]),
    ]


def save(folder: Path, report: dict, generated: list, labels: list[int], commands: list[str]) -> None:
    """Add the share of digits recognised to each row; write the samples, the bench's files and the page.

    Args:
        folder: An existing folder.
        report: The report of the bench, whose rows are changed.
        generated: The samples of each row, in the same order.
        labels: The digit of each sample.
        commands: What was run before the bench, without "skipdit".
    """
    from skipdit_cli.bench.results import page
    from skipdit_cli.bench.results.tables import save_report

    figures = _save_figures(folder, report["rows"], generated, labels)
    save_report(report, folder)
    is_video = generated[0].images.ndim == 5
    kind = "handwritten digits in motion" if is_video else "handwritten digits"
    page.save_page(folder / "report.html", f"skipdit demo: {kind}", _page(report, commands, figures, is_video))


def _page(report: dict, commands: list[str], figures: list[str], is_video: bool) -> list[str]:
    """Return the parts of the page, in order."""
    from skipdit_cli.bench.results import page
    from skipdit_cli.bench.results.tables import READING

    layout = "every animation" if is_video else "one row per digit, every image"
    read = " read: share of digits that a support vector machine trained on real ones recognises"
    read += "; it recognises 90 % of the frames of the real moving digits." if is_video else "."
    return [
        *(page.paragraph(line) for line in summary(report)),
        page.heading("Commands"),
        *(page.command(f"skipdit {command}") for command in commands),
        page.heading("Speed and quality"),
        page.table(*table(report["rows"])),
        page.paragraph(READING + read),
        *(page.paragraph(note) for note in report["notes"]),
        page.picture("bench.png", "Speed against quality."),
        page.heading(f"The samples: {layout} from the same noise"),
        *figures,
    ]


def _save_figures(folder: Path, rows: list[dict], generated: list, labels: list[int]) -> list[str]:
    """Write the samples of every row; return the figures of the page, without those of the control."""
    from skipdit_cli.bench.digit_accuracy import recognition_rate
    from skipdit_cli.bench.results import page

    figures = []
    for i, (row, result) in enumerate(zip(rows, generated)):
        row["recognised"] = recognition_rate(result.images, labels)
        name = _save_samples(folder / f"{i:02d}-{row['case']}", result.images, labels, {"demo": row})
        if row["case"] != "vanilla-cache":
            schedule = row["schedule"] or f"{row['steps']} steps"
            caption = f"{row['case']}, {schedule}: {row['recognised']:.0%} read"
            figures.append(page.picture(name, caption, width=WIDTH))
    return figures


def _save_samples(stem: Path, images, labels: list[int], record: dict) -> str:
    """Write a PNG with one row per digit, or a GIF of all videos side by side; return its name."""
    from skipdit_cli import media

    if images.ndim == 4:
        path = stem.with_suffix(".png")
        media.save_png(media.grid(images, len(labels) // 10, scale=5, smooth=True), path, record)
    else:
        path = stem.with_suffix(".gif")
        media.save_video(media.video_grid(images, scale=4, columns=5), path, 8, record)
    return path.name
