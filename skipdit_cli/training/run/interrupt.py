"""Stopping a run between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from skipdit_cli.training.observer import Observer

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; a job queue that takes the machine back


@contextmanager
def interrupt(observer: Observer) -> Iterator[threading.Event]:
    """Give an event that the first SIGINT or SIGTERM sets; the second signal stops the process at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    former = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def restore():
        for number, handler in former.items():
            signal.signal(number, handler)

    def stop(number, frame):
        event.set()
        restore()
        observer.warn("interrupted: the step is finished and a checkpoint saved; once more to stop at once.")

    for number in STOP_SIGNALS:
        signal.signal(number, stop)
    try:
        yield event
    finally:
        restore()


def ignore_signals(worker: int) -> None:
    """Let a process that loads data ignore the signals that stop a run: the last step still needs it."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
