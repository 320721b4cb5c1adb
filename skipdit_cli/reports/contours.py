"""Contour lines of a heat map, by marching squares between the middles of its cells."""

from __future__ import annotations

from collections.abc import Sequence

Corner = tuple[float, float, float]
"""x, y and the value there."""


def contour_path(values: Sequence[Sequence[float | None]], level: float) -> str:
    """Return the contour of a level as the path of an SVG in which a cell is 1 wide and 1 high; empty without one."""
    pieces = []
    for y in range(len(values) - 1):
        for x in range(len(values[y]) - 1):
            places = ((x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1))
            square = [(column + 0.5, row + 0.5, values[row][column]) for column, row in places]
            if any(value is None for *_, value in square):
                continue
            points = _crossings(square, level)  # type: ignore[arg-type]  # no value is None
            pieces += [f"M{a[0]:.3f} {a[1]:.3f}L{b[0]:.3f} {b[1]:.3f}" for a, b in zip(points[::2], points[1::2])]
    return "".join(pieces)


def _crossings(square: Sequence[Corner], level: float) -> list[tuple[float, float]]:
    """Return where a level crosses the edges of a square, in pairs: none, two or four points."""
    points = []
    for (x, y, value), (next_x, next_y, following) in zip(square, (*square[1:], square[0])):
        if (value >= level) != (following >= level):
            share = (level - value) / (following - value)
            points.append((x + share * (next_x - x), y + share * (next_y - y)))
    return points
