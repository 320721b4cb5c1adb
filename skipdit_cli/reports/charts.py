"""Plots: points and lines in data coordinates, and the chart of a plot in pixels, for one width of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from skipdit_cli.reports.palette import NUM_SERIES
from skipdit_cli.reports.placement import CHARACTER_WIDTH, Box, Label, place_labels

SHAPES = ("circle", "square", "diamond", "triangle", "cross", "star")
MARK_SIZE = 5.0
PLAIN = -1
"""The colour of a series that is drawn in the colour of text."""
WIDE, NARROW = (1000, 520, 14), (360, 380, 12)
"""Width, height and font size of a chart in pixels: on a wide page, and on a phone."""
REACH = 0.045
"""How far from its mark a label may lie, in widths of the chart."""
LOG_DIGITS = (1, 1.5, 2, 3, 5, 7)
FEWEST_TICKS = 3
"""A logarithmic axis with fewer round numbers than these has evenly spaced ones."""
TICK_DISTANCE = 48
"""The least distance in pixels between two ticks, whose texts may be longer."""
CAP = 3.5
"""Half the width of the end of a bar."""
DECADES = 2.5
"""On a logarithmic axis that spans more decades, ticks are powers of ten."""


@dataclass(frozen=True)
class Point:
    """A point of a plot.

    Args:
        x, y: Its place.
        label: What stands beside it; empty for nothing.
        title: What it shows on hover.
        spread: Half the length of the bar that shows how far y varies; 0 for no bar.
    """

    x: float
    y: float
    label: str = ""
    title: str = ""
    spread: float = 0.0

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of its bar."""
        return self.y - self.spread, self.y + self.spread


@dataclass(frozen=True)
class Series:
    """Points with one name in the legend.

    Args:
        name: The name.
        points: The points.
        colour: Number of a colour of the palette, or ``PLAIN``.
        shape: One of ``SHAPES``; empty for a line without marks.
        hollow: Whether marks are outlines.
        joined: Whether a line joins the points.
        faint: Whether it is drawn in the background.
    """

    name: str
    points: Sequence[Point]
    colour: int = PLAIN
    shape: str = "circle"
    hollow: bool = False
    joined: bool = False
    faint: bool = False

    @property
    def css(self) -> str:
        """The CSS classes of its marks and lines."""
        colour = "plain" if self.colour == PLAIN else f"series-{self.colour % NUM_SERIES}"
        return f"{colour}{' hollow' * self.hollow}{' faint' * self.faint}"


@dataclass(frozen=True)
class Plot:
    """A plot.

    Args:
        title: The heading above it.
        caption: What it shows, in a sentence.
        x_label, y_label: What the axes are.
        series: The series, those in the background first.
        log_x, log_y: Whether the axis across, and the one upwards, is logarithmic. A bar that goes below 0 ends at a
            tenth of its point.
        has_front: Whether a line joins the points that no other point beats in both, x being the lower the better and
            y the higher. Points on it are labelled first.
    """

    title: str
    caption: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    has_front: bool = False

    def front(self) -> list[Point]:
        """Return the points that no other point beats in both coordinates, by x."""
        best: list[Point] = []
        for point in sorted((p for each in self.series for p in each.points), key=lambda p: (p.x, -p.y)):
            if not best or point.y > best[-1].y:
                best.append(point)
        return best


@dataclass(frozen=True)
class Mark:
    """A mark in pixels: its CSS classes, its shape and what it shows on hover."""

    x: float
    y: float
    css: str
    shape: str
    title: str


@dataclass(frozen=True)
class Chart:
    """A plot in pixels.

    Args:
        width, height, font: Sizes of the whole, and of its text.
        area: Where points lie.
        x_ticks, y_ticks: Place and text of each tick.
        lines: CSS classes and points, as SVG writes them, of each line.
        bars: CSS classes, x and both ends of the bar of each point that has one.
        marks: The marks.
        labels: The labels of points.
    """

    width: int
    height: int
    font: int
    area: Box
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    lines: Sequence[tuple[str, str]]
    bars: Sequence[tuple[str, float, float, float]]
    marks: Sequence[Mark]
    labels: Sequence[Label]


