"""The thread that owns a cache, which serves one call at a time and one thread throughout a generation, and the thread
that owns a transformer in ``generate``."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary, WeakSet

import torch

from skipdit_cli.errors import UsageError
from skipdit_cli.families.pipeline_parts import unwrap_compiled

_lock = threading.Lock()
_samplers: WeakKeyDictionary[torch.nn.Module, threading.Thread] = WeakKeyDictionary()
"""Transformer to the thread that runs ``generate`` on it."""


class Ownership:
    """The thread that uses one cache.

    Without a scheduler the end of a generation is not known. Then only simultaneous calls are refused.
    A copy of a cache has no owner.

    Attributes:
        caller: The thread that is in a call of the transformer.
        owner: The thread whose generation it is.
        superseded: Threads whose generation another thread has ended; their next call, or step, is refused.
    """

    def __init__(self):
        self.caller: threading.Thread | None = None
        self.owner: threading.Thread | None = None
        self.superseded: WeakSet[threading.Thread] = WeakSet()
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
            if self.caller is not None or thread in self.superseded or (in_generation and self._is_other(thread)):
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
            if self.owner is not None and in_generation and self._is_other(thread):
                self.superseded.add(self.owner)
            self.superseded.discard(thread)
            self.owner = thread

    def check_step(self) -> None:
        """Check that a scheduler may step, before it does: a step within another thread's generation would move that.

        Raises:
            UsageError: Another thread has ended this one's generation.
        """
        if threading.current_thread() in self.superseded:
            raise _refusal()

    def check_idle(self) -> None:
        """Check that no call of the transformer is under way, whose blocks would run by two caches.

        Raises:
            UsageError: One is.
        """
        if self.caller is not None:
            raise UsageError(
                "Got a change of Skip-Cache in the middle of a call of its transformer; enable or disable it between "
                "two calls."
            )

    def _is_other(self, thread: threading.Thread) -> bool:
        """Whether another thread, which still runs, owns the cache."""
        return self.owner not in (None, thread) and self.owner.is_alive()


@contextmanager
def taken(transformers: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Keep ``generate`` of other threads off transformers: it puts a cache on them, and a scheduler on their pipeline.

    Raises:
        UsageError: Another thread runs it on one of them.
    """
    held, thread = [unwrap_compiled(each) for each in transformers], threading.current_thread()
    with _lock:
        if any(_samplers.get(each, thread) is not thread for each in held):
            raise UsageError(
                "Got a second generate() on a transformer that another thread is sampling with; wait for the first, "
                "or give each thread a pipeline of its own (copy.deepcopy)."
            )
        _samplers.update(dict.fromkeys(held, thread))
    try:
        yield
    finally:
        with _lock:
            for each in held:
                _samplers.pop(each, None)


def _refusal() -> UsageError:
    return UsageError(
        "Got a second generation on a transformer whose Skip-Cache is in use; one cache serves one generation at a "
        "time: wait for the first, or give each thread a transformer and a cache of its own (copy.deepcopy)."
    )
