"""The plot of quality over cost by FLOPs, ours and the peers', with the Pareto front of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skipdit_cli.bench.results.plot import BLACK, COLOURS, GREY, LABELS, PLAIN, STYLES, line_name

PEER_MARKERS = ("^", "v", "<", ">", "P", "X", "*", "h", "p")
PEER_COLOURS = (*COLOURS[1:], "#a0a417", "#4a4e9e")
"""The marks of peers, none of which our own cases have."""


def save_pareto(rows: Sequence[dict], macs: dict[str, float], path: Path, title: str = "") -> None:
    """Write a PNG with the quality of each case over the speedup that its FLOPs allow.

    Quality is the PSNR to the exact solution where the rows have it, else to the uncached run of the same model, else
    the distance of latents. A step line joins the points that no other point beats in both.

    Args:
        rows: Rows of ``bench --json``.
        macs: Multiply-adds of a forward of "vanilla", and of "skip" if there are such rows.
        path: The file.
        title: Title of the plot.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measures = [name for name in LABELS if any(row.get(name) is not None for row in rows)]
    quality = measures[0] if measures else "psnr"
    rows = [row for row in rows if row.get(quality) is not None]
    points = [(_speedup(row, macs), row[quality], row) for row in rows]
    figure = Figure(figsize=(9, 5.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    sign = -1 if quality == "latent_rel_l2" else 1
    lines: dict[str, list[tuple]] = {}
    for x, y, row in sorted(points, key=lambda point: bool(point[2]["peer"])):
        lines.setdefault(_name(row), []).append((x, y, row))
    peers = [name for name, line in lines.items() if line[0][2]["peer"]]
    for name, line in lines.items():
        if name in peers:
            number = peers.index(name)
            marker, colour = PEER_MARKERS[number % len(PEER_MARKERS)], PEER_COLOURS[number % len(PEER_COLOURS)]
            _draw(axes, line, sign, ":", marker=marker, color=colour, label=name, linewidth=1)
        else:
            marker, _ = STYLES.get(line[0][2]["case"], ("o", "-"))
            colour = BLACK if line[0][2]["case"] in PLAIN else COLOURS[0]
            _draw(axes, line, sign, "-", marker=marker, color=colour, label=name, linewidth=1.8, zorder=4)
    front = [(speedup, sign * value) for speedup, value in pareto_front([(x, sign * y) for x, y, _ in points])]
    if front:
        axes.step(*zip(*front), where="pre", color=GREY, linewidth=5, alpha=0.35, zorder=1, label="Pareto front")
        figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    if sign < 0:
        axes.set_yscale("log")
        axes.invert_yaxis()
    _label_speedups(axes, max((x for x, _, _ in points), default=1.0))
    axes.set_ylabel(LABELS[quality])
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(color="#ececec", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _label_speedups(axes, highest: float) -> None:
    """Make the axis of speedups logarithmic, with round numbers up to the highest."""
    ticks = [tick for tick in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if tick <= 1.1 * highest]
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("FLOPs of the uncached vanilla run over the FLOPs of the run")


def _draw(axes, line: list[tuple], sign: int, style: str, **marks: Any) -> None:
    """Draw the points of one method, and join those that no other of them beats in both.

    Args:
        sign: 1 if more of the quality is better, else -1.
    """
    best = [(x, sign * y) for x, y in pareto_front([(x, sign * y) for x, y, _ in line])]
    axes.plot(*zip(*best), style, markersize=6.5, **marks)
    rest = [(x, y) for x, y, _ in line if (x, y) not in best]
    if rest:
        axes.plot(*zip(*rest), markersize=5, alpha=0.5, **{**marks, "label": None, "linestyle": ""})


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other point exceeds in one coordinate and reaches in the other, by the first."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points), reverse=True):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front[::-1]


def _speedup(row: dict, macs: dict[str, float]) -> float:
    """Return the limit over vanilla; a row's own is over the uncached run of the same model."""
    return (row["limit"] or 1.0) * macs["vanilla"] / macs[row["reference"]]


def _name(row: dict) -> str:
    """Return the name of a row's line: one for each peer, and for each kind, depth and forecast of ours."""
    uncached = row["limit"] is None
    return row["peer"] or (f"{row['case']}, uncached" if uncached else line_name(row))
