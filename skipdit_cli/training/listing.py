"""Which samples a folder holds, and what each comes with: a label, a caption, or nothing."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from skipdit_cli import console
from skipdit_cli.errors import UsageError
from skipdit_cli.training.demand import Demand

CAPTION_KEYS = ("text", "caption")
UNREADABLE_SHARE = 0.01

Condition = int | str | None


def list_samples(folder: Path, demand: Demand, find: Callable[[Path], Iterator[Path]]) -> list[tuple[Path, Condition]]:
    """The samples that ``metadata.jsonl`` or ``metadata.csv`` lists, or without it those that ``find`` finds: in class
    directories for a model of classes (directories named by numbers alone are the labels they say, others are numbered
    in sorted order), anywhere for a model of nothing.

    Raises:
        UsageError: There is none, or a line is malformed.
    """
    listed = next((path for name in ("jsonl", "csv") if (path := folder / f"metadata.{name}").is_file()), None)
    if listed is not None:
        samples = _from_metadata(listed, demand)
    elif demand.captions:
        wanted = '{"file_name": "a.mp4", "text": "a cat"}'
        raise UsageError(
            f"Got --data {folder} for a model of texts, but it has no metadata.jsonl with lines {wanted}."
        )
    elif demand.num_classes is None:
        samples = [(path, None) for path in find(folder)]
    else:
        samples = _from_directories(folder, find)
    if not samples:
        hint = f"{listed.name} lists none" if listed else "expected class directories, or metadata.jsonl"
        raise UsageError(f"Got --data {folder}, in which there is no {demand.kind[:-1]}: {hint}.")
    return samples


def readable(
    samples: list[tuple[Path, Condition]], probe: Callable[[Path], int], kind: str, folder: str
) -> list[tuple[Path, Condition, int]]:
    """The samples that can be used, each with its number of frames; the others are named.

    Args:
        probe: The number of frames of a file, or a ``UsageError`` that says why it cannot be used.
    Raises:
        UsageError: Above 1 % cannot.
    """

    def tried(path: Path) -> int | UsageError:
        try:
            return probe(path)
        except UsageError as fault:
            return fault

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(tried, [path for path, _ in samples]))
    faults = [result for result in found if isinstance(result, UsageError)]
    for fault in faults:
        console.warn(f"unreadable {kind[:-1]}: {fault}")
    if len(faults) > UNREADABLE_SHARE * len(samples):
        raise UsageError(
            f"{len(faults)} of {len(samples)} {kind} in {folder} cannot be read (above 1 %): repair or remove."
        )
    return [(*sample, frames) for sample, frames in zip(samples, found) if not isinstance(frames, UsageError)]


def _from_metadata(path: Path, demand: Demand) -> list[tuple[Path, Condition]]:
    samples = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file) if path.suffix == ".csv" else (json.loads(line) for line in file if line.strip())
        try:
            for row in rows:
                samples.append((path.parent / row["file_name"], _condition(row, demand)))
        except (ValueError, KeyError, TypeError, csv.Error) as cause:
            why = f"it has no {cause}" if isinstance(cause, KeyError) else cause
            name = "a.png" if demand.video_length is None else "a.mp4"
            held = '"text": "a cat"' if demand.captions else '"label": 3'
            wanted = f'{{"file_name": "{name}"' + (f", {held}}}" if demand.captions or demand.num_classes else "}")
            raise UsageError(f"{path} entry {len(samples) + 1} is not of the kind {wanted}: {why}.") from cause
    return samples


def _condition(row: dict, demand: Demand) -> Condition:
    if demand.captions:
        text = row[next((key for key in CAPTION_KEYS if key in row), CAPTION_KEYS[0])]
        if not isinstance(text, str | None):
            raise ValueError(f"the caption {text} is no text")
        if text is None or not text.strip():
            raise ValueError("the caption is empty")
        return text
    return None if demand.num_classes is None else _label(row["label"])


def _label(value) -> int:
    if isinstance(value, bool) or int(value) != (float(value) if isinstance(value, float) else int(value)):
        raise ValueError(f"label {value} is no whole number")
    return int(value)


def _from_directories(folder: Path, find: Callable[[Path], Iterator[Path]]) -> list[tuple[Path, int]]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    numbered = all(name.isdecimal() for name in names)
    return [
        (path, int(name) if numbered else label) for label, name in enumerate(names) for path in find(folder / name)
    ]
