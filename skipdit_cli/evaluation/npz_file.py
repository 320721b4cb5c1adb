"""Arrays in .npz files, whose headers are compared with what the file holds before an array is allocated."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np

from skipdit_cli.errors import UsageError, reading

MOST_BYTES = 1 << 30
"""Bytes of all arrays that are read at once; features, covariances and logits of 50,000 images have a fourth of it."""

Header = tuple[tuple[int, ...], bool, np.dtype]
"""The shape of an array, whether it is in the order of Fortran, and its dtype."""


def npz_names(path: Path) -> list[str]:
    """Return the names of the arrays in an .npz file.

    Raises:
        UsageError: It is none.
    """
    with reading(f"Got {path}, which", failed="cannot be read as an .npz file"), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def read_arrays(path: Path, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Return arrays of an .npz file by name.

    Args:
        names: Their names; None for all.
    Raises:
        UsageError: The file is damaged or lacks an array, an array holds objects, or all are too large.
    """
    names = list(dict.fromkeys(npz_names(path) if names is None else names))
    with reading(f"Got {path}, which"), zipfile.ZipFile(path) as archive:
        size = 0
        for name in names:
            member = archive.getinfo(f"{name}.npy")
            with archive.open(member) as file:
                shape, _, dtype = read_header(file)
            held = math.prod(shape) * dtype.itemsize
            size += held
            if held > member.file_size:
                raise UsageError(f"Got {path} with {name} of {dtype} {shape}, which is more than the file holds.")
        if size > MOST_BYTES:
            raise UsageError(f"Got {path} with {size:,} bytes of arrays but expected at most {MOST_BYTES:,}.")
        with np.load(path, allow_pickle=False) as opened:
            return {name: opened[name] for name in names}


def read_header(file: IO[bytes]) -> Header:
    """Read the header of an array, which an open file begins with."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)