def draw(plot: Plot, size: tuple[int, int, int]) -> Chart:
    """Return the chart of a plot for one size of the page: ``WIDE`` or ``NARROW``."""
    width, height, font = size
    points = [point for series in plot.series for point in series.points]
    xs, bars = [point.x for point in points], [_bar(point, plot.log_y) for point in points]
    ys = [end for bar in bars for end in bar]
    across: Callable[[float], float] = math.log if plot.log_x else float
    upwards: Callable[[float], float] = math.log if plot.log_y else float
    low, high = _widened(upwards(min(ys)), upwards(max(ys)), 0.12)
    y_values = _log_ticks(low, high, height, 0) if plot.log_y else _ticks(ys, 6)
    y_texts = _texts(y_values)
    left = CHARACTER_WIDTH * font * max(map(len, y_texts)) + 14
    area = Box(left, 8.0, width - 12.0, height - 2.4 * font)
    x_low, x_high = _widened(across(min(xs)), across(max(xs)), 0.05)

    def at_x(x: float) -> float:
        return round(area.left + (across(x) - x_low) / (x_high - x_low) * (area.right - area.left), 1)

    def at_y(y: float) -> float:
        return round(area.bottom - (upwards(y) - low) / (high - low) * (area.bottom - area.top), 1)

    x_values = _log_ticks(x_low, x_high, width, font) if plot.log_x else _ticks(xs, width // 90)
    front = plot.front() if plot.has_front else []
    first = [*front, *(point for point in points if point not in front)]
    labelled = [(at_x(point.x), at_y(point.y), point.label) for point in first if point.label]
    others = [(at_x(p.x), at_y(p.y)) for each in plot.series if each.shape for p in each.points if not p.label]
    drawn_bars = [
        (series.css, at_x(point.x), at_y(ends[0]), at_y(ends[1]))
        for series in plot.series
        for point in series.points
        if point.spread
        for ends in [_bar(point, plot.log_y)]
    ]
    obstacles = [Box(x - CAP, end, x + CAP, begin) for _, x, begin, end in drawn_bars]
    return Chart(
        *size,
        area,
        x_ticks=[(at_x(value), text) for value, text in zip(x_values, _texts(x_values))],
        y_ticks=[(at_y(value), text) for value, text in zip(y_values, y_texts) if low <= upwards(value) <= high],
        lines=[*_front_line(front, at_x, at_y, area), *_lines(plot.series, at_x, at_y)],
        bars=drawn_bars,
        marks=[
            Mark(at_x(point.x), at_y(point.y), series.css, series.shape, point.title)
            for series in plot.series
            if series.shape
            for point in series.points
        ],
        labels=place_labels(labelled, area, font, REACH * width, others, obstacles),
    )


def _bar(point: Point, log_y: bool) -> tuple[float, float]:
    """Return the ends of a point's bar; on a logarithmic axis they are above 0."""
    low, high = point.ends
    return (low if low > 0 or not log_y else point.y / 10), high


def _lines(series: Sequence[Series], at_x: Callable, at_y: Callable) -> list[tuple[str, str]]:
    """Return the lines of the series that are joined."""
    return [
        (each.css, " ".join(f"{at_x(p.x)},{at_y(p.y)}" for p in sorted(each.points, key=lambda p: p.x)))
        for each in series
        if each.joined and len(each.points) > 1
    ]


def _front_line(front: Sequence[Point], at_x: Callable, at_y: Callable, area: Box) -> list[tuple[str, str]]:
    """Return the step line of the Pareto front, which goes on to the right of its last point."""
    if len(front) < 2:
        return []
    corners = [f"{at_x(front[0].x)},{at_y(front[0].y)}"]
    for former, point in pairwise(front):
        corners += [f"{at_x(point.x)},{at_y(former.y)}", f"{at_x(point.x)},{at_y(point.y)}"]
    return [("front", " ".join([*corners, f"{area.right},{at_y(front[-1].y)}"]))]


def _widened(low: float, high: float, share: float) -> tuple[float, float]:
    """Return a range with a margin at both ends, and of some width."""
    margin = share * (high - low) or max(abs(high), 1.0) * 0.1
    return low - margin, high + margin


def _ticks(values: Sequence[float], count: int) -> list[float]:
    """Return about ``count`` round numbers from the range of values; whole numbers if all of these are."""
    low, high = min(values), max(values)
    span = (high - low) or max(abs(high), 1.0)
    raw = span / max(count, 2)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= raw * 0.999)
    if high > low and all(float(value).is_integer() for value in values):
        step = max(step, 1.0)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(at * step, 10) for at in range(first, last + 1)] or [low]


def _log_ticks(low: float, high: float, length: int, font: int) -> list[float]:
    """Return round numbers between two logarithms, so far apart that their texts do not touch.

    Args:
        length: The length of the axis in pixels.
        font: The font size of the texts of an axis across; 0 for one upwards, where they lie above each other.
    """
    digits = (1,) if high - low > DECADES * math.log(10) else LOG_DIGITS
    powers = range(math.floor(low / math.log(10)), math.ceil(high / math.log(10)) + 1)
    values = [value for power in powers for d in digits if low <= math.log(value := d * 10.0**power) <= high]
    if len(values) < FEWEST_TICKS:
        values = [value for value in _ticks([math.exp(low), math.exp(high)], 6) if value > 0]
    chosen: list[float] = []
    for value in values:
        texts = [CHARACTER_WIDTH * font * len(text) for text in _texts([value, *chosen[-1:]])]
        distance = max(TICK_DISTANCE, sum(texts) / 2 + font)
        if not chosen or (math.log(value) - math.log(chosen[-1])) * length >= (high - low) * distance:
            chosen.append(value)
    return chosen or [math.exp((low + high) / 2)]


def _texts(values: Sequence[float]) -> list[str]:
    """Return numbers as text."""
    return [f"{value:.4g}" for value in values]
