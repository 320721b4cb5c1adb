"""The pages of a Parquet file, by their own headers: what a reader allocates, whatever the footer says.

Headers are Thrift structures in its compact protocol:
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, BinaryIO

BOOLEANS, BYTE, INTEGERS, DOUBLE, BINARY, LISTS, STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12
"""Types of the compact protocol; that of a boolean field is its value."""
UNPACKED_SIZE, PACKED_SIZE, CONTENTS = 2, 3, (5, 7, 8)
"""Fields of a page's header: its sizes in bytes, and what is said of a page of data, of a dictionary, and of data in
version 2, of which the first field is the number of values."""
DEEPEST, LONGEST = 8, 1 << 20
"""The nesting of a header, and the number of elements and bytes of anything in it: arrow writes some hundred bytes."""


@dataclass(frozen=True)
class Unfolded:
    """What the pages of a column in a group of rows unfold to: bytes, and values; dictionaries count once."""

    bytes: int
    values: int


def unfolded(file: BinaryIO, column: Any) -> Unfolded:
    """Return what the pages of a column in a group of rows unfold to.

    Args:
        column: Its ``pyarrow.parquet.ColumnChunkMetaData``.
    Raises:
        ValueError: A header is damaged.
        EOFError: The file ends in one.
    """
    position, total, values = column.data_page_offset, 0, 0
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < position:
        position = column.dictionary_page_offset
    end = position + column.total_compressed_size
    while position < end:
        file.seek(position)
        header = _Fields(file).struct()
        packed, size = header.get(PACKED_SIZE, -1), header.get(UNPACKED_SIZE, -1)
        if not isinstance(packed, int) or not isinstance(size, int) or min(packed, size) < 0:
            raise ValueError("a page without a size")
        contents: dict[int, Any] = next((header[key] for key in CONTENTS if isinstance(header.get(key), dict)), {})
        total, values = total + size, values + contents.get(1, 0)
        position = file.tell() + packed
    return Unfolded(total, values)


@dataclass
class _Fields:
    """The values at the position of a file."""

    file: BinaryIO
    depth: int = field(default=0)

    def struct(self) -> dict[int, Any]:
        """Return the fields of a structure by their numbers; what is no number or structure is None."""
        if self.depth >= DEEPEST:
            raise ValueError("a header that is nested too deeply")
        self.depth += 1
        fields, number = {}, 0
        while (head := self.byte()) != 0:
            number = number + (head >> 4) if head >> 4 else self.integer()
            fields[number] = self.value(head & 15)
        self.depth -= 1
        return fields

    def value(self, kind: int) -> Any:
        if kind in INTEGERS:
            return self.integer()
        if kind == STRUCT:
            return self.struct()
        if kind in LISTS:
            head = self.byte()
            for _ in range(self.length() if head >> 4 == 15 else head >> 4):
                self.value(BYTE if head & 15 in BOOLEANS else head & 15)
        elif kind not in BOOLEANS:
            sizes = {BYTE: 1, DOUBLE: 8}
            if kind != BINARY and kind not in sizes:
                raise ValueError(f"a field of the unknown type {kind}")
            self.skip(self.length() if kind == BINARY else sizes[kind])
        return None

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
