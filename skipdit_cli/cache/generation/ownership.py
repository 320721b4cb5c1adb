"""The thread that owns a cache: it serves one call at a time, and one thread throughout a generation."""

from __future__ import annotations

import threading

from skipdit_cli.errors import UsageError

_lock = threading.Lock()


class Ownership:
    """The thread that uses one cache.

    Without a scheduler the end of a generation is not known. Then only simultaneous calls are refused.
    A copy of a cache has no owner.

    Attributes:
        caller: The thread that is in a call of the transformer.
        owner: The thread whose generation it is.
        superseded: A thread whose generation another thread has ended; its next call is refused.
    """

    def __init__(self):
        self.caller: threading.Thread | None = None
        self.owner: threading.Thread | None = None
        self.superseded: threading.Thread | None = None
        self._local = threading.local()

    def __reduce__(self):
        return Ownership, ()

    @property
    def context(self) -> str | None:
        """The name of the cache context that this thread is in, or None."""
        return getattr(self._local, "context", None)

    @context.setter
    def context(self, name: str | None) -> None:
        self._local.context = name

    def begin_call(self, in_generation: bool) -> None:
        """Take the cache for a call of the transformer.

        Args:
            in_generation: Whether a generation is under way.

        Raises:
            UsageError: Another call, or another thread's generation, is under way.
        """
        thread = threading.current_thread()
        with _lock:
            if self.caller is not None or thread is self.superseded or (in_generation and self._is_other(thread)):
                raise _refusal()
            self.caller = self.owner = thread

    def end_call(self) -> None:
        """Give the cache back after a call."""
        self.caller = None

    def begin_generation(self, in_generation: bool) -> None:
        """Begin a generation. One of another thread, which may have been abandoned, is over.

        Args:
            in_generation: Whether a generation is under way.

        Raises:
            UsageError: A call of another thread is under way.
        """
        thread = threading.current_thread()
        with _lock:
            if self.caller not in (None, thread):
                raise _refusal()
            if in_generation and self._is_other(thread):
                self.superseded = self.owner
            elif thread is self.superseded:
                self.superseded = None

    def _is_other(self, thread: threading.Thread) -> bool:
        """Whether another thread, which still runs, owns the cache."""
        return self.owner not in (None, thread) and self.owner.is_alive()


def _refusal() -> UsageError:
    return UsageError(
        "Got a second generation on a transformer whose Skip-Cache is in use; one cache serves one generation at a "
        "time: wait for the first, or give each thread a transformer and a cache of its own (copy.deepcopy)."
    )
