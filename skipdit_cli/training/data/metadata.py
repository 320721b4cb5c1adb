"""``metadata.jsonl`` and ``metadata.csv``: the samples that they list, and the label or caption of each."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from skipdit_cli.errors import UsageError
from skipdit_cli.training.data.data_folder import Bounds
from skipdit_cli.training.data.demand import Demand
from skipdit_cli.training.observer import SILENT, Observer

NAMES = ("metadata.jsonl", "metadata.csv")
CAPTION_KEYS = ("text", "caption")

Condition = int | str | None
"""The class label or the caption of a sample; None for an unconditional model."""


def read_rows(path: Path, demand: Demand, bounds: Bounds, observer: Observer = SILENT) -> list[tuple[Path, Condition]]:
    """Return the samples that a file lists, in its order.

    It may list a file several times (the observer gets a warning), but with one label only.

    Raises:
        UsageError: An entry is malformed, or names a file that lies out of bounds or has another label already.
    """
    samples: list[tuple[Path, Condition]] = []
    first_entries: dict[str, int] = {}
    repeated = 0
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for row in _table(file) if path.suffix == ".csv" else _objects(file):
                sample, condition = _file(row, bounds), _condition(row, demand, observer)
                if path.suffix == ".csv" and isinstance(condition, str):
                    _check_quotes(condition, path.parent)
                first = first_entries.setdefault(os.path.normpath(sample), len(samples) + 1)
                if first <= len(samples):
                    if not demand.captions and condition != samples[first - 1][1]:
                        raise ValueError(f"{row['file_name']} is listed already, in entry {first}, as another class")
                    repeated += 1
                samples.append((sample, condition))
    except UnicodeDecodeError as cause:
        raise UsageError(f"{path} is no text in UTF-8 (byte {cause.start}); save it as that.") from cause
    except UsageError as cause:
        raise UsageError(f"{path} entry {len(samples) + 1}: {cause}") from cause
    except (ValueError, KeyError, TypeError, RecursionError, OSError, csv.Error) as cause:
        fault = f"it has no {cause}" if isinstance(cause, KeyError) else str(cause).rstrip(".")
        entry = f"{path} entry {len(samples) + 1}"
        raise UsageError(f"{entry} is not of the kind {_example(path, demand)}: {fault}.") from cause
    if repeated:
        observer.warn(f"{path.name} lists files again in {repeated:,} of its entries: each entry is a sample.")
    captions = [condition for _, condition in samples if isinstance(condition, str)]
    if captions and all(re.fullmatch(r"\s*[-+.\d]+\s*", caption) for caption in captions):
        raise UsageError(f"{path} has nothing but numbers for captions, such as {captions[0]}; expected sentences.")
    return samples


def _example(path: Path, demand: Demand) -> str:
    """Return an entry of the kind that is expected."""
    name = "a.png" if demand.video_length is None else "a.mp4"
    key, value = ("text", '"a cat"') if demand.captions else ("label", "3")
    conditional = demand.captions or demand.num_classes is not None
    if path.suffix == ".csv":
        row, header = (f"{name},{value}", f"file_name,{key}") if conditional else (name, "file_name")
        return f"{row} under the header {header}"
    return f'{{"file_name": "{name}"' + (f', "{key}": {value}}}' if conditional else "}")


def _objects(file: Iterable[str]) -> Iterator[dict]:
    for line in file:
        if line.strip():
            row = json.loads(line, object_pairs_hook=_unique)
            if not isinstance(row, dict):
                raise TypeError(f"{line.strip()[:40]} is no object")
            yield row


def _unique(pairs: list[tuple[str, object]]) -> dict:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"it has {_repeated(name for name, _ in pairs)!r} twice")
    return row


def _repeated(names: Iterable[str]) -> str | None:
    """Return the first name that occurs more than once, or None."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _table(file: Iterable[str]) -> Iterator[dict]:
    reader = csv.reader(file, strict=True)
    header = [name.strip() for name in next(reader, [])]
    if len(header) == 1 and re.search(r"[;\t|]", header[0]):
        raise ValueError(f"its header {header[0]!r} is one column; columns are parted by commas")
    if (repeated := _repeated(header)) is not None:
        raise ValueError(f"its header has {repeated!r} twice")
    for fields in filter(None, reader):
        if len(fields) != len(header):
            advice = "; put a caption that has commas in quotes" if len(fields) > len(header) else ""
            raise ValueError(
                f"the row of {fields[0]!r} has {len(fields)} fields where the header has {len(header)}{advice}"
            )
        row = dict(zip(header, fields))
        if re.fullmatch(r"\s*[0-9]+\s*", row.get("label", "")):
            row["label"] = int(row["label"])  # every value of a table is a string; in JSON a string is no label
        yield row


def _file(row: dict, bounds: Bounds) -> Path:
    name = row["file_name"]
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"file_name {json.dumps(name)} is no name of a file")
    path = bounds.root / name
    if not path.exists():
        if "\\" in name or re.match("[A-Za-z]:", name):
            posix = name.replace("\\", "/")
            raise ValueError(f"{name} is a path of Windows; write {re.sub('^[A-Za-z]:/*', '', posix)}")
        if "://" in name:
            raise ValueError(f"{name} is an address, and only files are read")
    elif path.samefile(bounds.root):
        raise ValueError(f"{name} is the data folder itself")
    bounds.check(path)
    return path


def _condition(row: dict, demand: Demand, observer: Observer) -> Condition:
    captions = {key: row[key] for key in CAPTION_KEYS if key in row}
    if demand.captions:
        if len(set(map(json.dumps, captions.values()))) > 1:
            raise ValueError(f"it has a {' and another '.join(captions)}; keep one")
        _warn_unused(row, ("label",), "text-conditional", observer)
        return check_caption(row[next(iter(captions), CAPTION_KEYS[0])])
    kind = "class-conditional" if demand.num_classes is not None else "unconditional"
    _warn_unused(row, CAPTION_KEYS, kind, observer)
    return None if demand.num_classes is None else check_label(row["label"])


def _warn_unused(row: dict, keys: tuple[str, ...], kind: str, observer: Observer) -> None:
    unused = [key for key in keys if key in row]
    if unused:
        observer.warn(f"the metadata has a '{unused[0]}', which is not used: the model is {kind}.", "unused")


def check_caption(text: object) -> str:
    """Return a caption.

    Raises:
        ValueError: It is no text, or empty.
    """
    if not isinstance(text, str | None):
        raise ValueError(f"the caption {json.dumps(text)} is no text")
    if text is None or not text.strip():
        raise ValueError("the caption is empty")
    text.encode()  # refuses half a surrogate pair, which JSON can hold and a tokenizer cannot read
    return text


def _check_quotes(caption: str, folder: Path) -> None:
    """Refuse a caption that holds the next lines of the table, because a quote is not closed."""
    for line in caption.splitlines()[1:]:
        name = line.split(",")[0].strip()
        if name and "," in line and (folder / name).is_file():
            raise ValueError(f"its caption goes on with the line of {name}; a quote is not closed")


def check_label(value: object) -> int:
    """Return a class label.

    Raises:
        ValueError: It is no whole number.
    """
    if type(value) is not int:
        raise ValueError(f"label {json.dumps(value)} is no whole number")
    return value
