"""The plot of quality over cost by FLOPs, ours and the peers', with the Pareto front of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skipdit_cli.bench.plot import BLACK, COLOURS, GREY, LABELS, NAMES, STYLES

EXACT = "psnr_exact"
MARKERS = ("^", "v", "<", ">", "P", "X", "*", "h", "p")
"""The markers of peers, none of which our own cases have."""


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

    measures = [name for name in (EXACT, *LABELS) if any(row.get(name) is not None for row in rows)]
    quality = measures[0] if measures else "psnr"
    rows = [row for row in rows if row.get(quality) is not None]
    points = [(_speedup(row, macs), row[quality], row) for row in rows]
    figure = Figure(figsize=(9, 5.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    lines: dict[str, list[tuple]] = {}
    for point in sorted(points, key=lambda point: bool(point[2]["peer"])):
        lines.setdefault(_name(point[2]), []).append(point)
    peers = [name for name, line in lines.items() if line[0][2]["peer"]]
    for name, line in lines.items():
        x, y = zip(*sorted((point[0], point[1]) for point in line))
        if name in peers:
            number = peers.index(name)
            style: dict[str, Any] = {
                "marker": MARKERS[number % len(MARKERS)],
                "color": COLOURS[(number + 1) % len(COLOURS)],
            }
            axes.plot(x, y, ":", **style, label=name, markersize=6, linewidth=1, alpha=0.85)
        else:
            marker, _ = STYLES.get(line[0][2]["case"], ("o", "-"))
            colour = BLACK if line[0][2]["case"] == "fewer-steps" else COLOURS[0]
            axes.plot(x, y, "-", marker=marker, color=colour, label=name, markersize=6.5, linewidth=1.8, zorder=4)
    lower_is_better = quality == "latent_rel_l2"
    front = pareto_front([(x, -y if lower_is_better else y) for x, y, _ in points])
    if front:
        x, y = zip(*((x, -y if lower_is_better else y) for x, y in front))
        axes.step(x, y, where="pre", color=GREY, linewidth=5, alpha=0.35, zorder=1, label="Pareto front")
    if lower_is_better:
        axes.set_yscale("log")
        axes.invert_yaxis()
    axes.set_xscale("log")
    ticks = [t for t in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if not points or t <= 1.1 * max(p[0] for p in points)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylabel({EXACT: "PSNR to the exact solution (dB)", **LABELS}[quality])
    axes.set_xlabel("FLOPs of the uncached vanilla run over the FLOPs of the run")
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(color="#ececec", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if points:
        figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other point exceeds in one coordinate and reaches in the other, by the first."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points), reverse=True):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front[::-1]


def _speedup(row: dict, macs: dict[str, float]) -> float:
    """Return the limit over vanilla; a row's own is over the uncached run of the same model."""
    model = "skip" if row["case"].startswith("skip") else "vanilla"
    return (row["limit"] or 1.0) * macs["vanilla"] / macs[model]


def _name(row: dict) -> str:
    """Return the name of a row's line: one for each peer, and for each kind, depth and forecast of ours."""
    if row["peer"]:
        return row["peer"]
    kind = NAMES.get(row["case"], f"{row['case']}, uncached")
    if row["cache_layers"] is None:
        return kind
    rule = row["schedule"].split()[0].replace("every", "uniform")
    target = " residual" if row["cache_target"] == "residual" else ""
    return f"{kind}, {row['cache_layers']} live, {rule}, {row['forecast']}{target}"
