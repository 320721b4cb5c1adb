"""Stopping a run between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from skipdit_cli import console

STOPPING = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; a queue that takes the machine back


@contextmanager
def interrupt() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; the second stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    former = {number: signal.getsignal(number) for number in STOPPING}

    def give_back():
        for number, handler in former.items():
            signal.signal(number, handler)

    def stop(number, frame):
        asked.set()
        give_back()
        console.warn("interrupted: the step is finished and a checkpoint saved; once more to stop at once.")

    for number in STOPPING:
        signal.signal(number, stop)
    try:
        yield asked
    finally:
        give_back()


def deaf_worker(number: int) -> None:
    """A worker's first act: to ignore what stops a run and reaches it as well: the last step still needs it."""
    for each in STOPPING:
        signal.signal(each, signal.SIG_IGN)
