"""The placement of labels beside the points of a plot, so that no two of them overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CHARACTER_WIDTH = 0.6
"""The width of a character of a sans-serif font, at most in the mean of a label, in font sizes."""
LINE_HEIGHT = 1.2
MARK = 7.0
"""Half of the side of the square that a mark takes."""
RADII = (0.0, 8.0, 18.0, 30.0, 44.0, 60.0, 80.0)
"""How far from its mark a label may lie; the nearest free place is taken."""
DIRECTIONS = 16
LEADER = 8.0
"""The distance from which a line leads from the mark to its label."""


@dataclass(frozen=True)
class Box:
    """A rectangle with sides along the axes; y points down."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Return whether two rectangles have an area in common."""
        apart = self.right <= other.left or other.right <= self.left
        return not (apart or self.bottom <= other.top or other.bottom <= self.top)

    def is_inside(self, other: Box) -> bool:
        """Return whether it lies in another rectangle."""
        across = other.left <= self.left and self.right <= other.right
        return across and other.top <= self.top and self.bottom <= other.bottom


@dataclass(frozen=True)
class Label:
    """A label in its place.

    Args:
        text: Its text.
        box: The rectangle that the text takes.
        leader: The ends (x1, y1, x2, y2) of the line to its mark; None where it lies beside the mark.
        anchor: Which part of the text is nearest to the mark, as SVG names it: "start", "middle" or "end".
    """

    text: str
    box: Box
    leader: tuple[float, float, float, float] | None
    anchor: str

    @property
    def x(self) -> float:
        """The place of the anchor across."""
        box = self.box
        return {"start": box.left, "middle": (box.left + box.right) / 2, "end": box.right}[self.anchor]


def place_labels(
    points: Sequence[tuple[float, float, str]],
    area: Box,
    font: float,
    reach: float = RADII[-1],
    marks: Sequence[tuple[float, float]] = (),
    bars: Sequence[Box] = (),
) -> list[Label]:
    """Return the labels that find a free place, the first of the points first.

    A label overlaps neither another label nor a mark, and lies in the area. It crosses a bar only where no other place
    is free.

    Args:
        points: The place of each mark and the text of its label.
        area: Where labels may lie.
        font: The font size.
        reach: How far from its mark a label may lie.
        marks: Further marks, which have no label.
        bars: The bars of spreads.
    """
    taken = [Box(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in (*((x, y) for x, y, _ in points), *marks)]
    labels: list[Label] = []
    for x, y, text in points:
        width, height = CHARACTER_WIDTH * font * len(text), LINE_HEIGHT * font
        free = [
            (box, distance)
            for box, distance in _places(x, y, width, height)
            if distance <= reach and box.is_inside(area) and not any(box.overlaps(other) for other in taken)
        ]
        clear = [place for place in free if not any(place[0].overlaps(bar) for bar in bars)]
        for box, distance in (clear or free)[:1]:
            end = (min(max(x, box.left), box.right), min(max(y, box.top), box.bottom))
            anchor = "start" if box.left >= x else "end" if box.right <= x else "middle"
            labels.append(Label(text, box, (x, y, *end) if distance > LEADER else None, anchor))
            taken.append(box)
    return labels


def _places(x: float, y: float, width: float, height: float):
    """Yield the rectangles that a label may take around a mark, and their distance from it, the nearest first."""
    for radius in RADII:
        for turn in range(DIRECTIONS):
            angle = math.pi * (2 * turn / DIRECTIONS - 0.5)
            dx, dy = math.cos(angle), math.sin(angle)
            across = x + dx * (MARK + 1 + radius) + (width * (_side(dx) - 1)) / 2
            down = y + dy * (MARK + 1 + radius) + (height * (_side(dy) - 1)) / 2
            yield Box(across, down, across + width, down + height), radius


def _side(part: float) -> float:
    """Return which side of a mark a label is on along one axis: -1, 0 (in the middle) or 1."""
    return 0.0 if abs(part) < 0.3 else math.copysign(1.0, part)
