"""The batches of a set of images, read and measured by several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from skipdit_cli.errors import SkipditError, UsageError, first_line
from skipdit_cli.evaluation.image_set import ImageSet
from skipdit_cli.processes import Team

T = TypeVar("T")


def share_batches(
    images: ImageSet, batches: Sequence[slice], measure: Callable[[np.ndarray, slice], T], team: Team = Team()
) -> Iterator[tuple[slice, T]]:
    """Yield each batch with what is measured of it, in their order, in the main process; nothing in the others.

    Each process reads and measures every batch of its share; a batch is the same whoever measures it.

    Args:
        images: The images.
        batches: Slices of the images, ascending.
        measure: Returns what is measured, given the pixels of a batch and its slice.
        team: The processes.

    Raises:
        UsageError: A process cannot read an image; all of them stop.
    """
    own = iter(zip(team.share(list(batches)), images.read(team.share(list(batches)))))
    for start in range(0, len(batches), team.count):
        result: T | None = None
        failure: tuple[str, int] | None = None
        try:
            if start + team.rank < len(batches):
                batch, pixels = next(own)
                result = measure(pixels, batch)
        except Exception as cause:
            if team.count == 1:
                raise
            is_ours = isinstance(cause, SkipditError)
            failure = str(cause) if is_ours else f"{type(cause).__name__}: {first_line(cause)}.", _exit_code(cause)
        shares = team.gather((result, failure))
        team.on_main(lambda shares=shares: _check(shares))  # type: ignore[misc]
        yield from ((batch, result) for batch, (result, _) in zip(batches[start:], shares))  # type: ignore[misc]


def _exit_code(cause: Exception) -> int:
    return getattr(cause, "exit_code", SkipditError.exit_code)


def _check(shares: Sequence[tuple[object, tuple[str, int] | None]]) -> None:
    """Raise the first failure of a process."""
    for _, failure in shares:
        if failure is not None:
            sentence, code = failure
            raise (UsageError if code == UsageError.exit_code else SkipditError)(sentence)
