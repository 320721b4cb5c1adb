"""Read and write JSON and YAML; files may be untrusted, so their size and nesting are limited."""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from skipdit_cli.errors import UsageError, reading

MAX_BYTES = 1 << 26  # of a text file; the largest tokenizers have half of that
GIB = 1 << 30
"""Bytes of a gibibyte."""
MAX_DEPTH = 64  # levels of nesting; the configs of diffusers and transformers have up to four


class UntrustedFile(io.BufferedReader):
    """A binary file that is never asked for more bytes than it holds.

    Libraries ask for as many as a header says, and Python allocates them before it reads.
    """

    def __init__(self, path):
        super().__init__(io.FileIO(path))
        self.size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes, at most ``size`` of them."""
        return super().read(None if size is None else min(size, max(self.size - self.tell(), 0)))


def read_text(path, max_bytes: int = MAX_BYTES) -> str:
    """Return the text of a UTF-8 file.

    Raises:
        UsageError: The file cannot be read, is not UTF-8, or is larger than ``max_bytes``.
    """
    path = Path(path)
    with reading(str(path)):
        size = path.stat().st_size
        if size > max_bytes:
            raise UsageError(f"{path} has {size:,} bytes, but no such file has more than {max_bytes:,}.")
        return path.read_text(encoding="utf-8")


def parse_json(text: str, name) -> object:
    """Parse JSON.

    Args:
        name: File name for messages.
    Raises:
        UsageError: The text is no JSON, or nested too deeply.
    """
    import json

    with reading(str(name), failed="cannot be read as JSON"):
        data = json.loads(text)
    level, depth = [data], 0
    while level := [item for container in level for item in _items(container) if isinstance(item, (dict, list))]:
        depth += 1
        if depth > MAX_DEPTH:
            raise UsageError(f"{name} is nested more than {MAX_DEPTH} levels deep, as no file of this kind is.")
    return data


def read_json_lines(path) -> list[dict]:
    """Return the objects in a file that holds one in each line.

    A last line that is cut short, as a killed process leaves it, is left out.

    Raises:
        UsageError: The file cannot be read, or another line is no JSON object.
    """
    rows: list[dict] = []
    lines = read_text(path).split("\n")
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line, f"{path} line {number}") if line.strip() else None
        except UsageError:
            if number < len(lines):
                raise
            continue
        if isinstance(row, dict):
            rows.append(row)
        elif line.strip():
            raise UsageError(f"{path} line {number} holds a {type(row).__name__} but expected an object.")
    return rows


def is_number(value: object) -> bool:
    """Return whether a value is a finite number, and no boolean."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _items(container: object):
    return container.values() if isinstance(container, dict) else container if isinstance(container, list) else ()


def to_json(value: object, indent: int | None = None) -> str:
    """Return valid JSON for a value: NaN and infinity become null, other types their text."""
    import json

    return json.dumps(finite_or_null(value), indent=indent, default=str, allow_nan=False)


def finite_or_null(value: object) -> object:
    """Replace every float in a value that JSON cannot express, NaN or infinity, by None."""
    if isinstance(value, dict):
        return {str(key): finite_or_null(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse_yaml(text: str, name, loader=None) -> object:
    """Parse a YAML document without aliases (a few lines can expand to gigabytes) and without duplicate keys (of which
    YAML keeps the last).

    Args:
        name: File name for messages.
        loader: Loader class of PyYAML; ``SafeLoader`` if not given.
    Raises:
        UsageError: The text is no such YAML, or nested too deeply.
    """
    import yaml

    with reading(name, failed="is not readable YAML"):
        _check_events(yaml.parse(text, yaml.SafeLoader), name)
        data = yaml.load(text, loader or yaml.SafeLoader)
    _check_integers(data, name)
    return data


def _check_integers(data: object, name) -> None:
    """Refuse integers beyond any float, as hexadecimal ones may be: Python does not write those of 4,300 digits."""
    level, bits = [data], sys.float_info.max_exp
    while level:
        if any(isinstance(item, int) and item.bit_length() > bits for item in level):
            raise UsageError(f"{name} has an integer of more than {bits} bits; no value is so large.")
        inner = [list(item) for item in level if isinstance(item, (list, tuple, set, dict))]
        inner += [list(item.values()) for item in level if isinstance(item, dict)]
        level = [item for items in inner for item in items]


def _check_events(events, name) -> None:
    import yaml

    keys: list[set | None] = []  # the keys of each open mapping; None for a list
    key_next: list[bool] = []  # whether the next node of each is a key
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise UsageError(f"{name} has the alias *{event.anchor}, which is not read; write the value out.")
        if isinstance(event, yaml.CollectionEndEvent):
            keys.pop(), key_next.pop()
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        if keys and keys[-1] is not None:
            is_key, key_next[-1] = key_next[-1], not key_next[-1]
            if is_key and isinstance(event, yaml.ScalarEvent):
                if event.value in keys[-1]:
                    mark: Any = event.start_mark
                    line = mark.line + 1
                    raise UsageError(f"{name} has the key '{event.value}' twice (line {line}); leave one out.")
                keys[-1].add(event.value)
        if isinstance(event, yaml.CollectionStartEvent):
            keys.append(set() if isinstance(event, yaml.MappingStartEvent) else None)
            key_next.append(True)
            if len(keys) > MAX_DEPTH:
                raise UsageError(f"{name} is nested more than {MAX_DEPTH} levels deep, as no file of this kind is.")


def check_values(value: object, what: str) -> None:
    """Check that a value consists of JSON types: null, booleans, finite numbers, strings, lists and mappings.

    Raises:
        UsageError: It holds another type (a date, bytes) or NaN or infinity.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise UsageError(f"{what} has the key {key!r}, which is no name.")
            check_values(item, f"{what}: {key}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_values(item, what)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{what} is {value}, but expected a finite number.")
    elif not isinstance(value, (str, int, float, type(None))):
        raise UsageError(f"{what} is a {type(value).__name__} ({value}), but expected a number, a text or a list.")


def _markdown_cell(value: object) -> str:
    """Write a value as the cell of a markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(_markdown_cell, line)) + " |" for line in lines)
