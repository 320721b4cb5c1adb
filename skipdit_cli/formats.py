"""JSON and YAML in files that may be a stranger's: parsed, bounded, and refused in one sentence."""

from __future__ import annotations

import math
from pathlib import Path

from skipdit_cli.errors import UsageError, reading

LARGEST = 1 << 28
"""Bytes of the largest text that is read; the largest tokenizers have a tenth of that."""
DEEPEST = 64
"""Levels of nesting that are read; the configs of diffusers and transformers have up to four."""


def read_text(path, largest: int = LARGEST) -> str:
    """A text file in UTF-8.

    Raises:
        UsageError: It cannot be read, is not UTF-8, or is larger than ``largest`` bytes.
    """
    path = Path(path)
    with reading(str(path)):
        size = path.stat().st_size
        if size > largest:
            raise UsageError(f"{path} has {size:,} bytes, but no such file has more than {largest:,}.")
        return path.read_text(encoding="utf-8")


def parse_json(text: str, name) -> object:
    """
    Args:
        name: Of the file, for the sentence.
    Raises:
        UsageError: It is no JSON, or nested too deep.
    """
    import json

    with reading(str(name), failed="cannot be read as JSON"):
        data = json.loads(text)
    level, depth = [data], 0
    while level := [each for holder in level for each in _held(holder) if isinstance(each, (dict, list))]:
        depth += 1
        if depth > DEEPEST:
            raise UsageError(f"{name} is nested more than {DEEPEST} levels deep, as no file of this kind is.")
    return data


def _held(holder: object):
    return holder.values() if isinstance(holder, dict) else holder if isinstance(holder, list) else ()


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
    """One document of YAML, as a person writes it: without aliases (of which a few lines can unfold to gigabytes),
    without a key twice in one mapping (of which YAML keeps the last), and not nested too deep.

    Args:
        name: Of the file, for the sentence.
        loader: PyYAML's; the safe one if not given.
    Raises:
        UsageError: It is none.
    """
    import yaml

    with reading(name, failed="is not readable YAML"):
        _check_events(yaml.parse(text, yaml.SafeLoader), name)
        return yaml.load(text, loader or yaml.SafeLoader)


def _check_events(events, name) -> None:
    import yaml

    keys: list[set | None] = []  # of each mapping that is open; None for a list
    turns: list[bool] = []  # whether its next node is a key
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise UsageError(f"{name} has the alias *{event.anchor}, which is not read; write the value out.")
        if isinstance(event, yaml.CollectionEndEvent):
            keys.pop(), turns.pop()
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        if keys and keys[-1] is not None:
            is_key, turns[-1] = turns[-1], not turns[-1]
            if is_key and isinstance(event, yaml.ScalarEvent):
                if event.value in keys[-1]:
                    line = event.start_mark.line + 1
                    raise UsageError(f"{name} has the key '{event.value}' twice (line {line}); leave one out.")
                keys[-1].add(event.value)
        if isinstance(event, yaml.CollectionStartEvent):
            keys.append(set() if isinstance(event, yaml.MappingStartEvent) else None)
            turns.append(True)
            if len(keys) > DEEPEST:
                raise UsageError(f"{name} is nested more than {DEEPEST} levels deep, as no file of this kind is.")


def check_values(value: object, what: str) -> None:
    """Whether a value is of JSON's kinds all through: null, true or false, finite numbers, texts, lists, mappings.

    Raises:
        UsageError: Something in it is a date, bytes, NaN, ...
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
