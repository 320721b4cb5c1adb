"""The description of a report, in plain data: what stands on its page, in the order of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from skipdit_cli.reports.charts import Plot
from skipdit_cli.reports.comparison import Comparison


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        name: Its heading.
        help: What it says, as a tooltip and in the list below the table.
        numeric: Whether its cells are aligned to the right.
    """

    name: str
    help: str
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A table. Its first column, which names the rows, stays in sight while the others scroll.

    Args:
        title: The heading above it.
        columns: The columns.
        rows: The cells of each row.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]


COSINES = (0.9999, 0.9997, 0.999, 0.997, 0.99, 0.9)
"""The lowest value of each level of a heat map but the last, for cosines of features."""


@dataclass(frozen=True)
class HeatMap:
    """Values over two axes.

    Args:
        title: What it is a map of.
        values: One sequence per cell of the axis down, with one entry per cell of the axis across; None where there is
            no value.
    """

    title: str
    values: Sequence[Sequence[float | None]]

    @property
    def lowest(self) -> tuple[float, int, int]:
        """The lowest value, with its place down and across."""
        return min(
            (value, down, across)
            for down, row in enumerate(self.values)
            for across, value in enumerate(row)
            if value is not None
        )


@dataclass(frozen=True)
class Axis:
    """An axis of heat maps: its name, and the text of each cell along it."""

    name: str
    cells: Sequence[str]

    def at(self, cell: int) -> str:
        """Return the name and the place of a cell: "step 2"."""
        return f"{self.name} {self.cells[cell]}"


@dataclass(frozen=True)
class HeatMaps:
    """Heat maps with the same axes and one scale.

    Args:
        title: The heading above them.
        maps: The maps.
        caption: The sentence that says what they show.
        measure: What a value is.
        across, down: The axes.
        bounds: The lowest value of each level but the last, which has what is left; in descending order.
        has_contours: Whether lines are drawn at the bounds, and cells are squares, as for a surface.
    """

    title: str
    maps: Sequence[HeatMap]
    caption: str
    measure: str
    across: Axis
    down: Axis
    bounds: Sequence[float] = COSINES
    has_contours: bool = False

    def level(self, value: float) -> int:
        """Return the level of a value: 0 for the highest."""
        return sum(value < bound for bound in self.bounds)


@dataclass(frozen=True)
class Schedule:
    """The full steps of one row.

    Args:
        name: The row.
        steps: The number of denoising steps.
        full: Indices of the full steps; None where only their number is known.
        count: The number of full steps.
    """

    name: str
    steps: int
    full: Sequence[int] | None
    count: int


@dataclass(frozen=True)
class Command:
    """A command line, and what it does."""

    text: str
    purpose: str


@dataclass(frozen=True)
class Report:
    """A report. Sections without content are left out of the page.

    Args:
        title: The heading of the page.
        subtitle: A line below it: model, device, date.
        lead: The result in one or two sentences.
        details: Further sentences of the verdict.
        warnings: What makes the figures uncertain.
        comparison: The samples of the rows.
        plots: Plots of quality over cost.
        tables: Tables of all figures.
        curves: Loss curves.
        maps: Heat maps, such as feature similarity by step and block.
        schedules: The full steps of each row.
        commands: The command lines that make the report again.
        facts: Versions, machine, date and settings, by name.
        notes: What a reader has to know besides.
    """

    title: str
    subtitle: str = ""
    lead: str = ""
    details: Sequence[str] = ()
    warnings: Sequence[str] = ()
    comparison: Comparison | None = None
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    curves: Sequence[Plot] = ()
    maps: Sequence[HeatMaps] = ()
    schedules: Sequence[Schedule] = ()
    commands: Sequence[Command] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
