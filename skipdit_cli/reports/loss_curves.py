"""Loss curves: the plot of the losses that training runs log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from skipdit_cli.formats import is_number, read_json_lines
from skipdit_cli.reports.charts import Plot, Point, Series

WINDOWS = 5
"""A curve is smoothed over so many parts of it."""
MOST_POINTS = 500
"""Points of a curve; of longer runs every second or third step is drawn."""


def make_loss_plot(runs: Mapping[str, Path]) -> Plot | None:
    """Return the plot of the losses of training runs that follow each other.

    Args:
        runs: Name of each run to its ``metrics.jsonl``. A file that does not exist is left out.

    Returns:
        The plot; None if no run has two steps.
    """
    losses = {name: _read_losses(file) for name, file in runs.items() if file.is_file()}
    series: list[Series] = []
    start = 0
    for colour, (name, values) in enumerate((name, values) for name, values in losses.items() if len(values) > 1):
        smooth = _smoothed(values)
        series.append(Series("", _points(values, start), colour, shape="", joined=True, faint=True))
        title = f"{name}, mean {fmean(values):.4f}"
        series.append(Series(title, _points(smooth, start), colour, shape="", joined=True))
        start += len(values)
    if not series:
        return None
    caption = "The loss of each optimizer step, and its running mean."
    return Plot("Training", caption, "optimizer step", "loss", series)


def _read_losses(file: Path) -> list[float]:
    """Return the finite losses of a run."""
    return [row["loss"] for row in read_json_lines(file) if is_number(row.get("loss"))]


def _smoothed(values: Sequence[float]) -> list[float]:
    """Return the mean over a window before and after each value, shorter at both ends."""
    half = max(1, len(values) // WINDOWS // 2)
    return [fmean(values[max(0, at - half) : at + half + 1]) for at in range(len(values))]


def _points(values: Sequence[float], start: int) -> list[Point]:
    every = -(-len(values) // MOST_POINTS)
    return [Point(start + at + 1, value) for at, value in enumerate(values) if at % every == 0]
