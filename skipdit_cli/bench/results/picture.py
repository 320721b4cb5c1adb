"""The picture of a bench: the same noise through its main rows, each with its error, its cost and its accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from skipdit_cli.errors import SkipditError
from skipdit_cli.media import save_png
from skipdit_cli.sampling.pixels import is_pixel_space

WIDTH, MARGIN, GAP = 1660, 24, 20
"""Pixels: twice the width of a README on GitHub, and the space around and between columns."""
AMPLIFICATION = 20
"""The factor by which errors are enlarged; an error of the whole range over this factor has the strongest colour."""


@dataclass(frozen=True)
class Theme:
    """The colours of a picture, as RGB.

    Args:
        background, text, faint: Of the canvas, of names and numbers, of units.
        ramp: From no error to an error of 1 / ``AMPLIFICATION`` of the range of pixels.
    """

    background: tuple[int, int, int]
    text: tuple[int, int, int]
    faint: tuple[int, int, int]
    ramp: tuple[tuple[int, int, int], ...]


LIGHT = Theme(
    (255, 255, 255), (31, 35, 40), (89, 99, 110), ((238, 241, 245), (244, 165, 96), (190, 30, 45), (70, 0, 30))
)
DARK = Theme(
    (13, 17, 23), (240, 246, 252), (145, 152, 161), ((28, 33, 41), (150, 40, 60), (245, 130, 60), (255, 240, 170))
)


@dataclass(frozen=True)
class Column:
    """One row of a bench as a column of the picture.

    Args:
        title: Two short lines.
        pixels, error: Of the sample that is shown, float in [0, 1], (H, W, 3) and (H, W).
        cost: In full forwards of the model.
        accuracy: In dB, ``psnr_exact`` or else ``psnr``; None for the reference itself.
    """

    title: tuple[str, str]
    pixels: np.ndarray
    error: np.ndarray
    cost: float
    accuracy: float | None


def save_pictures(bench, rows: Sequence[dict], paths: Sequence[Path]) -> None:
    """Write a light and a dark picture of a bench.

    Errors are those to the exact solution from the same noise or, where there is none, to the uncached run. The sample
    that is shown is the one of median error in the cached row.

    Args:
        bench: The ``Bench``, after its run.
        rows: Its rows.
        paths: The files, of the light and of the dark one.

    Raises:
        SkipditError: No cached row has a quality.
    """
    shown = choose_rows(rows, bench.macs)
    is_exact = all(rows[at]["reference"] in bench.solutions.exact for at, _ in shown)
    runs = [_samples(bench, rows, at, is_exact) for at, _ in shown]
    cached = next(errors for (at, _), (_, errors) in zip(shown, runs) if rows[at]["cache_layers"] is not None)
    sample = np.square(cached).mean((1, 2)).argsort()[len(cached) // 2]
    columns = [
        Column(title, pixels[sample], errors[sample], rows[at]["cost"], _accuracy(rows[at]))
        for (at, title), (pixels, errors) in zip(shown, runs)
    ]
    reference = "the exact solution" if is_exact else "the uncached run"
    legend = f"Error to {reference}, {AMPLIFICATION} times enlarged"
    record = {"command": "bench", "macs": bench.macs, "rows": [row for row in rows if not row["why"]]}
    for path, theme in zip(paths, (LIGHT, DARK)):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(draw(columns, theme, legend), path, record)


def choose_rows(rows: Sequence[dict], macs: dict[str, float]) -> list[tuple[int, tuple[str, str]]]:
    """Return the indices of the rows that are shown, each with a title of two lines.

    They are the uncached run, the most accurate cached row, the same cache without skip branches, as many steps as
    cost the same of the model's own sampler and of the best one, and the first plan.

    Args:
        rows: Rows of ``bench --json``.
        macs: Multiply-adds of a forward of each model: "vanilla", perhaps "skip".

    Raises:
        SkipditError: There is no cached row with a quality.
    """
    name = "skip-cache" if any(row["case"] == "skip-cache" for row in rows) else "vanilla-cache"
    cached = [row for row in rows if row["case"] == name and _accuracy(row) is not None]
    if not cached:
        raise SkipditError("No cached row has a quality, so there is nothing to make a --picture of; see the notes.")
    best = max(cached, key=lambda row: _accuracy(row) or 0)
    steps = best["cost"] * macs[best["reference"]] / macs["vanilla"]
    keys = ("schedule", "forecast", "cache_target", "cache_layers")
    found: dict[int, tuple[str, str]] = {}
    for row, title in (
        (_first(rows, case=best["reference"]), ("uncached", "{steps} steps")),
        (best, ("cached", "with branches" if name == "skip-cache" else "N = {cache_layers}")),
        (_first(rows, case="vanilla-cache", **{key: best[key] for key in keys}), ("cached", "no branches")),
        (_nearest(rows, "fewer-steps", steps), ("{steps} steps", "{sampler}")),
        (_nearest(rows, "fewer-steps-best", steps), ("{steps} steps", "{sampler}")),
        (_first(rows, case="plan"), ("plan", "{steps} steps")),
    ):
        if row is None or (row["case"] != row["reference"] and _accuracy(row) is None):
            continue  # there is none, or its result is NaN
        if rows.index(row) not in found:
            sampler = (row["sampler"] or "own sampler").split(" at ")[0].split()[0]
            shown = {**row, "sampler": sampler}
            found[rows.index(row)] = (title[0].format(**shown), title[1].format(**shown))
    return list(found.items())


def _first(rows: Sequence[dict], **values: object) -> dict | None:
    return next((row for row in rows if all(row[key] == value for key, value in values.items())), None)


def _nearest(rows: Sequence[dict], case: str, steps: float) -> dict | None:
    """Return the row of a case whose number of steps is nearest to ``steps``."""
    return min((row for row in rows if row["case"] == case), key=lambda row: abs(row["steps"] - steps), default=None)


def _accuracy(row: dict) -> float | None:
    return row["psnr_exact"] if row["psnr_exact"] is not None else row["psnr"]


def _samples(bench, rows: Sequence[dict], at: int, is_exact: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples of a row, (N, H, W, 3), and their errors, (N, H, W), as float in [0, 1]."""
    name = rows[at]["reference"]
    uncached = next(i for i, row in enumerate(rows) if row["case"] == name)
    reference = bench.solutions.exact[name] if is_exact else bench.generated[uncached]
    pixels, others = (_pixels(bench.pipe, each) for each in (bench.generated[at], reference))
    return pixels, np.abs(pixels - others).mean(-1)


