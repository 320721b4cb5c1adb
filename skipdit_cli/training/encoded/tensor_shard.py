"""A shard: one safetensors file that holds the tensors of some hundred entries, and in its header what they are.

Its name ends with the checksum of its content, ``latents-<SHA-256, 32 digits>.safetensors``, so a shard can be checked
without any other file. Its header is its part of the manifest.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save

from skipdit_cli.errors import SkipditError, UsageError, reading
from skipdit_cli.files import replacing
from skipdit_cli.formats import parse_json

Tensors = dict[str, torch.Tensor]
NAME = re.compile(r"(latents|texts)-([0-9a-f]{32})\.safetensors")
FORMAT = 1
"""The version of the layout, which the header of each shard says."""
HEADER, SUMS, SHAPE = "skipdit", "crc32", ".shape"
"""The key of a shard's header, the name of the tensor of checksums, and the end of the names of tables of shapes."""
MAX_BYTES = 1 << 30
"""The size of a shard above which it is refused: 1 GiB. None is written that has more than an eighth of that, unless
a single entry has."""
ADVICE = "run 'skipdit prepare' with the same data and --cache-latents, which encodes the samples in it again"


@dataclass(frozen=True)
class Shard:
    """A shard whose header has been read. Its tensors are mapped into memory, and read entry by entry.

    Args:
        kind: ``latents`` or ``texts``.
        settings: What shaped all of its entries: the encoder's weights, the size, ...
        data: The data source that the samples are from, for people.
        names: The name of each entry, a hash of the content that was encoded.
    """

    path: Path
    kind: str
    settings: dict
    data: dict = field(default_factory=dict, compare=False)
    names: list[str] = field(default_factory=list, repr=False, compare=False)

    def __getstate__(self) -> dict:
        """Leave the mapped file out: a process of the data loader maps it anew."""
        return {key: value for key, value in self.__dict__.items() if key != "_tensors"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)

    def read(self, position: int) -> Tensors:
        """Return the tensors of the entry at a position.

        Raises:
            SkipditError: They are not those that were written.
        """
        try:
            with reading(str(self.path)):
                sums, tensors = self._tensors
                entry = {name: tensor.entry(position) for name, tensor in tensors.items()}
                intact = sums[position] == _checksum(entry)
        except UsageError as cause:
            raise SkipditError(f"{str(cause).rstrip('.')}; {ADVICE}.") from cause
        if not intact:
            raise SkipditError(f"{self.path} is damaged at entry {position + 1} of {len(self.names)}; {ADVICE}.")
        return entry

    @cached_property
    def _tensors(self) -> tuple[list[int], dict[str, _Entries]]:
        """The checksum of each entry, and the tensors of all entries by name.

        Raises:
            UsageError: They are not as a shard has them.
        """
        with safe_open(self.path, "pt") as opened:
            keys = set(opened.keys())
            names = {key for key in keys if f"{key}{SHAPE}" in keys}
            if keys != {SUMS, *names, *(f"{name}{SHAPE}" for name in names)}:
                raise UsageError(f"{self.path} has tensors that no shard has.")
            tables = {name: opened.get_tensor(f"{name}{SHAPE}") for name in names}
            sums = opened.get_tensor(SUMS)
            tensors = {name: _Entries(opened.get_slice(name), table.tolist()) for name, table in tables.items()}
        lengths = {len(sums), *(len(table) for table in tables.values())}
        if lengths != {len(self.names)} or not all(each.fits() for each in tensors.values()):
            raise UsageError(f"{self.path} holds other tensors than its header lists.")
        return sums.tolist(), tensors


@dataclass(frozen=True)
class _Entries:
    """One tensor of all entries of a shard: their elements one after the other, and their shapes."""

    elements: Any  # a slice of safetensors
    shapes: list[list[int]]

    @cached_property
    def starts(self) -> list[int]:
        starts = [0]
        for shape in self.shapes:
            starts.append(starts[-1] + math.prod(shape))
        return starts

    def fits(self) -> bool:
        """Return whether the shapes account for all elements."""
        positive = all(side >= 0 for shape in self.shapes for side in shape)
        return positive and self.elements.get_shape() == [self.starts[-1]]

    def entry(self, position: int) -> torch.Tensor:
        first, end = self.starts[position : position + 2]
        return self.elements[first:end].view(self.shapes[position])


def open_shard(path: Path) -> Shard:
    """Return a shard of which the header has been read, and nothing else.

    Raises:
        UsageError: It is too large, or its header is not that of a shard.
    """
    with reading(str(path)):
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path} has {path.stat().st_size >> 20:,} MiB, but no shard has more than 1,024.")
        with safe_open(path, "pt") as opened:
            text = (opened.metadata() or {}).get(HEADER)
    header = None if text is None else parse_json(text, f"The header of {path}")
    kind = path.name.partition("-")[0]
    if not isinstance(header, dict) or header.get("format") != FORMAT or header.get("kind") != kind:
        raise UsageError(f"{path} is no shard of {kind} of this version of skipdit.")
    settings, data, names = (cast(Any, header.get(key)) for key in ("settings", "data", "names"))
    dicts, is_list = isinstance(settings, dict) and isinstance(data, dict), isinstance(names, list)
    if not dicts or not is_list or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{path} has a header that does not say what it holds.")
    return Shard(path, kind, settings, data, names)


def write_shard(folder: Path, kind: str, settings: dict, data: dict, entries: Mapping[str, Tensors]) -> Path:
    """Write entries as a shard and return its path. It is there whole or not at all.

    Args:
        kind, settings, data: See ``Shard``.
        entries: The tensors of each entry, by the entry's name; each has the same names of tensors.
    Raises:
        OSError: The file cannot be written.
    """
    listed = list(entries.values())
    tensors = {SUMS: torch.tensor([_checksum(entry) for entry in listed], dtype=torch.int64)}
    for name in listed[0]:
        tensors[name] = torch.cat([entry[name].reshape(-1) for entry in listed])
        shapes = [entry[name].shape for entry in listed]
        tensors[f"{name}{SHAPE}"] = torch.tensor(shapes, dtype=torch.int64).view(len(listed), -1)
    header = {"format": FORMAT, "kind": kind, "settings": settings, "data": data, "names": list(entries)}
    content = save(tensors, {HEADER: json.dumps(header)})
    path = folder / f"{kind}-{sha256(content).hexdigest()[:32]}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_bytes(content)
    return path


def bytes_of(entry: Tensors) -> int:
    """Return the size of an entry's tensors in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in entry.values())


def _checksum(entry: Tensors) -> int:
    """Return a checksum of the tensors of an entry, in the order of their names."""
    total = 0
    for _, tensor in sorted(entry.items()):
        elements: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        total = zlib.crc32(elements, total)
    return total


def names_of(shards: Sequence[Shard]) -> dict[str, tuple[Shard, int]]:
    """Return where the entries of shards lie: the shard and the position of each, by the entry's name."""
    return {name: (shard, position) for shard in shards for position, name in enumerate(shard.names)}
