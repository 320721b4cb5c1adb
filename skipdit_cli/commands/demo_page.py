"""What ``skipdit demo`` leaves: pictures or animations of every case, the bench's files, and a page of all."""

from __future__ import annotations

from pathlib import Path

WIDTH = 280  # of a picture on the page


def table(rows: list[dict]) -> tuple[list[str], list[list[str]]]:
    """The bench's table, with the share of digits read."""
    from skipdit_cli.bench.tables import table

    columns, lines = table(rows)
    return [*columns, "read"], [[*line, f"{row['recognised']:.0%}"] for line, row in zip(lines, rows)]


def summary(rows: list[dict]) -> str:
    cached = max((row for row in rows if row["case"] == "skip-cache"), key=lambda row: row["psnr"] or 100)
    shares = {"vanilla": rows[0], "Skip-DiT": next(row for row in rows if row["case"] == "skip"), "cached": cached}
    said = ", ".join(f"{name} {row['recognised']:.1%}" for name, row in shares.items())
    return (
        f"Digits read by a machine trained on real ones: {said}. Closest to uncached: {cached['schedule']} with "
        f"{cached['forecast']} on the {cached['cache_target']}, {cached['psnr']:.1f} dB at "
        f"{cached['speedup_vs_vanilla']:.2f} times vanilla's speed (limit {cached['limit']:.2f} of Skip-DiT's)."
    )


def save(folder: Path, report: dict, generated: list, labels: list[int], commands: list[str]) -> None:
    """The share of digits read into each row; pictures, bench files and the page into the folder."""
    from skipdit_cli.bench import page
    from skipdit_cli.bench.digit_accuracy import recognised
    from skipdit_cli.bench.tables import READING, save_report

    rows, figures = report["rows"], []
    for at, (row, made) in enumerate(zip(rows, generated)):
        row["recognised"] = recognised(made.images, labels)
        words = row["schedule"] or f"{row['steps']} steps"
        name = _save_samples(folder / f"{at:02d}-{row['case']}", made.images, labels, {"demo": row})
        if row["case"] != "vanilla-cache":
            figures.append(page.picture(name, f"{row['case']}, {words}: {row['recognised']:.0%} read", width=WIDTH))
    save_report(report, folder)
    moving = generated[0].images.ndim == 5
    of_each = "every animation" if moving else "one row a digit, every picture"
    read = " read: digits that a support vector machine trained on real ones reads right"
    read += "; it reads 90 % of the frames of the real moving digits." if moving else "."
    parts = [
        page.paragraph(summary(rows)),
        page.heading("What was run"),
        *(page.command(f"skipdit {text}") for text in commands),
        page.heading("Speed and quality"),
        page.table(*table(rows)),
        page.paragraph(READING + read),
        *(page.paragraph(note) for note in report["notes"]),
        page.picture("bench.png", "Speed against quality."),
        page.heading(f"The samples: {of_each} from the same noise"),
        *figures,
    ]
    kind = "handwritten digits in motion" if moving else "handwritten digits"
    page.save_page(folder / "report.html", f"skipdit demo: {kind}", parts)


def _save_samples(stem: Path, images, labels: list[int], made: dict) -> str:
    """A PNG, one row a digit, or a gif of all videos side by side; its name."""
    from skipdit_cli import media

    if images.ndim == 4:
        path = stem.with_suffix(".png")
        media.save_png(media.grid(images, len(labels) // 10, scale=5, smooth=True), path, made)
    else:
        path = stem.with_suffix(".gif")
        media.save_video(media.video_grid(images, scale=4, columns=5), path, 8, made)
    return path.name
