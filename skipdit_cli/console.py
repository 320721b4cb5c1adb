"""Terminal output: lines, tables and progress bars, and the one JSON object of ``--json``.

Messages that the package logs (``logging.getLogger("skipdit_cli...")``) are printed here too.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from skipdit_cli.formats import to_json
from skipdit_cli.tables import fold, make_table

SCHEMA = 1
_HARMLESS = "\n\t\u3000\xa0\u200c\u200d"  # not isprintable(): line breaks, tabs, spaces, joiners of scripts and emoji
PLAIN_INTERVAL = 30.0  # seconds between two lines of progress without a terminal
PLAIN_WIDTH = 1000

_json = _emitted = _silent = False
_warned: dict[str, object] = {}


def use_json(on: bool) -> None:
    """Reserve stdout for one JSON object, or release it; everything else then goes to stderr."""
    global _json
    _json = on


def be_silent(on: bool) -> None:
    """Print nothing but errors, as all processes of a run but the main one do; or print again."""
    global _silent
    _silent = on


@contextmanager
def own_json(on: bool) -> Iterator[None]:
    """Apply ``use_json(on)`` to one command, and restore the former state after it."""
    global _json, _emitted
    before = _json, _emitted
    _json, _emitted = on, False
    _warned.clear()
    try:
        yield
    finally:
        _json, _emitted = before


def screen(stderr: bool | None = None) -> Console:
    """Return the console for text: stdout, or stderr while stdout is reserved for JSON.

    Lines are never wrapped; without a terminal, tables are not squeezed into 80 columns either.
    """
    to_stderr = _json if stderr is None else stderr
    console = Console(stderr=to_stderr, highlight=False, soft_wrap=True, emoji=False, quiet=_silent)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


def printable(text: object) -> str:
    """Escape what a terminal would interpret instead of display: control characters, changes of the writing direction,
    surrogates of undecodable file names. Line breaks and tabs stay.

    Everything printed is escaped here, as names, prompts and messages of libraries may be untrusted.
    """
    return "".join(char if _is_displayable(char) else char.encode("unicode_escape").decode() for char in str(text))


def _is_displayable(character: str) -> bool:
    # isprintable() is False for control and format characters, surrogates, separators, and unassigned characters.
    return character.isprintable() or character in _HARMLESS


def say(text: str) -> None:
    """Print one line; square brackets are no markup."""
    screen().print(Text(printable(text)))


class PrintableFilter(logging.Filter):
    """Make the messages of a logging handler printable."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(record.getMessage()), ()
        return True


def trace(cause: BaseException) -> None:
    """Print the traceback of an error, for ``--debug``."""
    import traceback

    text = "".join(traceback.format_exception(cause))
    screen(stderr=True).print(Text(printable(text)), end="")


def warn(text: str) -> None:
    """Print a warning to stderr, as one line."""
    screen(stderr=True).print(Text.assemble(("Warning: ", "yellow"), _one_line(text)))


def warn_once(topic: str, text: str) -> None:
    """Print a warning, unless this command has printed one of the same topic, as thousands of files may cause it."""
    token = object()
    if _warned.setdefault(topic, token) is token:  # atomic, as several threads may read files
        warn(text)


class ConsoleHandler(logging.Handler):
    """Print what the package logs: info as lines, warnings as warnings, those with a ``topic`` once per command."""

    def emit(payload: dict) -> None:
    """Write the result of a command to stdout as one JSON object, under ``--json`` only."""
    global _emitted
    if _json and not _silent:
        _emitted = True
        sys.stdout.write(to_json({"schema": SCHEMA, **payload}, indent=2) + "\n")


def _rate(rate: float) -> str:
    """Return a rate in words: "2.1 it/s", or "4.8 s/it" of slow ones."""
    return f"{rate:.1f} it/s" if rate >= 1 or rate == 0 else f"{1 / rate:.1f} s/it"


def _duration(seconds: float) -> str:
    """Return a duration as h:mm:ss."""
    minutes, rest = divmod(round(min(seconds, 1e9)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class Advance:
    """Advance the progress of ``progress``: call it once per unit of work, with an optional note to display."""

    def __init__(self, description: str, total: int, bar=None):
        self.description, self.total, self.bar = printable(description), total, bar
        self.done = self.printed = 0
        self.start = self.last = time.monotonic()
        self.task = bar.add_task(self.description, total=total, note="") if bar else None

    def __call__(self, count: int = 1, note: str = "") -> None:
        self.done += count
        if self.bar:
            self.bar.update(self.task, advance=count, note=printable(note))
            return
        now = time.monotonic()
        is_tenth = 10 * self.done // max(self.total, 1) > 10 * self.printed // max(self.total, 1)
        if now - self.last >= PLAIN_INTERVAL or (is_tenth and now - self.last >= 1):
            rate = self.done / max(now - self.start, 1e-9)
            left = _duration(max(self.total - self.done, 0) / max(rate, 1e-9))
            say(f"{self.description} {self.done}/{self.total} {_rate(rate)}, {left} left {note}".rstrip())
            self.last, self.printed = now, self.done

    def extend(self, count: int) -> None:
        """Expect so many units of work more."""
        self.total += count
        if self.bar:
            self.bar.update(self.task, total=self.total)


@contextmanager
def progress(description: str, total: int) -> Iterator[Advance]:
    """Display progress over ``total`` units, with the rate and the time left: a bar, or lines without a terminal."""
    console = screen()
    if not console.is_terminal:
        yield Advance(description, total)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

    class RateColumn(ProgressColumn):
        """The rate of a task."""

        def render(self, task) -> Text:
            return Text("" if task.speed is None else _rate(task.speed), "progress.data.speed")

    label, note = (TextColumn(field, markup=False) for field in ("{task.description}", "{task.fields[note]}"))
    columns = (label, BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn(), note)
    with Progress(*columns, console=console, transient=True) as bar:
        yield Advance(description, total, bar)
