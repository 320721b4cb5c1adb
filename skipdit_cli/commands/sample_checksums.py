"""The checksums of the samples that an unfinished run of ``skipdit sample`` has made, one of fixed size for each."""

from __future__ import annotations

from pathlib import Path

from skipdit_cli.files import replacing

SIZE = 32
"""Bytes of a SHA-256 checksum."""


class SampleChecksums:
    """A file of the checksums of N samples, of which each is written when its sample is; until then it is zero.

    Several processes can write different ones at the same time.

    Args:
        path: The file.
        count: N, the number of samples.
    """

    def __init__(self, path: Path, count: int):
        self.path, self.count = path, count

    def is_whole(self) -> bool:
        """Return whether the file has the size of N checksums."""
        return not self.path.is_symlink() and self.path.is_file() and self.path.stat().st_size == self.count * SIZE

    def create(self) -> None:
        """Write the file without any checksum, in place of a former one."""
        with replacing(self.path) as part, part.open("wb") as file:
            file.truncate(self.count * SIZE)

    def read(self, index: int) -> bytes | None:
        """Return the checksum of a sample, or None where it has not been written."""
        with self.path.open("rb") as file:
            file.seek(index * SIZE)
            checksum = file.read(SIZE)
        return checksum if any(checksum) else None

    def write(self, index: int, checksum: bytes) -> None:
        """Write the checksum of a sample."""
        with self.path.open("r+b") as file:
            file.seek(index * SIZE)
            file.write(checksum)
