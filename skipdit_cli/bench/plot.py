"""The speed-quality plot of a bench."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

NAMES = {"skip-cache": "Skip-DiT", "vanilla-cache": "vanilla", "fewer-steps": "vanilla, fewer steps"}
STYLES = {"skip-cache": ("o", "-"), "vanilla-cache": ("s", "--"), "fewer-steps": ("D", ":")}
COLOURS = ("#0b6fb8", "#d1495b", "#2e8b57", "#8e5ea2", "#c77d0a", "#11868a", "#b5539c", "#7a6a53")
BLACK, GREY = "#333333", "#888888"
WORDS = {"psnr": "PSNR to the uncached run (dB)", "latent_rel_l2": "relative L2 of latents to the uncached run"}


def save_plot(rows: Sequence[dict], path: Path, title: str = "") -> None:
    """Draw PSNR (the distance of latents where there are no pictures) over the speedup, as a PNG.

    One line for each way of caching: filled with skip branches, hollow and dashed for the control without. The thin
    stroke from a point ends where its FLOPs alone would put it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    quality = "psnr" if any(row["psnr"] is not None for row in rows) else "latent_rel_l2"
    uncached = {row["case"]: row["speedup_vs_vanilla"] for row in rows if row["case"] in ("vanilla", "skip")}
    figure = Figure(figsize=(9, 5.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, at in uncached.items():
        axes.axvline(at, color=GREY, linewidth=1, linestyle=(0, (1, 2)), zorder=0)
        words, place = {"vanilla": "vanilla", "skip": "Skip-DiT, uncached"}[name], (at, 0.02)
        axes.annotate(words, place, (-3, 0), ("data", "axes fraction"), "offset points",
                      rotation=90, va="bottom", ha="right", fontsize=8, color=GREY)  # fmt: skip
    families: dict[str, list[dict]] = {}
    for row in sorted(rows, key=lambda row: list(STYLES).index(row["case"]) if row["case"] in STYLES else 0):
        if row["case"] in STYLES and row[quality] is not None:
            families.setdefault(_family(row), []).append(row)
    colours = dict(zip(dict.fromkeys(_way(rows[0]) for rows in families.values()), COLOURS * len(families)))
    for name, members in families.items():
        own = uncached["skip" if members[0]["case"] == "skip-cache" else "vanilla"]
        _draw(axes, name, members, quality, own, colours[_way(members[0])], labelled="skip" in uncached)
    if quality == "latent_rel_l2":
        axes.set_yscale("log")
        axes.invert_yaxis()
    axes.set_ylabel(WORDS[quality])
    axes.set_xlabel("speedup of the denoising loop over vanilla (thin stroke: up to the limit its FLOPs set)")
    axes.set_title(title, fontsize=10, loc="left")
    axes.margins(x=0.06, y=0.12)
    axes.grid(color="#ececec", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if families:
        figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.savefig(path)


def _draw(axes, name: str, members: list[dict], quality: str, own: float, colour: str, labelled: bool) -> None:
    """One line of points. ``own``: the same model's speedup uncached; ``labelled``: the control's points go bare."""
    members = sorted(members, key=lambda row: row["limit"])
    marker, line = STYLES[members[0]["case"]]
    colour = BLACK if members[0]["case"] == "fewer-steps" else colour
    face = "white" if members[0]["case"] == "vanilla-cache" else colour
    x, y = [row["speedup_vs_vanilla"] for row in members], [row[quality] for row in members]
    axes.plot(x, y, line, marker=marker, color=colour, markerfacecolor=face, label=name, markersize=5.5, linewidth=1.4)
    for row, at, height in zip(members, x, y):
        limit = own * row["limit"]
        axes.plot([at, limit], [height, height], color=colour, alpha=0.4, linewidth=0.9, zorder=1)
        axes.plot(limit, height, "|", color=colour, alpha=0.6, markersize=7, zorder=1)
        if row["case"] == "vanilla-cache" and labelled:
            continue
        offset = (0, -13) if row["case"] == "fewer-steps" else (0, 6)
        axes.annotate(
            _point(row), (at, height), offset, "data", "offset points", ha="center", fontsize=8, color=colour
        )


def _way(row: dict) -> tuple:
    """How a row caches, whatever the model: rows of one way share a colour."""
    rule = "" if row["schedule"] is None else row["schedule"].split()[0].replace("every", "uniform")
    return row["cache_layers"], rule, row["forecast"], row["cache_target"]


def _family(row: dict) -> str:
    layers, rule, forecast, target = _way(row)
    name = NAMES[row["case"]]
    return f"{name}, N={layers}, {rule}, {forecast}{' residual' * (target == 'residual')}" if layers else name


def _point(row: dict) -> str:
    if row["cache_layers"] is None:
        return f"{row['steps']} steps"
    return f"K={row['cache_interval']}" if row["cache_interval"] else f"M={row['full_steps']}"
