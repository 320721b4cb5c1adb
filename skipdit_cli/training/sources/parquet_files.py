"""Parquet files as a data set: what they claim is compared with what they are before it takes memory or disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from skipdit_cli.errors import UsageError, reading
from skipdit_cli.training.sources.parquet_pages import unfolded

ROWS_AT_ONCE, BYTES_AT_ONCE = 64, 1 << 28
"""Rows that are unfolded at once: a dictionary repeats a large cell for free. No cell has more bytes than its group of
rows, so of large groups fewer rows are taken."""
BYTES_OF_VALUE = 8
"""Of a number, of which a page can hold many in a few bytes."""
MOST_EXPANSION, LARGEST_GROUP = 100, 1 << 26
"""How often encoded pictures and texts can be compressed, and the bytes below which what is unfolded may be more."""


def load_parquet(files: Sequence[str]) -> Any:
    """Return the rows of Parquet files as a `datasets.Dataset`, which lies in the user's cache of `datasets`.

    Raises:
        UsageError: A file is damaged, or names more than it can hold.
    """
    from datasets.exceptions import DatasetGenerationError
    from datasets.packaged_modules.parquet.parquet import Parquet

    class BoundedParquet(Parquet):
        """The builder of `datasets`, which would unfold whole groups of rows at once, and all that a dictionary
        repeats."""

        def _generate_tables(self, **_: Any) -> Iterator[tuple[tuple[int, int], Any]]:
            for number, file in enumerate(chain.from_iterable(self.config.data_files.values())):
                for position, table in enumerate(_tables(Path(file))):
                    yield (number, position), self._cast_table(table)

    _check_cache()
    for file in files:
        with reading(f"Got {file}, which", failed="is no readable Parquet file"):
            _check_claims(Path(file))
    builder = BoundedParquet(data_files=list(files))
    failure: BaseException | None = None
    try:
        builder.download_and_prepare()
    except DatasetGenerationError as cause:  # in which `datasets` wraps whatever the reading of a file raises
        failure = cause.__cause__ or cause
    if failure is not None:  # raised here, as an error in its own chain of causes would end no search through them
        raise failure
    return builder.as_dataset(split="train")


def _check_cache() -> None:
    """Check that the cache of `datasets`, into which Parquet files are converted, can be written.

    Raises:
        UsageError: It cannot.
    """
    from datasets import config

    cache = Path(config.HF_DATASETS_CACHE)
    place = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(
            f"Cannot convert Parquet files: {cache}, the cache of `datasets`, is not a writable folder; name another "
            "one in the variable HF_DATASETS_CACHE."
        )


def _tables(file: Path) -> Iterator[Any]:
    """Yield the rows of a file, as many at once as fit into memory.

    Raises:
        UsageError: All of them, or the pages of the file, are much more than pictures in a file of that size can be.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with reading(f"Got {file}, which", failed="is no readable Parquet file"), pq.ParquetFile(file) as opened:
        total, largest = 0, 1
        with open(file, "rb") as content:
            groups = unfolded(content)
        for columns in groups:
            size = sum(max(column.bytes, column.values * BYTES_OF_VALUE) for column in columns)
            _check_expansion(file, size)
            largest = max(largest, size)
        for batch in opened.iter_batches(min(ROWS_AT_ONCE, max(1, BYTES_AT_ONCE // largest))):
            total += batch.nbytes
            _check_expansion(file, total)
            yield pa.Table.from_batches([batch])


def _check_claims(file: Path) -> None:
    """Check the number of rows in the footer of a file.

    Raises:
        UsageError: There are more rows than bytes.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        facts = opened.metadata
        rows = max(facts.num_rows, sum(facts.row_group(number).num_rows for number in range(facts.num_row_groups)))
    size = file.stat().st_size
    if rows > size:
        raise UsageError(f"Got {file} with {rows:,} rows in {size:,} bytes, which no pictures fit into.")


def _check_expansion(file: Path, size: int) -> None:
    """Check that a file does not unfold to much more than pictures can.

    Raises:
        UsageError: It does.
    """
    stored = file.stat().st_size
    if size > max(LARGEST_GROUP, MOST_EXPANSION * stored):
        raise UsageError(f"Got {file}, which unfolds to {size:,} bytes or more from {stored:,}; no pictures do.")
