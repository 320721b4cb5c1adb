"""The pages of a Parquet file, by their own headers: what a reader allocates, whatever the footer says of it.

Footer and headers are Thrift structures in its compact protocol, read here as pyarrow ends the process where the
statistics of a column are damaged:
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, BinaryIO

BOOLEANS, BYTE, INTEGERS, DOUBLE, BINARY, LISTS, STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12
"""Types of the compact protocol; that of a boolean field is its value."""
ROW_GROUPS, COLUMNS, COLUMN = 4, 1, 3
"""Fields of the footer, of a group of rows and of a column that lead to what is said of the column."""
COLUMN_SIZE, DATA, DICTIONARY = 7, 9, 11
"""Fields of that: its size in the file, and where its pages of data and its dictionary begin."""
UNPACKED_SIZE, PACKED_SIZE, CONTENTS = 2, 3, (5, 7, 8)
"""Fields of a page's header: its sizes in bytes, and what is said of a page of data, of a dictionary, and of data in
version 2, of which the first field is the number of values."""
DEEPEST, LONGEST = 16, 1 << 23
"""The nesting of structures and lists, and the number of elements and bytes of anything in them."""


@dataclass(frozen=True)
class Unfolded:
    """What the pages of a column in a group of rows unfold to: bytes, and values; dictionaries count once."""

    bytes: int
    values: int


def unfolded(file: BinaryIO) -> list[list[Unfolded]]:
    """Return what the pages of each column unfold to, for each group of rows.

    Raises:
        ValueError: The footer or a header is damaged.
        EOFError: The file ends in one.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 8, 0))
    length = int.from_bytes(file.read(4), "little")
    if not 0 < length <= min(size - 8, LONGEST):
        raise ValueError(f"a footer of {length:,} bytes")
    file.seek(size - 8 - length)
    groups = _field(_Fields(file).struct(), ROW_GROUPS, list)
    return [[_pages(file, _field(column, COLUMN, dict), size) for column in _field(group, COLUMNS, list)]
            for group in groups]  # fmt: skip


def _pages(file: BinaryIO, column: dict[int, Any], size: int) -> Unfolded:
    """Return what the pages of a column in a group of rows unfold to, in a file of a size."""
    position, total, values = _field(column, DATA, int), 0, 0
    if DICTIONARY in column and 0 < _field(column, DICTIONARY, int) < position:
        position = column[DICTIONARY]
    end = position + _field(column, COLUMN_SIZE, int)
    if not 0 <= position <= end <= size:
        raise ValueError("a column that is not in the file")
    while position < end:
        file.seek(position)
        header = _Fields(file).struct()
        packed, unpacked = (_field(header, number, int) for number in (PACKED_SIZE, UNPACKED_SIZE))
        if packed < 0 or unpacked < 0:
            raise ValueError("a page without a size")
        contents: dict[int, Any] = next((header[key] for key in CONTENTS if isinstance(header.get(key), dict)), {1: 0})
        total, values = total + unpacked, values + _field(contents, 1, int)
        position = file.tell() + packed
    return Unfolded(total, values)


def _field(fields: Any, number: int, kind: type) -> Any:
    """Return a field of a structure, which has it and is one.

    Raises:
        ValueError: It is not, or the field is of another type.
    """
    if not isinstance(fields, dict) or not isinstance(fields.get(number), kind):
        raise ValueError("a footer or a header without a field that it needs")
    return fields[number]


@dataclass
class _Fields:
    """The values at the position of a file."""

    file: BinaryIO
    depth: int = 0

    def struct(self) -> dict[int, Any]:
        """Return the fields of a structure by their numbers; what is no number, structure or list is None."""
        fields: dict[int, Any] = {}
        number = 0
        while (head := self.byte()) != 0:
            number = number + (head >> 4) if head >> 4 else self.integer()
            fields[number] = self.value(head & 15)
        return fields

    def value(self, kind: int) -> Any:
        if kind in INTEGERS:
            return self.integer()
        if kind == STRUCT or kind in LISTS:
            if self.depth >= DEEPEST:
                raise ValueError("a header that is nested too deeply")
            self.depth += 1
            nested = self.struct() if kind == STRUCT else self.elements()
            self.depth -= 1
            return nested
        if kind not in BOOLEANS:
            sizes = {BYTE: 1, DOUBLE: 8}
            if kind != BINARY and kind not in sizes:
                raise ValueError(f"a field of the unknown type {kind}")
            self.skip(self.length() if kind == BINARY else sizes[kind])
        return None

    def elements(self) -> list[Any]:
        """Return the elements of a list."""
        head = self.byte()
        kind = BYTE if head & 15 in BOOLEANS else head & 15
        return [self.value(kind) for _ in range(self.length() if head >> 4 == 15 else head >> 4)]

    def integer(self) -> int:
        """Return a signed number, whose lowest bit is its sign."""
        number = self.varint()
        return (number >> 1) ^ -(number & 1)

    def length(self) -> int:
        if (number := self.varint()) > LONGEST:
            raise ValueError(f"a header with {number:,} elements")
        return number

    def varint(self) -> int:
        number = 0
        for shift in range(0, 70, 7):
            byte = self.byte()
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise ValueError("a number of more than ten bytes")

    def byte(self) -> int:
        return self.skip(1)[0]

    def skip(self, size: int) -> bytes:
        data = self.file.read(size)
        if len(data) < size:
            raise EOFError("the file ends in a header")
        return data
