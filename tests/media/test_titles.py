"""Titles around a grid of images."""

import numpy as np
import pytest
from PIL import Image

from skipdit_cli import media

GRID = Image.new("RGB", (240, 120), "black")
ROWS = ["uncached", "a caption that is far too long for its row " * 5]


@pytest.mark.parametrize(
    "title, columns, rows",
    [("", (), ()), ("step 100", (), ()), ("", ["0", "1", "2"], ()), ("", (), ROWS), ("t " * 200, ["x" * 99], ROWS)],
)
def test_titles_leave_the_grid_as_it_is(title, columns, rows):
    titled, (left, top) = media.add_titles(GRID, title, columns, rows)
    right, bottom = left + GRID.width, top + GRID.height
    assert titled.crop((left, top, right, bottom)).tobytes() == GRID.tobytes()
    assert titled.width >= right and titled.height == bottom
    pixels = np.asarray(titled)
    assert (pixels[:top, left:right] < 255).any() == bool(title or columns)
    assert (pixels[top:, :left] < 255).any() == bool(rows)
    assert (left > 0, top > 0) == (bool(rows), bool(title or columns))


def test_a_long_title_does_not_widen_the_picture():
    plain, _ = media.add_titles(GRID, "", (), ["a"])
    titled, (left, _) = media.add_titles(GRID, "w" * 500, ["y" * 500], ["a"])
    assert titled.width == plain.width
    assert left < 230
