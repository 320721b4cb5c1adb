"""Stopping a run between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from skipdit_cli import console


@contextmanager
def interrupt() -> Iterator[threading.Event]:
    """An event that the first SIGINT sets; the second interrupts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    former = signal.getsignal(signal.SIGINT)

    def stop(number, frame):
        asked.set()
        signal.signal(signal.SIGINT, former)
        console.warn("interrupted: the step is finished and a checkpoint saved; once more to stop at once.")

    signal.signal(signal.SIGINT, stop)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, former)


def deaf_worker(number: int) -> None:
    """Start of a process that reads images: Ctrl-C reaches it, too, but the step in progress still needs it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
