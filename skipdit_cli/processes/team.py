"""The processes of one command: what they exchange, and how each learns that another one failed or ended.

They exchange Python objects, a counter of steps and the sentence of a process that fails, over gloo on the CPU
whatever the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from skipdit_cli.errors import ProcessError, SkipditError, first_line
from skipdit_cli.processes.writer import Writer

T = TypeVar("T")
PATIENCE, PAUSE = 2.0, 0.05
"""Seconds that processes which fail wait for each other, so that one prints what all would say, and between looks."""
BETWEEN_LOOKS = 1.0
"""Seconds after which a process looks again whether the others still run."""
FAILED, MAIN, HEARD, STEPS = "skipdit/failed", "skipdit/main", "skipdit/heard", "skipdit/steps"
"""Keys of the store: the sentence of the first process that failed, the one that the main process prints, the
processes that have read it, and the steps of all processes."""

LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited", "Timed out")
"""What torch's errors say, among much else, where another process has ended or does not answer."""


class Team:
    """The processes of one command. One process alone is a team as well, which never waits.

    Args:
        rank: The index of this process.
        count: The number of processes.

    Attributes:
        is_main: Whether this process is the main one, which prints, and writes what is written once.
        is_apart: Whether the processes do different work by now, so that one may fail alone.
    """

    def __init__(self, rank: int = 0, count: int = 1):
        self.rank, self.count, self.is_main = rank, count, rank == 0
        self.is_apart = False
        self.group: Any = None
        self.store: Any = None
        self.others: dict[int, Writer] = {}
        self.looked = 0.0

    def broadcast(self, value: T | None = None) -> T:
        """Return an object of the main process in all of them."""
        if self.count == 1:
            return value  # type: ignore[return-value]
        import torch.distributed as dist

        box = [value]
        self._wait(lambda: dist.broadcast_object_list(box, src=0, group=self.group))
        return box[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """Return the objects of all processes, in their order, to the main one, and an empty list to the others."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        box = values if self.is_main else None
        self._wait(lambda: dist.gather_object(value, box, dst=0, group=self.group))
        return values if self.is_main else []

    def on_main(self, function: Callable[[], T]) -> T:
        """Call a function in the main process, and return its result in all of them.

        Raises:
            ProcessError: It failed; in the main process its own exception is raised.
        """
        if self.count == 1:
            return function()
        if not self.is_main:
            outcome: Any = self.broadcast()
            code, result = outcome
            if code is not None:
                raise ProcessError("The main process failed; its message says why.", code)
            return result
        try:
            result = function()
        except Exception as cause:
            self.broadcast((getattr(cause, "exit_code", 1), None))
            raise
        self.broadcast((None, result))
        return result

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return the items of this process: every ``count``-th, so that equal loads are shared evenly."""
        return items[self.rank :: self.count]

    def wait_for_all(self) -> None:
        """Wait until all processes have come here."""
        self.broadcast(self.gather(None))

    def add_steps(self, number: int) -> int:
        """Count steps of this process, and return those of all.

        Raises:
            ProcessError: Another process has failed or ended.
        """
        steps, sentence = self._ask(lambda: (self.store.add(STEPS, number), self._failure()))
        if sentence is not None:
            raise ProcessError(sentence)
        self._look()
        return steps

    def report(self, sentence: str, is_common: bool = False) -> None:
        """Tell the other processes why this one ends, unless another one has failed before.

        Args:
            is_common: Whether all of them fail alike by themselves. Else the main process waits a moment, until the
                others have read what it prints.
        """
        if self.count == 1:
            return
        with suppress(RuntimeError):  # the process that holds the store has ended
            if not self.store.check([FAILED]):
                self.store.set(FAILED, f"Process {self.rank} of {self.count} failed: {sentence}")
            if self.is_main:
                self.store.set(MAIN, sentence)
                if not is_common:
                    self._has([f"{HEARD}/{rank}" for rank in range(1, self.count)])

    def is_said(self, sentence: str) -> bool:
        """Return whether the main process prints the same sentence, for which another one waits a moment."""
        if self.count == 1:
            return False
        with suppress(RuntimeError):  # the main process has ended
            if self._has([MAIN]):
                said = self.store.get(MAIN).decode()
                self.store.set(f"{HEARD}/{self.rank}", "")
                return said == sentence
        return False

    def _has(self, keys: list[str]) -> bool:
        """Return whether the store has these keys, for which it has a moment."""
        last = time.monotonic() + PATIENCE
        while not (found := self.store.check(keys)) and time.monotonic() < last:
            time.sleep(PAUSE)
        return found

    def failure(self) -> str | None:
        """Return the sentence of the first process that failed, None if none did or nobody can say."""
        with suppress(RuntimeError):
            return None if self.count == 1 else self._failure()
        return None

    def _failure(self) -> str | None:
        return self.store.get(FAILED).decode() if self.store.check([FAILED]) else None

    def _look(self) -> None:
        """Look now and then whether the processes of this machine still run: what is killed closes no counter.

        Raises:
            ProcessError: One does not.
        """
        if time.monotonic() - self.looked < BETWEEN_LOOKS:
            return
        self.looked = time.monotonic()
        for rank, other in self.others.items():
            if other.is_visible() and not other.is_running():
                raise ProcessError(
                    f"Process {rank} of {self.count} ({other}) has ended without a message, as if it were killed; run "
                    "the command again."
                )

    def _ask(self, function: Callable[[], T]) -> T:
        """Return what a function reads from the store, which the main process or its launcher holds.

        Raises:
            SkipditError: That has ended.
        """
        try:
            return function()
        except RuntimeError as cause:
            raise SkipditError(
                f"The main process of this run has ended ({reason(cause)}); run the command again."
            ) from cause

    def _wait(self, function: Callable[[], object]) -> None:
        """Call a function that waits for the other processes.

        Raises:
            ProcessError: One of them has failed or ended.
        """
        try:
            function()
        except RuntimeError as cause:
            sentence = self._ask(self._failure)
            raise ProcessError(
                sentence or f"Another process of this run has ended ({reason(cause)}); run the command again."
            ) from cause


def reason(cause: BaseException) -> str:
    """Return what of an error of torch says why, without its file of C++ and its address."""
    return next((words for words in LOST if words in str(cause)), first_line(cause))
