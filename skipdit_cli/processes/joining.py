"""How the processes of one command meet, and how they end with one sentence."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from skipdit_cli.errors import ProcessError, SkipditError, UsageError, first_line
from skipdit_cli.processes.launched import check_device, count, local_rank, rank
from skipdit_cli.processes.team import LOST, Team, reason
from skipdit_cli.processes.writer import this_process

LONGEST_WAIT = timedelta(days=30)
"""How long one process waits for another. One that ends is noticed at once, for its connections close."""

_current = Team()


def join(device: str = "auto") -> Team:
    """Return the team of this command, after meeting its other processes, if there are any.

    Processes that an ``Accelerator`` has brought together are met there; those that have met stay the team.

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

    if _current.count > 1 and torch.distributed.is_initialized():
        return _current
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


def lost_peer(cause: BaseException) -> str | None:
    """Return the sentence for an error of torch that another process has ended; None for any other error."""
    if count() == 1 or not isinstance(cause, RuntimeError) or not any(words in str(cause) for words in LOST):
        return None
    return _current.failure() or (
        f"Another process of this run has ended or does not answer ({reason(cause)}); its message says why. Run the "
        "command again, a training with --resume-from-checkpoint auto."
    )


def end(cause: BaseException, sentence: str) -> bool:
    """Tell the other processes that this one fails, and return whether it prints its sentence.

    The main process always does. Another one does not where the main one says the same: of bad input that both read,
    and of the failure of a third.
    """
    if count() == 1:
        return True
    is_common = getattr(cause, "exit_code", 1) == UsageError.exit_code and not _current.is_apart
    if is_common and local_rank() > 0:  # asks nobody, for the main process may have ended
        return False
    fails_alone = not isinstance(cause, (ProcessError, KeyboardInterrupt)) and sentence != _current.failure()
    if rank() == 0 or fails_alone or isinstance(cause, KeyboardInterrupt):  # Ctrl-C may have reached this one alone
        _current.report(sentence, is_common)
    return rank() == 0 or (fails_alone and not _current.is_said(sentence))
