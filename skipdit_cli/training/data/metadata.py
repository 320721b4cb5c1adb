"""``metadata.jsonl`` and ``metadata.csv``: which files are samples, and what each comes with."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from skipdit_cli import console
from skipdit_cli.errors import UsageError
from skipdit_cli.training.data.demand import Demand
from skipdit_cli.training.data.tree import Bounds

NAMES = ("metadata.jsonl", "metadata.csv")
CAPTION_KEYS = ("text", "caption")

Condition = int | str | None


def read_rows(path: Path, demand: Demand, bounds: Bounds) -> list[tuple[Path, Condition]]:
    """The samples in the order of the file. A file may be listed again, which is said, but not with another
    label.

    Raises:
        UsageError: An entry is malformed, names a file that lies outside, or one that another entry names.
    """
    samples: list[tuple[Path, Condition]] = []
    first: dict[str, int] = {}
    again = 0
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for row in _table(file) if path.suffix == ".csv" else _objects(file):
                own, condition = _file(row, bounds), _condition(row, demand)
                if path.suffix == ".csv" and isinstance(condition, str):
                    _check_swallowed(condition, path.parent)
                place = os.path.normpath(own)
                former = first.setdefault(place, len(samples) + 1)
                if former <= len(samples):
                    if not demand.captions and condition != samples[former - 1][1]:
                        raise ValueError(f"{row['file_name']} is listed already, in entry {former}, as another class")
                    again += 1
                samples.append((own, condition))
    except UnicodeDecodeError as cause:
        raise UsageError(f"{path} is no text in UTF-8 (byte {cause.start}); save it as that.") from cause
    except UsageError as cause:
        raise UsageError(f"{path} entry {len(samples) + 1}: {cause}") from cause
    except (ValueError, KeyError, TypeError, RecursionError, OSError, csv.Error) as cause:
        why = f"it has no {cause}" if isinstance(cause, KeyError) else str(cause).rstrip(".")
        entry = f"{path} entry {len(samples) + 1}"
        raise UsageError(f"{entry} is not of the kind {_wanted(path, demand)}: {why}.") from cause
    if again:
        console.warn(f"{path.name} lists files again in {again:,} of its entries: each entry is a sample.")
    captions = [condition for _, condition in samples if isinstance(condition, str)]
    if captions and all(re.fullmatch(r"\s*[-+.\d]+\s*", caption) for caption in captions):
        raise UsageError(f"{path} has nothing but numbers for captions, such as {captions[0]}; expected texts.")
    return samples


def _wanted(path: Path, demand: Demand) -> str:
    name = "a.png" if demand.video_length is None else "a.mp4"
    key, value = ("text", '"a cat"') if demand.captions else ("label", "3")
    told = demand.captions or demand.num_classes is not None
    if path.suffix == ".csv":
        return f"{name},{value} under the header file_name,{key}" if told else f"{name} under the header file_name"
    return f'{{"file_name": "{name}"' + (f', "{key}": {value}}}' if told else "}")


def _objects(file: Iterable[str]) -> Iterator[dict]:
    for line in file:
        if line.strip():
            row = json.loads(line, object_pairs_hook=_once)
            if not isinstance(row, dict):
                raise TypeError(f"{line.strip()[:40]} is no object")
            yield row


def _once(pairs: list[tuple[str, object]]) -> dict:
    held = dict(pairs)
    if len(held) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(name for name in names if names.count(name) > 1)!r} twice")
    return held


def _table(file: Iterable[str]) -> Iterator[dict]:
    reader = csv.reader(file, strict=True)
    header = [name.strip() for name in next(reader, [])]
    if len(header) == 1 and re.search(r"[;\t|]", header[0]):
        raise ValueError(f"its header {header[0]!r} is one column; columns are parted by commas")
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise ValueError(f"its header has {twice[0]!r} twice")
    for fields in filter(None, reader):
        if len(fields) != len(header):
            cure = "; put a text that has commas in quotes" if len(fields) > len(header) else ""
            raise ValueError(
                f"the row of {fields[0]!r} has {len(fields)} fields where the header has {len(header)}{cure}"
            )
        row = dict(zip(header, fields))
        if re.fullmatch(r"\s*[0-9]+\s*", row.get("label", "")):
            row["label"] = int(row["label"])  # a table has nothing but texts; in JSON a label of text is a mistake
        yield row


def _file(row: dict, bounds: Bounds) -> Path:
    name = row["file_name"]
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"file_name {json.dumps(name)} is no name of a file")
    path = bounds.root / name
    if not path.exists():
        if "\\" in name or re.match("[A-Za-z]:", name):
            written = name.replace("\\", "/")
            raise ValueError(f"{name} is a path of Windows; write {re.sub('^[A-Za-z]:/*', '', written)}")
        if "://" in name:
            raise ValueError(f"{name} is an address, and only files are read")
    elif path.samefile(bounds.root):
        raise ValueError(f"{name} is the data folder itself")
    bounds.check(path)
    return path


def _condition(row: dict, demand: Demand) -> Condition:
    captions = {key: row[key] for key in CAPTION_KEYS if key in row}
    if demand.captions:
        if len(set(map(json.dumps, captions.values()))) > 1:
            raise ValueError(f"it has a {' and another '.join(captions)}; keep one")
        _say_unused(row, ("label",), "texts")
        return _caption(row[next(iter(captions), CAPTION_KEYS[0])])
    _say_unused(row, CAPTION_KEYS, "classes" if demand.num_classes is not None else "neither")
    return None if demand.num_classes is None else _label(row["label"])


def _say_unused(row: dict, keys: tuple[str, ...], told: str) -> None:
    unused = [key for key in keys if key in row]
    if unused:
        console.warn_once("unused", f"the metadata has a '{unused[0]}', which is not used: the model is of {told}.")


def _caption(text: object) -> str:
    if not isinstance(text, str | None):
        raise ValueError(f"the caption {json.dumps(text)} is no text")
    if text is None or not text.strip():
        raise ValueError("the caption is empty")
    text.encode()  # half a character, which JSON can write, is refused here and not by a tokenizer later
    return text


def _check_swallowed(caption: str, folder: Path) -> None:
    """Refuse what a quote that is never closed makes of the lines after it."""
    for line in caption.splitlines()[1:]:
        name = line.split(",")[0].strip()
        if name and "," in line and (folder / name).is_file():
            raise ValueError(f"its caption goes on with the line of {name}; a quote is not closed")


def _label(value: object) -> int:
    if type(value) is not int:
        raise ValueError(f"label {json.dumps(value)} is no whole number")
    return value
