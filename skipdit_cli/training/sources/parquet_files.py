"""Parquet files as a data set: what they claim is compared with what they are before it takes memory or disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skipdit_cli.errors import UsageError, reading

ROWS_IN_MEMORY = 64
"""Rows that are unpacked at once, whatever the size of a group: a dictionary repeats a large cell for free."""
MOST_EXPANSION, LARGEST_GROUP = 100, 1 << 26
"""How often encoded pictures and texts can be compressed, and the bytes below which a group of rows may be so more."""


def load_parquet(files: Sequence[str]) -> Any:
    """Return the rows of Parquet files as a `datasets.Dataset`, which lies in the user's cache of `datasets`.

    Raises:
        UsageError: A file is damaged, or names more than it can hold.
    """
    import datasets

    for file in files:
        with reading(f"Got {file}, which", failed="is no readable Parquet file"):
            _check_claims(Path(file))
    return datasets.load_dataset("parquet", data_files=list(files), split="train", batch_size=ROWS_IN_MEMORY)


def _check_claims(file: Path) -> None:
    """Check the sizes in the footer of a file.

    Raises:
        UsageError: There are more rows than bytes, or a group of rows unfolds to much more than pictures can.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        facts = opened.metadata
        groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
    size = file.stat().st_size
    rows = max(facts.num_rows, sum(group.num_rows for group in groups))
    if rows > size:
        raise UsageError(f"Got {file} with {rows:,} rows in {size:,} bytes, which no pictures fit into.")
    for group in groups:
        if group.total_byte_size > max(LARGEST_GROUP, MOST_EXPANSION * size):
            raise UsageError(
                f"Got {file}, which unfolds to {group.total_byte_size:,} bytes from {size:,}; no pictures do."
            )
