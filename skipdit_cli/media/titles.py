"""Titles around a grid of images: of the whole, of its columns and of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image, ImageFont

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont  # load_default gives the latter where FreeType is missing

SIZE, LINE, MARGIN = 13, 17, 6
"""The size of the font, the height of a line and the margin around texts, in pixels."""
ROW_WIDTH = 200
"""The largest width of the titles of rows in pixels."""
INK = (32, 32, 32)


def add_titles(
    image: Image.Image, title: str = "", columns: Sequence[str] = (), rows: Sequence[str] = ()
) -> tuple[Image.Image, tuple[int, int]]:
    """Return a grid on white with its titles, and the position of the grid in it as (left, top).

    Texts are wrapped to the width of their column or to 200 pixels, and cut where they exceed the height of their row.

    Args:
        image: A grid of cells of one size.
        title: The title of the whole.
        columns, rows: The title of each column and of each row; empty for none.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(SIZE)
    row_height = max(1, image.height // LINE // max(1, len(rows)))
    row_lines = [_wrap(text, font, ROW_WIDTH, row_height) for text in rows]
    widest = max((font.getlength(line) for lines in row_lines for line in lines), default=-2 * MARGIN)
    left = int(widest) + 2 * MARGIN
    column_width = image.width / max(1, len(columns)) - 2
    column_lines = [_wrap(text, font, column_width, 3) for text in columns]
    header = max(map(len, column_lines), default=0)
    title_lines = _wrap(title, font, max(left + image.width - 2 * MARGIN, ROW_WIDTH), 3) if title else []
    top = LINE * (len(title_lines) + header) + MARGIN * bool(title_lines or header)
    needed = max((int(font.getlength(line)) + 2 * MARGIN for line in title_lines), default=0)
    canvas = Image.new("RGB", (max(left + image.width, needed), top + image.height), "white")
    canvas.paste(image, (left, top))
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(title_lines):
        draw.text((MARGIN, number * LINE), line, INK, font)
    for number, lines in enumerate(column_lines):
        centre = left + (number + 0.5) * image.width / len(columns)
        for k, line in enumerate(lines):
            draw.text((centre, top - MARGIN / 2 - LINE * (len(lines) - k)), line, INK, font, anchor="ma")
    for number, lines in enumerate(row_lines):
        middle = top + (number + 0.5) * image.height / len(rows)
        for k, line in enumerate(lines):
            draw.text((MARGIN, middle + LINE * (k - len(lines) / 2)), line, INK, font)
    return canvas, (left, top)


def _wrap(text: str, font: Font, width: float, max_lines: int) -> list[str]:
    """Return a text in lines of a width; a word or a text that is too long ends in an ellipsis."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], f"{lines[max_lines - 1]}…"]
    return [_cut(line, font, width) for line in lines]


def _cut(line: str, font: Font, width: float) -> str:
    if font.getlength(line) <= width:
        return line
    line = line.rstrip("…")
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"
