"""The columns of tables for a terminal: folded to its width, numbers aligned."""

from __future__ import annotations

from collections.abc import Sequence


def fold(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """Return the columns of each of the tables that a table is folded into."""
    widths = [2 + max(len(cell) for cell in (name, *(row[at] for row in rows))) for at, name in enumerate(columns)]
    parts, room = [[0]], width - widths[0]
    for at in range(1, len(columns)):
        if widths[at] > room + 2 and len(parts[-1]) > 1:
            parts, room = [*parts, [0]], width - widths[0]
        parts[-1].append(at)
        room -= widths[at]
    return parts


def make_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str):
    """Return a table of Rich; columns of numbers (or "-") are right-aligned."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(title_justify="left", header_style="bold", box=None, pad_edge=False)
    grid.title = Text(title, "table.title") if title else None
    for index, name in enumerate(columns):
        numeric = bool(rows) and all(_is_numeric(row[index]) for row in rows)
        grid.add_column(Text(name), justify="right" if numeric else "left")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    return grid


def _is_numeric(cell: str) -> bool:
    return cell.strip("x%+-").replace(",", "").replace(".", "", 1).isdigit() or cell in ("-", "")
