"""Arrays of samples in files: written batch by batch, and copied to an .npz file, without all of them in memory."""

from __future__ import annotations

import math
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from skipdit_cli.errors import SkipditError
from skipdit_cli.files import replacing

if TYPE_CHECKING:
    import numpy as np


def save_npz(images: np.ndarray, path: Path) -> None:
    """Write images, uint8 (N, [F,] H, W, 3), as ``arr_0`` of an .npz file, which the evaluator of ADM reads."""
    import numpy as np

    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, arr_0=images)


class ArrayFile:
    """An .npy file of a known number of samples, written in slices.

    It is written and read as a file, not mapped into memory, so that the memory of the process does not grow with it.

    Args:
        path: The file; ``create`` or the first ``write`` creates it.
        count: N, the number of samples.
    """

    def __init__(self, path: Path, count: int):
        self.path, self.count = path, count

    def is_whole(self) -> bool:
        """Return whether the file holds N samples, as ``write`` created it; others may have made or damaged it."""
        import numpy as np

        if self.path.is_symlink() or not self.path.is_file():
            return False
        try:
            with self.path.open("rb") as file:
                np.lib.format.read_magic(file)
                shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
                header = file.tell()
        except Exception:  # numpy parses the header as Python source: errors of many types
            return False
        is_ours = dtype == np.uint8 and not is_fortran and len(shape) in (4, 5) and min(shape) > 0
        return is_ours and shape[0] == self.count and self.path.stat().st_size == header + math.prod(shape)

    def discard(self) -> None:
        """Delete the file, or the link in its place."""
        self.path.unlink(missing_ok=True)

    def create(self, shape: tuple[int, ...]) -> None:
        """Create the file, unless it is there; several processes can then write into it.

        Args:
            shape: That of one sample.
        """
        import numpy as np

        if not self.path.exists():
            with replacing(self.path) as part, part.open("wb") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": (self.count, *shape)}
                np.lib.format.write_array_header_1_0(file, header)
                file.truncate(file.tell() + self.count * math.prod(shape))

    def write(self, start: int, samples: np.ndarray) -> None:
        """Write samples, uint8 (n, ...), at index ``start``; those at N and above are left out.

        Raises:
            SkipditError: The file holds samples of another shape.
        """
        import numpy as np

        self.create(samples.shape[1:])
        samples = samples[: max(0, self.count - start)]
        with self.path.open("r+b") as file:
            shape, size = self._read_header(file)
            if shape[1:] != samples.shape[1:]:
                raise SkipditError(f"Got {self.path}, which is damaged; delete it, and the same command goes on.")
            file.seek(start * size, 1)
            file.write(np.ascontiguousarray(samples).data)

    def read(self, count: int | None = None) -> np.ndarray:
        """Return the first samples, or all of them."""
        import numpy as np

        with self.path.open("rb") as file:
            shape, size = self._read_header(file)
            count = shape[0] if count is None else min(count, shape[0])
            return np.frombuffer(file.read(count * size), np.uint8).reshape(count, *shape[1:])

    def read_one(self, index: int) -> bytes:
        """Return the bytes of the sample at an index."""
        with self.path.open("rb") as file:
            size = self._read_header(file)[1]
            file.seek(index * size, 1)
            return file.read(size)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        with self.path.open("rb") as file:
            return self._read_header(file)[0]

    def _read_header(self, file) -> tuple[tuple[int, ...], int]:
        """Return the shape of the array and the bytes of a sample; the file stands at the first sample then."""
        import numpy as np

        np.lib.format.read_magic(file)
        shape = np.lib.format.read_array_header_1_0(file)[0]
        return shape, int(np.prod(shape[1:]))

    def copy_to_npz(self, path: Path) -> None:
        """Write what ``save_npz`` would write of the whole array, byte for byte."""
        with (
            replacing(path) as part,
            zipfile.ZipFile(part, "w") as archive,
            self.path.open("rb") as file,
            archive.open("arr_0.npy", "w", force_zip64=True) as entry,
        ):
            shutil.copyfileobj(file, entry, 1 << 20)
