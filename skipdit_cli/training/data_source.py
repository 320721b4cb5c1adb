"""The value of ``--data``: an embedded data set, a folder, a data set of Hugging Face `datasets`, or shards."""

from __future__ import annotations

import glob
import importlib.util
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from skipdit_cli.errors import UsageError, install_extra

EMBEDDED = {"digits": "images", "moving-digits": "videos"}
"""The data sets that need no folder, and what their samples are."""
SPLITS = ("train", "test")
"""The parts of an embedded data set: every fifth scan of a digit is in ``test``, in ``train`` are the others."""
HUB, SHARDS, FOLDER = "hf", "wds", "folder"
MAX_SHARDS = 100_000


@dataclass(frozen=True)
class DataSource:
    """A parsed ``--data``.

    Args:
        kind: ``embedded``, ``folder``, ``hf`` or ``wds``.
        name: The name or path without its prefix.
        split: The split of a Hugging Face data set or of an embedded one; None where none is named.
    """

    kind: str
    name: str
    split: str | None = None

    @property
    def path(self) -> Path | None:
        """A path that is read on this machine; None for an embedded data set and one of the hub."""
        if self.kind == SHARDS:
            return next(expand_shards(self.name), None)
        is_local = self.kind == FOLDER or (self.kind == HUB and Path(self.name).is_dir())
        return Path(self.name) if is_local else None

    @property
    def title(self) -> str:
        """The name for a model card, without the path to it."""
        if self.kind == "embedded" or (self.kind == HUB and self.path is None):
            return self.name
        return Path(self.name).resolve().name

    @property
    def is_fetched(self) -> bool:
        """Whether the data come from the hub."""
        return self.kind == HUB and self.path is None


def parse_data(text: str, flag: str = "--data") -> DataSource:
    """Parse ``--data``: ``digits[:SPLIT]``, ``FOLDER``, ``hf:NAME[:SPLIT]``, ``wds:SHARDS``, or a path that ends in
    ``.tar``.

    Args:
        flag: What names the value in messages.

    Raises:
        UsageError: ``hf:`` is followed by no name, or an embedded data set by an unknown split.
    """
    name, _, split = text.partition(":")
    if name in EMBEDDED:
        if text != name and split not in SPLITS:
            raise UsageError(f"Got {flag} {text}, but {name} has the splits {' and '.join(SPLITS)}.")
        return DataSource("embedded", name, split or None)
    if match := re.fullmatch(r"hf:((?:[A-Za-z]:[\\/])?[^:]+)(?::(.+))?", text):
        return DataSource(HUB, match[1], match[2])
    if text.startswith("hf:"):
        raise UsageError(f"Got --data {text}, which names no data set; expected hf:OWNER/NAME or hf:OWNER/NAME:SPLIT.")
    if text.startswith("wds:") or (text.endswith(".tar") and not Path(text).is_dir()):
        return DataSource(SHARDS, text.removeprefix("wds:"))
    return DataSource(FOLDER, text)


def check_source(source: DataSource, columns: dict[str, str | None], config_name: str | None) -> None:
    """Check that flags and packages go with a data source.

    Args:
        columns: The names of columns by flag, or None where a flag is not given.
    Raises:
        UsageError: A flag has no use for this source, or the package ``datasets`` is missing.
    """
    named = [f"{flag} {value}" for flag, value in columns.items() if value is not None]
    if named and source.kind not in (HUB, SHARDS):
        raise UsageError(f"Got {named[0]}, which is for --data hf:NAME and for shards; leave the flag out.")
    if config_name is not None and not source.is_fetched:
        raise UsageError(
            f"Got --dataset-config-name {config_name}, which is for a data set of the hub, --data hf:OWNER/NAME; "
            "leave the flag out."
        )
    if source.kind == HUB and importlib.util.find_spec("datasets") is None:
        raise UsageError(
            f"Got --data hf:{source.name}, which needs the package datasets: run {install_extra('data')}."
        )


def expand_shards(pattern: str) -> Iterator[Path]:
    """Yield the paths of shards in order: ``{000..009}`` counts, ``{a,b}`` lists, and ``*``, ``?`` and ``[]`` match.

    Raises:
        UsageError: The pattern is an address or a pipe, or stands for too many shards.
    """
    if "://" in pattern or pattern.startswith("pipe:"):
        raise UsageError(f"Got --data wds:{pattern}, but shards are read from this machine only; download them first.")
    names = itertools.islice(_expand_braces(pattern), MAX_SHARDS + 1)
    for number, name in enumerate(names):
        if number == MAX_SHARDS:
            raise UsageError(f"Got --data wds:{pattern}, which stands for more than {MAX_SHARDS:,} shards.")
        has_wildcard = any(character in name for character in "*?[") and not Path(name).exists()
        yield from map(Path, sorted(glob.glob(name)) if has_wildcard else [name])


def _expand_braces(pattern: str) -> Iterator[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    numbers = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", match[1])
    if numbers:
        width = max(len(numbers[1]), len(numbers[2])) if numbers[1].startswith("0") else 0
        items: Iterator[str] = (f"{number:0{width}d}" for number in range(int(numbers[1]), int(numbers[2]) + 1))
    else:
        items = iter(match[1].split(","))
    for item in items:
        yield from _expand_braces(pattern[: match.start()] + item + pattern[match.end() :])