def _pixels(pipe, samples) -> np.ndarray:
    """Return samples as float (N, H, W, 3) in [0, 1]; of a video its middle frame.

    Those of a model of pixels are not rounded to 8 bits, so that small errors are seen.
    """
    if is_pixel_space(pipe):
        latents = samples.latents.clamp(-1, 1)
        pixels = ((latents.expand(-1, 3, *latents.shape[2:]) + 1) / 2).movedim(1, -1).numpy()
    else:
        pixels = samples.images / 255
    return pixels[:, pixels.shape[1] // 2] if pixels.ndim == 5 else pixels


def draw(columns: Sequence[Column], theme: Theme, legend: str) -> Image.Image:
    """Return the picture of some columns: titles, samples, errors, costs and accuracies.

    Args:
        columns: From left to right.
        theme: The colours.
        legend: One line about the errors.
    """
    width = (WIDTH - 2 * MARGIN - GAP * (len(columns) - 1)) // len(columns)
    height = width * columns[0].pixels.shape[0] // columns[0].pixels.shape[1]
    size = width // 8
    line, bold, plain = size * 4 // 3, _font(size, bold=True), _font(size)
    top = MARGIN + 2 * line + GAP // 2
    middle = top + height + GAP + line
    bottom = middle + height + GAP
    canvas = Image.new("RGB", (WIDTH, bottom + 2 * line + MARGIN // 2), theme.background)
    pen = ImageDraw.Draw(canvas)
    pen.text((MARGIN, middle - line), legend, theme.faint, plain)
    for at, column in enumerate(columns):
        left = MARGIN + at * (width + GAP)
        accuracy = "-" if column.accuracy is None else f"{column.accuracy:.1f} dB"
        for place, text, colour, font in (
            (MARGIN, column.title[0], theme.text, bold),
            (MARGIN + line, column.title[1], theme.faint, plain),
            (bottom, accuracy, theme.text, bold),
            (bottom + line, f"cost {column.cost:.3g}", theme.faint, plain),
        ):
            pen.text((left + width // 2, place), text, colour, font, anchor="mt")
        canvas.paste(_enlarge(column.pixels, width, height), (left, top))
        canvas.paste(_enlarge(_colour(column.error, theme), width, height), (left, middle))
    return canvas


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return the font that comes with matplotlib."""
    from matplotlib.font_manager import FontProperties, findfont

    return ImageFont.truetype(
        findfont(FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")), size
    )


def _colour(errors: np.ndarray, theme: Theme) -> np.ndarray:
    """Return errors (H, W) as colours (H, W, 3), both in [0, 1]."""
    places, stops = np.linspace(0, 1, len(theme.ramp)), np.asarray(theme.ramp) / 255
    level = np.clip(errors * AMPLIFICATION, 0, 1)
    return np.stack([np.interp(level, places, stops[:, channel]) for channel in range(3)], -1)


def _enlarge(pixels: np.ndarray, width: int, height: int) -> Image.Image:
    """Return pixels (H, W, 3) in [0, 1] as an image: repeated where it is larger, averaged where it is smaller."""
    image = Image.fromarray((pixels * 255).round().astype(np.uint8))
    way = Image.Resampling.NEAREST if image.width <= width else Image.Resampling.LANCZOS
    return image.resize((width, height), way)
