"""The processes that ``accelerate launch`` or ``torchrun`` starts for one command, and how they work together.

They exchange Python objects, a counter of steps and the sentence of a process that fails, over gloo on the CPU
whatever the device.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from skipdit_cli.errors import ProcessError, SkipditError, UsageError, first_line

T = TypeVar("T")
LONGEST_WAIT = timedelta(days=30)
"""How long one process waits for another. One that ends is noticed at once, for its connections close."""
FAILED, STEPS = "skipdit/failed", "skipdit/steps"
"""Keys of the store: the sentence of a process that failed, and the steps of all processes."""

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

    def add_steps(self, number: int) -> int:
        """Count steps of this process, and return those of all.

        Raises:
            ProcessError: Another process has failed or ended.
        """
        steps, sentence = self._ask(lambda: (self.store.add(STEPS, number), self._failure()))
        if sentence is not None:
            raise ProcessError(sentence)
        return steps

    def report(self, sentence: str) -> None:
        """Tell the other processes why this one ends, unless another one has failed before."""
        if self.count > 1:
            try:
                if not self.store.check([FAILED]):
                    self.store.set(FAILED, f"Process {self.rank} of {self.count} failed: {sentence}")
            except RuntimeError:  # the process that holds the store has ended
                pass

    def _failure(self) -> str | None:
        return self.store.get(FAILED).decode() if self.store.check([FAILED]) else None

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
    except RuntimeError as cause:
        raise SkipditError(f"The {team.count} processes of this run cannot meet: {first_line(cause)}.") from cause
    _current = team
    return team


def leave() -> None:
    """Leave the team, if this process has joined one."""
    global _current
    if _current.count > 1:
        import torch

        _current = Team()
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
    return (
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
    is_told = isinstance(cause, (ProcessError, KeyboardInterrupt))
    is_bad_input = getattr(cause, "exit_code", 1) == UsageError.exit_code
    fails_alone = not is_told and (_current.is_apart or not is_bad_input or local_rank() == 0)
    if fails_alone or isinstance(cause, KeyboardInterrupt):  # Ctrl-C may have reached this process alone
        _current.report(sentence)
    return fails_alone or rank() == 0
