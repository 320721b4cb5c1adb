"""The processes that ``accelerate launch`` or ``torchrun`` starts for one command, and how they work together.

They exchange Python objects, a counter of steps and the sentence of a process that fails, over gloo on the CPU
whatever the device.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

from skipdit_cli.errors import ProcessError, SkipditError, UsageError, first_line
from skipdit_cli.writer import Writer, this_process

T = TypeVar("T")
LONGEST_WAIT = timedelta(days=30)
"""How long one process waits for another. One that ends is noticed at once, for its connections close."""
PATIENCE, PAUSE = 2.0, 0.05
"""Seconds that processes which fail wait for each other, so that one prints what all would say, and between looks."""
BETWEEN_LOOKS = 1.0
"""Seconds after which a process looks again whether the others still run."""
FAILED, MAIN, HEARD, STEPS = "skipdit/failed", "skipdit/main", "skipdit/heard", "skipdit/steps"
"""Keys of the store: the sentence of the first process that failed, the one that the main process prints, the
processes that have read it, and the steps of all processes."""

LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited", "Timed out")
"""What torch's errors say, among much else, where another process has ended or does not answer."""


def count() -> int:
    """Return the number of processes that a launcher has started for this command; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """Return the index of this process among all; the main process has 0."""
    return int(os.environ.get("RANK") or 0) if count() > 1 else 0


def local_rank() -> int:
    """Return the index of this process on its machine, which is that of its device."""
    return int(os.environ.get("LOCAL_RANK") or 0) if count() > 1 else 0


def check_alone(command: str) -> None:
    """Refuse several processes for a command that runs in one.

    Args:
        command: Its name.

    Raises:
        UsageError: A launcher has started several.
    """
    if count() > 1:
        raise UsageError(
            f"Got {count()} processes, but 'skipdit {command}' runs in one; run it without accelerate launch or "
            "torchrun."
        )


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

    def share(self, items: list[T]) -> list[T]:
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
            if self.is_main and not is_common:
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
                f"The main process of this run has ended ({_reason(cause)}); run the command again."
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
                sentence or f"Another process of this run has ended ({_reason(cause)}); run the command again."
            ) from cause


_current = Team()


def join(device: str = "auto") -> Team:
    """Return the team of this command, after meeting its other processes, if there are any.

    Processes that an ``Accelerator`` has brought together already are met there.

    Args:
        device: The value of ``--device``.

    Raises:
        UsageError: ``device`` names one of several devices, or this machine has fewer of them than processes.
        SkipditError: The processes cannot meet.
    """
    global _current
    if count() == 1:
        return Team()
    check_device(device)
    import torch
    from accelerate import PartialState

    team = Team(rank(), count())
    try:
        PartialState(cpu=device == "cpu" or not torch.accelerator.is_available())
        team.group = torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
        team.store = torch.distributed.distributed_c10d._get_default_store()
        all_of_them: list[Any] = [None] * team.count
        torch.distributed.all_gather_object(all_of_them, this_process(), group=team.group)
    except RuntimeError as cause:
        raise SkipditError(f"The {team.count} processes of this run cannot meet: {first_line(cause)}.") from cause
    team.others = {index: other for index, other in enumerate(all_of_them) if index != team.rank}
    _current = team
    return team


def leave() -> None:
    """Leave the team, if this process has joined one."""
    global _current
    if _current.count > 1:
        import torch

        _current = Team()
        if torch.distributed.is_initialized():  # accelerate may have ended the group with a training
            torch.distributed.destroy_process_group()


def check_device(device: str) -> None:
    """Refuse one device for several processes, and fewer devices than processes.

    Args:
        device: The value of ``--device``.

    Raises:
        UsageError: They do not fit.
    """
    if ":" in device:
        raise UsageError(
            f"Got --device {device} with {count()} processes, each of which takes a device of its own; leave --device "
            "out."
        )
    import torch

    local, devices = int(os.environ.get("LOCAL_WORLD_SIZE") or 1), torch.cuda.device_count()
    if device != "cpu" and 0 < devices < local:
        raise UsageError(
            f"Got {local} processes on a machine with {devices} CUDA device{'s' * (devices > 1)}; start one for each "
            f"of them (--nproc_per_node {devices})."
        )


def lost_peer(cause: BaseException) -> str | None:
    """Return the sentence for an error of torch that another process has ended; None for any other error."""
    if count() == 1 or not isinstance(cause, RuntimeError) or not any(words in str(cause) for words in LOST):
        return None
    return _current.failure() or (
        f"Another process of this run has ended or does not answer ({_reason(cause)}); its message says why. Run the "
        "command again, a training with --resume-from-checkpoint auto."
    )


def _reason(cause: BaseException) -> str:
    """Return what of an error of torch says why, without its file of C++ and its address."""
    return next((words for words in LOST if words in str(cause)), first_line(cause))


def end(cause: BaseException, sentence: str) -> bool:
    """Tell the other processes that this one fails, and return whether it prints its sentence.

    The main process always does. Another one does not where the main one says the same: of bad input that both read,
    and of the failure of a third.
    """
    if count() == 1:
        return True
    is_told = isinstance(cause, (ProcessError, KeyboardInterrupt)) or sentence == _current.failure()
    is_common = getattr(cause, "exit_code", 1) == UsageError.exit_code and not _current.is_apart
    fails_alone = not is_told and (not is_common or local_rank() == 0)
    if rank() == 0 or fails_alone or isinstance(cause, KeyboardInterrupt):  # Ctrl-C may have reached this one alone
        _current.report(sentence, is_common)
    return rank() == 0 or (fails_alone and not _current.is_said(sentence))
