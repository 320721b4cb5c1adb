"""Colours, charts and the placement of labels."""

import json
from itertools import pairwise

import pytest

from skipdit_cli.reports import make_loss_plot
from skipdit_cli.reports.charts import NARROW, WIDE, Plot, Point, Series, draw
from skipdit_cli.reports.palette import COLOURS, NUM_SERIES
from skipdit_cli.reports.placement import MARK, Box, place_labels
from tests.support.small_report import small_report

TEXT_PAIRS = [(text, ground) for text in ("text", "muted", "accent", "warning") for ground in ("page", "panel")]
TEXT_PAIRS += [("on-accent", "accent")]
"""Pairs of a text and its ground, which need a contrast of 4.5."""
GRAPHIC_PAIRS = [(f"series-{at}", "page") for at in range(NUM_SERIES)] + [("edge", "page"), ("edge", "panel")]
"""Pairs of a mark or the edge of a control and its ground, which need a contrast of 3."""


def contrast(colour: str, other: str) -> float:
    """Return the contrast of two colours "#rrggbb", from 1 to 21 (WCAG 2.2, "contrast ratio")."""
    bright, dark = sorted((_luminance(colour), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    """Return the relative luminance of a colour "#rrggbb"."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast_is_that_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_colours_have_the_contrast_of_level_aa(mode):
    for pairs, least in ((TEXT_PAIRS, 4.5), (GRAPHIC_PAIRS, 3.0)):
        for one, other in pairs:
            value = contrast(COLOURS[one][mode], COLOURS[other][mode])
            assert value >= least, f"{one} on {other} has a contrast of {value:.2f}"
    levels = [contrast(COLOURS[f"level-{at}"][mode], COLOURS["page"][mode]) for at in range(7)]
    assert levels == sorted(levels), "the scale of a heat map is read by its lightness alone"


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_no_two_labels_overlap_and_none_hides_a_mark(size):
    plot = small_report().plots[0]
    chart = draw(plot, size)
    boxes = [label.box for label in chart.labels]
    marks = [Box(mark.x - MARK, mark.y - MARK, mark.x + MARK, mark.y + MARK) for mark in chart.marks]
    assert len(boxes) >= len(plot.front())
    for at, box in enumerate(boxes):
        assert box.is_inside(chart.area)
        assert not any(box.overlaps(other) for other in (*boxes[at + 1 :], *marks))


def test_labels_of_points_in_one_place_lead_to_it_or_are_left_out():
    crowd = [(50.0, 50.0, f"point {at}") for at in range(60)]
    labels = place_labels(crowd, Box(0, 0, 300, 200), 12)
    assert 4 < len(labels) < 60 and labels[0].text == "point 0" and labels[0].leader is None
    assert labels[-1].leader[:2] == (50.0, 50.0)
    assert place_labels(crowd[:1], Box(45, 45, 55, 55), 12) == []


def test_the_front_has_the_points_that_no_cheaper_one_reaches():
    series = [Series("a", [Point(1, 5), Point(2, 4), Point(3, 7)]), Series("b", [Point(2, 6), Point(3, 7)])]
    plot = Plot("", "", "", "", series, has_front=True)
    assert [(point.x, point.y) for point in plot.front()] == [(1, 5), (2, 6), (3, 7)]


def test_a_plot_of_one_point_has_axes():
    chart = draw(Plot("", "", "", "", [Series("a", [Point(9, 30.0, "one")])], log_x=True), NARROW)
    assert chart.x_ticks and chart.y_ticks and chart.labels[0].text == "one"


def test_the_axis_of_a_count_has_whole_numbers_alone():
    plot = Plot("", "", "", "", [Series("one", [Point(2, 1.5), Point(3, 2.5)])])
    assert [text for _, text in draw(plot, WIDE).x_ticks] == ["2", "3"]


def test_the_spread_of_a_point_is_a_bar_and_every_tick_of_a_logarithmic_axis_lies_in_the_chart():
    points = [Point(1e3, 2.0, spread=1.0), Point(1e9, 50.0, spread=60.0), Point(1e6, 7.0)]
    chart = draw(Plot("", "", "", "", [Series("a", points)], log_x=True, log_y=True), NARROW)
    assert len(chart.bars) == 2 and len(chart.marks) == 3
    for (_, x, low, high), mark in zip(chart.bars, chart.marks):
        assert x == mark.x and chart.area.bottom >= low > mark.y > high >= chart.area.top
    heights = [y for y, _ in chart.y_ticks]
    assert len(heights) >= 3 and all(chart.area.top <= y <= chart.area.bottom for y in heights)
    assert {text for _, text in chart.x_ticks} >= {"1000", "1e+06", "1e+09"}


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_labels_keep_clear_of_bars_and_texts_of_ticks_of_each_other(size):
    points = [Point(1e-4 * 1.2**at, 20 + at % 3, f"model {at}", spread=4.0) for at in range(12)]
    chart = draw(Plot("", "", "", "", [Series("a", points)], log_x=True), size)
    bars = [Box(x - 1, top, x + 1, bottom) for _, x, bottom, top in chart.bars]
    crossing = [each for each in chart.labels if any(each.box.overlaps(bar) for bar in bars)]
    assert len(chart.labels) > 5 and (size is NARROW or not crossing)  # on a phone no place is free of bars
    ends = [(x - 0.3 * chart.font * len(text), x + 0.3 * chart.font * len(text)) for x, text in chart.x_ticks]
    assert len(ends) > 2 and all(left[1] < right[0] for left, right in pairwise(ends))


@pytest.mark.parametrize(("low", "high"), [(0.9, 0.95), (20.1, 29.9), (1.0, 1.4)])
def test_a_logarithmic_axis_without_round_digits_has_evenly_spaced_ticks(low, high):
    chart = draw(Plot("", "", "", "", [Series("a", [Point(1, low), Point(2, high)])], log_y=True), WIDE)
    assert len(chart.y_ticks) >= 3 and all(len(text) <= 5 for _, text in chart.y_ticks)


def test_loss_curves_follow_each_other(tmp_path):
    for name, count in (("one", 40), ("two", 3)):
        lines = (json.dumps({"step": step + 1, "loss": None if step == 7 else 1.0}) for step in range(count))
        (tmp_path / name).write_text("\n".join(lines))
    plot = make_loss_plot({"one": tmp_path / "one", "two": tmp_path / "two", "none": tmp_path / "none"})
    assert [len(series.points) for series in plot.series] == [39, 39, 3, 3]
    assert plot.series[2].points[0].x == 40 and plot.series[1].name == "one, mean 1.0000"
    assert make_loss_plot({"none": tmp_path / "none"}) is None
