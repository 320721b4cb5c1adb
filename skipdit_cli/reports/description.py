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


@dataclass(frozen=True)
class HeatMap:
    """The cosine of each block's output between successive denoising steps.

    Args:
        title: Which model it is.
        values: One sequence per block, with one entry per step from the second on; None where there is no value.
    """

    title: str
    values: Sequence[Sequence[float | None]]

    @property
    def lowest(self) -> tuple[float, int, int]:
        """The lowest value, with its block and its step."""
        return min(
            (value, block, step)
            for block, row in enumerate(self.values)
            for step, value in enumerate(row, 2)
            if value is not None
        )


@dataclass(frozen=True)
class HeatMaps:
    """Heat maps on one scale, and the sentence that says what they show."""

    maps: Sequence[HeatMap]
    caption: str


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
        similarity: Feature similarity by step and block.
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
    similarity: HeatMaps | None = None
    schedules: Sequence[Schedule] = ()
    commands: Sequence[Command] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
