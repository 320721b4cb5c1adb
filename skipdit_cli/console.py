"""What the user sees: lines, tables and progress on a terminal, plain lines elsewhere, one JSON object on request."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

SCHEMA = 1
_SHOWN = "\n\t\u3000\xa0\u200c\u200d"
"""Not printable to Python, but harmless: lines, tabs, spaces, and the joiners of scripts and emoji."""
PLAIN_EVERY_SECONDS = 30.0
PLAIN_WIDTH = 1000

_json = False
_emitted = False
_said: dict[str, object] = {}


def use_json(on: bool) -> None:
    """With ``on``, stdout is kept for one JSON object and everything else goes to stderr."""
    global _json
    _json = on


@contextmanager
def own_json(on: bool) -> Iterator[None]:
    """``use_json(on)`` for one command, and one object of it; what was before is again after it."""
    global _json, _emitted
    before = _json, _emitted
    _json, _emitted = on, False
    _said.clear()
    try:
        yield
    finally:
        _json, _emitted = before


def screen(stderr: bool | None = None) -> Console:
    """Where text for people goes: stdout, or stderr while stdout is kept for JSON.

    Lines are never wrapped. Away from a terminal tables are not squeezed into 80 columns either.
    """
    console = Console(stderr=_json if stderr is None else stderr, highlight=False, soft_wrap=True, emoji=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


def printable(text: object) -> str:
    """``text`` with every character that would command a terminal, not be shown on it, as its escape: ESC and the
    other controls, what turns the direction of writing, half characters of undecodable file names.

    Lines and tabs stay. Everything that is printed goes through here: names of files, of classes and of keys, prompts
    and what libraries say may come from a stranger.
    """
    return "".join(each if _is_shown(each) else each.encode("unicode_escape").decode() for each in str(text))


def _is_shown(character: str) -> bool:
    # isprintable is False for controls, formats, surrogates, separators of lines, and unassigned characters
    return character.isprintable() or character in _SHOWN


def say(text: str) -> None:
    """One line for people; square brackets are shown as they are."""
    screen().print(Text(printable(text)))


class Neutral(logging.Filter):
    """Of a handler of a library's logger: what it prints is made printable."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(record.getMessage()), ()
        return True


def trace(cause: BaseException) -> None:
    """The traceback of ``--debug``."""
    import traceback

    text = "".join(traceback.format_exception(cause))
    screen(stderr=True).print(Text(printable(text)), end="")


def warn(text: str) -> None:
    screen(stderr=True).print(Text.assemble(("Warning: ", "yellow"), _one_line(text)))


def warn_once(topic: str, text: str) -> None:
    """A warning that a thousand files may give cause for: of one topic, the first of a command is shown."""
    own = object()
    if _said.setdefault(topic, own) is own:  # one step, as several threads may read files
        warn(text)


def error(text: str, exit_code: int = 1) -> None:
    """The sentence that a run ends with."""
    screen(stderr=True).print(Text.assemble(("Error: ", "bold red"), _one_line(text)))
    fail(text, exit_code)


def fail(text: str, exit_code: int) -> None:
    """Of a run that ended early, the one object on stdout under ``--json``, unless its result is there already."""
    if not _emitted:
        emit({"error": " ".join(text.split()), "exit_code": exit_code})


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def amount(number: float) -> str:
    """A large number in a few digits: 118.64 G, 37.24 M, 3.48 k."""
    scale, letter = next(((s, t) for s, t in ((1e9, " G"), (1e6, " M"), (1e3, " k")) if number >= s), (1, ""))
    return f"{number / scale:.2f}{letter}" if letter else f"{number:.0f}"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: "1 image", "2 images", "1,000 classes".

    Args:
        plural: The plural, where it is not the noun with "s" or, after "s", "es".
    """
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {plural or noun + ('es' if noun.endswith('s') else 's')}"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """A table; a column whose cells all are numbers (or "-") is set to the right."""
    from rich.table import Table

    drawn = Table(title_justify="left", header_style="bold", box=None, pad_edge=False)
    drawn.title = Text(printable(title), "table.title") if title else None
    for at, name in enumerate(columns):
        numeric = bool(rows) and all(_numeric(row[at]) for row in rows)
        drawn.add_column(Text(printable(name)), justify="right" if numeric else "left")
    for row in rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    screen().print(drawn)


def _numeric(cell: object) -> bool:
    return str(cell).strip("x%+-").replace(",", "").replace(".", "", 1).isdigit() or str(cell) in ("-", "")


def emit(payload: dict) -> None:
    """The result of a command: under ``--json`` the one object on stdout, else nothing."""
    global _emitted
    if _json:
        _emitted = True
        sys.stdout.write(to_json({"schema": SCHEMA, **payload}, indent=2) + "\n")


def to_json(value: object, indent: int | None = None) -> str:
    """The text of all JSON that is written here: valid, so null for a float that is NaN or infinite."""
    return json.dumps(plain(value), indent=indent, default=str, allow_nan=False)


def plain(value: object) -> object:
    """``value`` with null for every float that JSON cannot write."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Advance:
    """Counts the work done within ``progress``; call it once per unit, with an optional note to show."""

    def __init__(self, description: str, total: int, bar=None):
        self.description, self.total, self.bar = printable(description), total, bar
        self.done = self.shown = 0
        self.began = self.last = time.monotonic()
        self.task = bar.add_task(self.description, total=total, note="") if bar else None

    def __call__(self, count: int = 1, note: str = "") -> None:
        self.done += count
        note = printable(note)
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
        yield Advance(description, total)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    about, note = (TextColumn(field, markup=False) for field in ("{task.description}", "{task.fields[note]}"))
    columns = (about, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), note)
    with Progress(*columns, console=console, transient=True) as bar:
        yield Advance(description, total, bar)
