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

from skipdit_cli.columns import fold, make_table
from skipdit_cli.formats import to_json

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
    """Print nothing but errors, in all processes of a run but the main one; or print again."""
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
    stderr = _json if stderr is None else stderr
    console = Console(stderr=stderr, highlight=False, soft_wrap=True, emoji=False, quiet=_silent)
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

    def emit(self, record: logging.LogRecord) -> None:
        text, topic = record.getMessage(), getattr(record, "topic", None)
        if record.levelno < logging.WARNING:
            say(text)
        elif topic is None:
            warn(text)
        else:
            warn_once(topic, text)


logger = logging.getLogger("skipdit_cli")
logger.addHandler(ConsoleHandler())
logger.setLevel(logging.INFO)
logger.propagate = False


def error(text: str, exit_code: int = 1) -> None:
    """Print the error that ends a command, and emit it under ``--json``."""
    console = screen(stderr=True)
    console.quiet = False
    console.print(Text.assemble(("Error: ", "bold red"), _one_line(text)))
    fail(text, exit_code)


def fail(text: str, exit_code: int) -> None:
    """Emit the error of a command as its JSON object, unless its result has been emitted already."""
    if not _emitted:
        emit({"error": " ".join(text.split()), "exit_code": exit_code})


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def amount(number: float) -> str:
    """Format a large number with a unit prefix: 118.64 G, 37.24 M, 3.48 k."""
    scale, prefix = next(((s, t) for s, t in ((1e9, " G"), (1e6, " M"), (1e3, " k")) if number >= s), (1, ""))
    return f"{number / scale:.2f}{prefix}" if prefix else f"{number:.0f}"


def size_text(number: float) -> str:
    """Format a number of bytes: "812 B", "3.5 kB", "1.2 MB", "35.2 GB"."""
    scale, unit = next(((s, u) for s, u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if number >= s), (1, "B"))
    return f"{number / scale:,.1f} {unit}" if scale > 1 else f"{number:.0f} {unit}"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: "1 image", "2 images", "1,000 classes".

    Args:
        plural: The plural, where it is not the noun with "s" or, after "s", "es".
    """
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {plural or noun + ('es' if noun.endswith('s') else 's')}"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """Print a table; columns of numbers (or "-") are right-aligned.

    One that is wider than the terminal is folded: the columns that do not fit follow below, behind the first one. A
    single wide column is wrapped.
    """
    console = screen()
    columns, cells = [*map(printable, columns)], [[*map(printable, row)] for row in rows]
    for index, some in enumerate(fold(columns, cells, console.width)):
        grid = make_table([columns[at] for at in some], [[row[at] for at in some] for row in cells], printable(title))
        title = ""
        console.print("\n" * bool(index), end="")
        console.print(grid, soft_wrap=not console.is_terminal)


def markdown(text: str, formatted: str | None = None) -> None:
    """Print Markdown: formatted and wrapped on a terminal, as it is elsewhere.

    Args:
        formatted: What to print on a terminal, if it differs.
    """
    console = screen()
    if not console.is_terminal:
        say(text.rstrip("\n"))
        return
    from rich.markdown import CodeBlock, Markdown
    from rich.theme import Theme

    class Code(CodeBlock):
        """A block of code whose lines are never broken, so that a command can be copied."""

        def __rich_console__(self, console, options):
            lines = "\n".join(f"    {line}" for line in str(self.text).rstrip().splitlines())
            yield Text(lines, "markdown.code", no_wrap=True, overflow="ignore")

    class Page(Markdown):
        elements = {**Markdown.elements, "fence": Code, "code_block": Code}

    console.soft_wrap = False
    console.push_theme(Theme({"markdown.code": "cyan"}))
    page = Page(printable(formatted or text), hyperlinks=False)
    console.print(page, width=min(console.width, 100), crop=False)


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
    """Advance the progress of ``progress``: call it once per unit of work, with an optional note to display.

    The rate counts from the first call on: what came before it is the setting up, or what a resumed run had done.
    """

    def __init__(self, description: str, total: int, bar=None):
        self.description, self.total, self.bar = printable(description), total, bar
        self.done = self.printed = 0
        self.last = time.monotonic()
        self.begun: tuple[float, int] | None = None  # when, and how much was done by then
        self.task = bar.add_task(self.description, total=total, note="") if bar else None

    def __call__(self, count: int = 1, note: str = "") -> None:
        self.done += count
        if self.done > self.total:  # some totals are estimates
            self.extend(self.done - self.total)
        if self.bar:
            self.bar.update(self.task, advance=count, note=printable(note))
            return
        now = time.monotonic()
        self.begun = self.begun or (now, self.done)
        is_tenth = 10 * self.done // max(self.total, 1) > 10 * self.printed // max(self.total, 1)
        if now - self.last >= PLAIN_INTERVAL or (is_tenth and now - self.last >= 1):
            said = (f"{self.description} {self.done}/{self.total}", self._pace(now, *self.begun), note)
            screen(stderr=True).print(Text(printable(" ".join(filter(None, said)))))
            self.last, self.printed = now, self.done

    def _pace(self, now: float, since: float, before: int) -> str:
        """Return the rate and the time left; an empty text while nothing was done since the first call."""
        if self.done == before:
            return ""
        rate = (self.done - before) / max(now - since, 1e-9)
        return f"{_rate(rate)}, {_duration(max(self.total - self.done, 0) / max(rate, 1e-9))} left"

    def extend(self, count: int) -> None:
        """Expect so many units of work more."""
        self.total += count
        if self.bar:
            self.bar.update(self.task, total=self.total)


@contextmanager
def progress(description: str, total: int) -> Iterator[Advance]:
    """Display progress over ``total`` units on stderr, with the rate and the time left: a bar, or lines in a log."""
    console = screen(stderr=True)
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
    goes_along = sys.stdout.isatty()  # what is said meanwhile is printed above the bar, but is not kept from a file
    with Progress(*columns, console=console, transient=True, redirect_stdout=goes_along) as bar:
        yield Advance(description, total, bar)
