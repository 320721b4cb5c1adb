"""The observer of a training run: whom the run tells what it does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext


class Observer:
    """Receives the messages and the progress of a training run.

    This one ignores them. A command passes a subclass that writes to the console; of several processes, only the main
    one reports to it (see ``session.begin``).
    """

    def say(self, message: str) -> None:
        """Receive a line of information."""

    def warn(self, message: str, topic: str | None = None) -> None:
        """Receive a warning.

        Args:
            topic: Warnings of one topic repeat each other, so that the first one is enough.
        """

    def progress(self, description: str, total: int) -> AbstractContextManager[Callable[..., None]]:
        """Follow a piece of work of ``total`` units.

        Returns:
            A context manager that gives ``advance(count=1, note="")``, to be called as units are done.
        """
        return nullcontext(_ignore)


def _ignore(count: int = 1, note: str = "") -> None:
    """Advance nothing."""


SILENT = Observer()
"""The observer of a caller that wants no messages."""
