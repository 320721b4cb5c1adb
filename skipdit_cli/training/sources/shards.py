"""WebDataset shards: tar files whose members ``KEY.EXTENSION`` with one key are one sample.

Nothing is unpacked. Each shard is indexed once, by its headers; a picture is then read at its offset. So an epoch is a
permutation of all samples, not of a buffer, and a resumed run goes on with exactly the next sample.
"""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from skipdit_cli import media
from skipdit_cli.errors import UsageError, reading
from skipdit_cli.formats import parse_json
from skipdit_cli.media.names import IMAGE_SUFFIXES
from skipdit_cli.training.data.demand import Demand
from skipdit_cli.training.data.metadata import Condition, check_caption, check_label
from skipdit_cli.training.data.samples import SampleSet
from skipdit_cli.training.data_source import DataSource, expand_shards
from skipdit_cli.training.observer import SILENT, Observer
from skipdit_cli.training.sources.packed_pictures import MAX_PICTURE_BYTES, Columns, sample_set

CAPTIONS, LABELS = ("txt", "text", "caption"), ("cls", "label")
"""Extensions of members, and keys of JSON members, that hold captions and class labels."""
MAX_TEXT_BYTES = 1 << 20
"""The size of a caption, a JSON member or a header above which it is refused: 1 MiB."""


class Member(NamedTuple):
    """Where the content of a member lies in its shard."""

    key: str
    extension: str
    offset: int
    size: int


class Place(NamedTuple):
    """Where a picture lies: the number of its shard, and its member."""

    shard: int
    member: Member


@dataclass(frozen=True)
class Shards:
    """The shards of a data set."""

    paths: list[Path]

    def load(self, place: Place) -> bytes:
        """Return the content of a member.

        Raises:
            UsageError: The member is larger than a picture may be, or the shard has become shorter.
        """
        if place.member.size > MAX_PICTURE_BYTES:
            raise UsageError(f"Got {self.name(place)} of {place.member.size >> 20:,} MiB; expected at most 256.")
        with self.paths[place.shard].open("rb") as file:
            file.seek(place.member.offset)
            content = file.read(place.member.size)
        if len(content) < place.member.size:
            raise UsageError(f"Got {self.name(place)}, which ends beyond the end of its shard.")
        return content

    def name(self, place: Place) -> str:
        """Return ``shards/000.tar: KEY.EXTENSION``."""
        return f"{self.paths[place.shard]}: {place.member.key}.{place.member.extension}"


def read_shards(source: DataSource, demand: Demand, columns: Columns, observer: Observer = SILENT) -> SampleSet:
    """Return the samples of WebDataset shards, in the order of the shards and of the pictures in them.

    Args:
        columns: The extensions, or keys of JSON members, of images, captions and class labels.
    Raises:
        UsageError: A shard is missing, named twice or damaged, or its samples are not what the model requires.
    """
    known: dict[Path, None] = {}
    for path in expand_shards(source.name):
        if not path.is_file():
            raise UsageError(f"Got the shard {path}, which is not a file.")
        if path in known:
            raise UsageError(f"Got the shard {path} twice in --data wds:{source.name}; name each one once.")
        known[path] = None
    paths = list(known)
    if not paths:
        raise UsageError(f"Got --data wds:{source.name}, which matches no file; give paths of .tar files.")
    shards, samples, left_out = Shards(paths), [], Counter[str]()
    with observer.progress("index", len(paths)) as advance:
        for number, path in enumerate(paths):
            for members in _samples_of(path, left_out):
                picture = _picture(members, columns, f"{path}: {next(iter(members.values())).key}")
                if picture is None:
                    left_out["samples without a picture"] += 1
                    continue
                samples.append((Place(number, picture), _condition(shards, number, members, demand, columns)))
            advance()
    summary = ", ".join(f"{count:,} {kind}" for kind, count in left_out.items())
    name = f"wds:{source.name}"
    return sample_set(shards, samples, name, left_out=f"left out: {summary}" * bool(summary), observer=observer)


def _samples_of(path: Path, left_out: Counter[str]) -> Iterator[dict[str, Member]]:
    """Yield the members of each sample of a shard by extension."""
    samples: dict[str, dict[str, Member]] = {}
    for member in _members_of(path, left_out):
        sample = samples.setdefault(member.key, {})
        if member.extension in sample:
            raise UsageError(f"Got {path} with {member.key}.{member.extension} twice; expected every name once.")
        sample[member.extension] = member
    yield from samples.values()


