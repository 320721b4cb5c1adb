"""What the user sees: lines, tables and progress on a terminal, plain lines elsewhere, one JSON object on request."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

SCHEMA = 1
PLAIN_EVERY_SECONDS = 30.0

_json = False


def use_json(on: bool) -> None:
    """With ``on``, stdout is kept for one JSON object and everything else goes to stderr."""
    global _json
    _json = on


def screen() -> Console:
    """Where text for people goes: stdout, or stderr while stdout is kept for JSON."""
    return Console(stderr=_json, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line for people; square brackets are shown as they are."""
    screen().print(escape(text))


def warn(text: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print("[yellow]Warning:[/yellow] " + escape(text))


def error(text: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print("[bold red]Error:[/bold red] " + escape(text))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """A table; a column whose cells all are numbers (or "-") is set to the right."""
    drawn = Table(title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for at, name in enumerate(columns):
        numeric = bool(rows) and all(_numeric(row[at]) for row in rows)
        drawn.add_column(name, justify="right" if numeric else "left")
    for row in rows:
        drawn.add_row(*(escape(str(cell)) for cell in row))
    screen().print(drawn)


def _numeric(cell: object) -> bool:
    return str(cell).strip("x%+-").replace(",", "").replace(".", "", 1).isdigit() or str(cell) in ("-", "")


def emit(payload: dict) -> None:
    """The result of a command: under ``--json`` the one object on stdout, else nothing."""
    if _json:
        sys.stdout.write(json.dumps({"schema": SCHEMA, **payload}, indent=2) + "\n")


class Advance:
    """Counts the work done within ``progress``; call it once per unit, with an optional note to show."""

    def __init__(self, description: str, total: int, bar: Progress | None):
        self.description, self.total, self.bar = description, total, bar
        self.done = self.shown = 0
        self.began = self.last = time.monotonic()
        self.task = bar.add_task(description, total=total, note="") if bar else None

    def __call__(self, count: int = 1, note: str = "") -> None:
        self.done += count
        if self.bar:
            self.bar.update(self.task, advance=count, note=note)
            return
        now = time.monotonic()
        tenth = 10 * self.done // max(self.total, 1) > 10 * self.shown // max(self.total, 1)
        if now - self.last >= PLAIN_EVERY_SECONDS or (tenth and now - self.last >= 1):
            rate = self.done / max(now - self.began, 1e-9)
            say(f"{self.description} {self.done}/{self.total} {rate:.1f} it/s {note}".rstrip())
            self.last, self.shown = now, self.done


@contextmanager
def progress(description: str, total: int) -> Iterator[Advance]:
    """Progress over ``total`` units: a bar on a terminal, elsewhere a plain line every 30 s or 10 %."""
    console = screen()
    if not console.is_terminal:
        yield Advance(description, total, None)
        return
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console, transient=True) as bar:
        yield Advance(description, total, bar)
