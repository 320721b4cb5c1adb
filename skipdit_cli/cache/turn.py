"""Whose turn a cache is: of one call at a time, and of one thread from the first call of a generation to its end."""

from __future__ import annotations

import threading

from skipdit_cli.errors import UsageError

_changing = threading.Lock()


class Turn:
    """Who uses one cache.

    Without a scheduler nothing tells where a generation ends: then only calls at the same time are refused.
    A copy is nobody's.
    """

    def __init__(self):
        self.calling: threading.Thread | None = None
        self.owner: threading.Thread | None = None
        self.ousted: threading.Thread | None = None
        self._own = threading.local()

    def __reduce__(self):
        return Turn, ()

    @property
    def context(self) -> str | None:
        """The name of the cache context that this thread is in."""
        return getattr(self._own, "context", None)

    @context.setter
    def context(self, name: str | None) -> None:
        self._own.context = name

    def take(self, midway: bool) -> None:
        """Begin a call.

        Args:
            midway: A generation is under way.
        Raises:
            UsageError: Another call, or another thread's generation, is.
        """
        thread = threading.current_thread()
        with _changing:
            if self.calling is not None or thread is self.ousted or (midway and self._is_anothers(thread)):
                raise _refusal()
            self.calling = self.owner = thread

    def give_back(self) -> None:
        """The call has ended."""
        self.calling = None

    def begin_generation(self, midway: bool) -> None:
        """Begin a generation. That of another thread, which may have been left, is over: its next call is refused.

        Raises:
            UsageError: A call of another thread is under way.
        """
        thread = threading.current_thread()
        with _changing:
            if self.calling not in (None, thread):
                raise _refusal()
            if midway and self._is_anothers(thread):
                self.ousted = self.owner
            elif thread is self.ousted:
                self.ousted = None

    def _is_anothers(self, thread: threading.Thread) -> bool:
        return self.owner not in (None, thread) and self.owner.is_alive()


def _refusal() -> UsageError:
    return UsageError(
        "Got a second generation on a transformer whose Skip-Cache is in use; one cache serves one generation at a "
        "time: wait for the first, or give each thread a transformer and a cache of its own (copy.deepcopy)."
    )