class _HeaderFile(io.FileIO):
    """A shard of which headers alone are read: a longer extended header would fill the memory."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MAX_TEXT_BYTES:
            raise tarfile.ReadError(f"one of its headers has {size} bytes")
        return super().read(size)


def _entries_of(path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of a shard. Iterating a ``TarFile`` keeps them all, and stops at a damaged one in silence."""
    with _HeaderFile(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        total, position = path.stat().st_size, 0
        while True:
            file.seek(position)
            if not file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # a block of zeros, or the end of the file
                return
            file.seek(position)
            entry = tarfile.TarInfo.fromtarfile(tar)
            has_content = entry.isreg() or entry.type not in tarfile.SUPPORTED_TYPES
            blocks = -(-entry.size // tarfile.BLOCKSIZE) if has_content else 0
            position = entry.offset_data + blocks * tarfile.BLOCKSIZE
            if entry.issparse() or entry.size < 0 or position > total:
                raise tarfile.ReadError(f"{entry.name[:80]!a} is sparse or ends beyond the end of the file")
            yield entry


def _members_of(path: Path, left_out: Counter[str]) -> Iterator[Member]:
    """Yield the files in a shard; links, devices and hidden files are left out."""
    with reading(f"The shard {path}", "a shard is a plain .tar, neither compressed nor cut off"):
        for entry in _entries_of(path):
            folder, _, base = entry.name.rpartition("/")
            stem, _, extension = base.partition(".")
            parents = [part for part in folder.split("/") if part not in (".", "..")]
            if entry.isdir() or any(map(media.is_hidden, (base, *parents))):
                continue
            if not entry.isreg():
                left_out["links or special files"] += 1
            elif extension:
                key = f"{folder}/{stem}" if folder else stem
                yield Member(key, extension.lower(), entry.offset_data, entry.size)


def _picture(members: dict[str, Member], columns: Columns, name: str) -> Member | None:
    """Return the picture of a sample, or None if it has none."""
    if columns.image is not None:
        return next((members[each] for each in columns.image.lower().split(";") if each in members), None)
    pictures = [member for extension, member in members.items() if _is_picture(extension)]
    if len(pictures) > 1:
        names = " and ".join(member.extension for member in pictures[:2])
        raise UsageError(f"Got {name} with the pictures {names}; choose with --image-column {pictures[0].extension}.")
    return pictures[0] if pictures else None


def _is_picture(extension: str) -> bool:
    return f".{extension.rpartition('.')[2]}" in IMAGE_SUFFIXES


def _condition(shards: Shards, shard: int, members: dict[str, Member], demand: Demand, columns: Columns) -> Condition:
    """Return the class label or the caption of a sample, as the model requires."""
    if not demand.captions and demand.num_classes is None:
        return None
    column = columns.caption if demand.captions else columns.label
    names: tuple[str, ...] = CAPTIONS if demand.captions else LABELS
    if column is not None:
        names = (column,)
    name = f"{shards.paths[shard]}: {next(iter(members.values())).key}"
    try:
        value = _value(shards, shard, members, names)
        if demand.captions:
            return check_caption(value)
        return check_label(int(value) if isinstance(value, str) else value)
    except (ValueError, KeyError, UnicodeDecodeError) as cause:
        noun, flag = ("caption", "--caption-column") if demand.captions else ("class label", "--label-column")
        fault = str(cause).strip("'").rstrip(".")
        raise UsageError(
            f"Got {name} without a {noun} ({fault}); expected a member {' or '.join(names)}, or that key in a json "
            f"member; {flag} names another."
        ) from cause


def _value(shards: Shards, shard: int, members: dict[str, Member], names: tuple[str, ...]) -> object:
    """Return the text of the first member of these names, or the value of such a key in the JSON member."""
    texts = [members[name.lower()] for name in names if name.lower() in members]
    for member in (*texts, *([members["json"]] if "json" in members else [])):
        if member.size > MAX_TEXT_BYTES:
            raise ValueError(f"its {member.extension} has {member.size:,} bytes")
        text = shards.load(Place(shard, member)).decode("utf-8-sig")
        if member.extension != "json":
            return text.strip()
        record = parse_json(text, shards.name(Place(shard, member)))
        key = next((name for name in names if isinstance(record, dict) and name in record), None)
        if isinstance(record, dict) and key is not None:
            return record[key]
    raise KeyError(f"it has {', '.join(sorted(members))}")
