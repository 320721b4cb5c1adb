"""The HTML of a report, and the comparison of its samples."""

import base64
import io
import json
import re
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from skipdit_cli.reports import Axis, HeatMap, HeatMaps, Report, make_comparison, render
from skipdit_cli.reports.contours import contour_path
from tests.support.small_report import images, small_report


@pytest.fixture(scope="module")
def page() -> str:
    return render(small_report())


def test_sections_come_in_order_and_headings_skip_no_level(page):
    headings = re.findall(r"<h([1-6])[^>]*>([^<]*)</h", page)
    assert [text for level, text in headings if level == "2"] == [
        "Result", "Compare the pictures", "Quality against cost", "All figures", "Training", "Scaling",
        "Feature similarity by step and block", "Which steps were full", "Make it again", "Notes and versions",
    ]  # fmt: skip
    levels = [int(level) for level, _ in headings]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b <= a + 1 for a, b in pairwise(levels))


def test_the_page_loads_nothing_and_escapes_text(page):
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page) and "http" not in re.sub(r'http-equiv="', "", page)
    assert "A verdict &lt;in words&gt;." in page and "<in words>" not in page
    assert page.count("<svg") == page.count("</svg>")


def test_columns_have_tooltips_and_marks_have_titles(page):
    columns = re.findall(r'<th scope="col"[^>]*title="([^"]*)"', page)
    assert len(columns) == page.count('<th scope="col"') > 5 and all(len(text) > 10 for text in columns)
    assert "<title>Skip-DiT, late-dense 6, taylor2 residual, N=1: 31.0 dB at a cost of 7.7</title>" in page
    assert "<title>block 0, step 2: 0.9000</title>" in page


def test_an_empty_report_is_a_page():
    page = render(Report("Nothing"))
    assert "<h1>Nothing</h1>" in page and "<h2" not in page


def test_samples_are_compared_in_pairs_and_the_worst_comes_first():
    exact, cached = images(4, 0), images(4, 8)
    cached[3] = exact[3]
    comparison = make_comparison({"exact": exact, "cached": cached}, list("abcd"))
    assert comparison.worst_first == [0, 1, 2, 3] and comparison.psnr["0-1"][3] is None
    error = np.mean((exact[0].astype(float) - cached[0]) ** 2)
    assert comparison.psnr["0-1"][0] == pytest.approx(10 * np.log10(255**2 / error), abs=0.01)
    assert len(comparison.files) == 7 and comparison.places[0][3] == comparison.places[1][3]
    file = base64.b64decode(comparison.files[0].split(",")[1])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(file)).convert("RGB")), exact[0])


def test_frames_of_a_video_lie_side_by_side():
    comparison = make_comparison({"a": images(2, 0, frames=3), "b": images(2, 5, frames=3)}, ["1", "2"])
    file = base64.b64decode(comparison.files[0].split(",")[1])
    assert comparison.frames == 3 and Image.open(io.BytesIO(file)).size == (24, 8)
    assert make_comparison({"a": images(2, 0)}, ["1", "2"]) is None


def test_pictures_that_are_too_many_are_scaled_down_and_left_out():
    generator = np.random.default_rng(0)
    rows = {name: generator.integers(0, 255, (6, 128, 128, 3), np.uint8) for name in "ab"}
    comparison = make_comparison(rows, list("123456"), limit=400_000)
    assert sum(map(len, comparison.files)) <= 400_000
    assert comparison.width == comparison.height < 128 and len(comparison.samples) == 4
    assert "2 of 6 samples are left out" in comparison.left_out and "128x128" in comparison.left_out
    assert comparison.psnr["0-1"][0] == pytest.approx(make_comparison(rows, list("123456")).psnr["0-1"][0])


def test_the_levels_of_a_heat_map():
    cosines = (1.0, 0.9999, 0.9998, 0.998, 0.99, 0.95, 0.5, -1.0)
    maps = HeatMaps("", [], "", "", Axis("step", []), Axis("block", []))
    assert [maps.level(cosine) for cosine in cosines] == [0, 0, 1, 3, 4, 5, 6, 6]


def test_the_data_of_the_comparison_is_json(page):
    text = re.search(r'<script type="application/json" id="comparison">(.*?)</script>', page, re.DOTALL).group(1)
    data = json.loads(text)
    assert data["names"][:2] == ["exact solution with skip branches", "exact solution without skip branches"]
    assert len(data["places"]) == len(data["names"]) and len(data["samples"]) == 5


def test_contours_pass_between_the_cells():
    assert contour_path([[0.0, 1.0], [0.0, 1.0]], 0.25) == "M0.750 0.500L0.750 1.500"
    assert contour_path([[0.0, 1.0], [None, 1.0]], 0.25) == contour_path([[1.0, 1.0], [1.0, 1.0]], 0.25) == ""


def test_a_surface_has_contours_and_its_minimum():
    axes = [Axis(name, ["-1", "0", "1"]) for name in ("alpha", "beta")]
    values = [[0.5, 0.8, 0.6], [0.7, 1.0, 0.7], [0.6, 0.8, 0.4]]
    maps = HeatMaps("Surfaces", [HeatMap("DiT", values)], "How far.", "cosine", *axes, (0.9, 0.8, 0.7, 0.6, 0.5), True)
    page = render(Report("A", maps=[maps]))
    assert "DiT: lowest 0.4000, at beta 1, alpha 1" in page and page.count('class="contour"') == 5
    assert "<title>beta 0, alpha 0: 1.0000</title>" in page and 'class="lowest" cx="2.5" cy="2.5"' in page
