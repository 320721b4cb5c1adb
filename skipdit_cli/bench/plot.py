"""The speed-quality plot of a bench."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

NAMES = {"skip-cache": "Skip-DiT", "vanilla-cache": "vanilla", "fewer-steps": "vanilla, fewer steps"}
STYLES = {"skip-cache": ("o", "-"), "vanilla-cache": ("s", "--"), "fewer-steps": ("D", ":")}
COLOURS = ("#0b6fb8", "#d1495b", "#2e8b57", "#8e5ea2", "#c77d0a", "#11868a", "#b5539c", "#7a6a53")
BLACK, GREY = "#333333", "#888888"
LABELS = {"psnr": "PSNR to the uncached run (dB)", "latent_rel_l2": "relative L2 of latents to the uncached run"}


def save_plot(rows: Sequence[dict], path: Path, title: str = "") -> None:
    """Write a PNG with the PSNR (without images, the distance of latents) of each case over its speedup.

    There is one line per way of caching: filled markers with skip branches, hollow ones for the control without. The
    thin stroke from a point ends at its limit, the speedup by FLOPs alone.

    Args:
        rows: Rows of ``bench --json``.
        path: The file.
        title: Title of the plot.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    quality = "psnr" if any(row["psnr"] is not None for row in rows) else "latent_rel_l2"
    uncached = {row["case"]: row["speedup_vs_vanilla"] for row in rows if row["case"] in ("vanilla", "skip")}
    figure = Figure(figsize=(9, 5.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, speedup in uncached.items():
        axes.axvline(speedup, color=GREY, linewidth=1, linestyle=(0, (1, 2)), zorder=0)
        label, position = {"vanilla": "vanilla", "skip": "Skip-DiT, uncached"}[name], (speedup, 0.02)
        axes.annotate(label, position, (-3, 0), ("data", "axes fraction"), "offset points",
                      rotation=90, va="bottom", ha="right", fontsize=8, color=GREY)  # fmt: skip
    lines: dict[str, list[dict]] = {}
    for row in sorted(rows, key=lambda row: list(STYLES).index(row["case"]) if row["case"] in STYLES else 0):
        if row["case"] in STYLES and row[quality] is not None:
            lines.setdefault(line_name(row), []).append(row)
    colours = dict(zip(dict.fromkeys(_caching(points[0]) for points in lines.values()), COLOURS * len(lines)))
    for name, points in lines.items():
        speedup = uncached["skip" if points[0]["case"] == "skip-cache" else "vanilla"]
        _draw(axes, name, points, quality, speedup, colours[_caching(points[0])], hide_control="skip" in uncached)
    if quality == "latent_rel_l2":
        axes.set_yscale("log")
        axes.invert_yaxis()
    axes.set_ylabel(LABELS[quality])
    axes.set_xlabel("speedup of the denoising loop over vanilla (thin stroke: up to the limit its FLOPs set)")
    axes.set_title(title, fontsize=10, loc="left")
    axes.margins(x=0.06, y=0.12)
    axes.grid(color="#ececec", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if lines:
        figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.savefig(path)


def _draw(axes, name: str, points: list[dict], quality: str, uncached: float, colour: str, hide_control: bool) -> None:
    """Draw one line of points.

    Args:
        uncached: Speedup over vanilla of the same model without a cache.
        hide_control: Leave out the labels of the control's points.
    """
    points = sorted(points, key=lambda row: row["limit"])
    marker, line = STYLES[points[0]["case"]]
    colour = BLACK if points[0]["case"] == "fewer-steps" else colour
    face = "white" if points[0]["case"] == "vanilla-cache" else colour
    x, y = [row["speedup_vs_vanilla"] for row in points], [row[quality] for row in points]
    axes.plot(x, y, line, marker=marker, color=colour, markerfacecolor=face, label=name, markersize=5.5, linewidth=1.4)
    for row, speedup, height in zip(points, x, y):
        limit = uncached * row["limit"]
        axes.plot([speedup, limit], [height, height], color=colour, alpha=0.4, linewidth=0.9, zorder=1)
        axes.plot(limit, height, "|", color=colour, alpha=0.6, markersize=7, zorder=1)
        if row["case"] == "vanilla-cache" and hide_control:
            continue
        offset = (0, -13) if row["case"] == "fewer-steps" else (0, 6)
        style = {"ha": "center", "fontsize": 8, "color": colour}
        axes.annotate(_point_label(row), (speedup, height), offset, "data", "offset points", **style)


def _caching(row: dict) -> tuple:
    """Return what the rows of one colour have in common: the cache without its interval or number of full steps."""
    rule = "" if row["schedule"] is None else row["schedule"].split()[0].replace("every", "uniform")
    return row["cache_layers"], rule, row["forecast"], row["cache_target"]


def line_name(row: dict) -> str:
    """Return the name of a row's line: the model, and the cache without its interval or number of full steps."""
    layers, rule, forecast, target = _caching(row)
    name = NAMES[row["case"]]
    if layers is None:
        return name
    return f"{name}, N={layers}, {rule}, {forecast}{' residual' * (target == 'residual')}"


def _point_label(row: dict) -> str:
    if row["cache_layers"] is None:
        return f"{row['steps']} steps"
    return f"K={row['cache_interval']}" if row["cache_interval"] else f"M={row['full_steps']}"
