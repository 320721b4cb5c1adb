"""The processes that ``accelerate launch`` or ``torchrun`` has started for one command, by its environment."""

from __future__ import annotations

import os
import sys

from skipdit_cli.errors import UsageError


def count() -> int:
    """Return the number of processes that a launcher has started for this command; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """Return the index of this process among all; the main process has 0."""
    return int(os.environ.get("RANK") or 0) if count() > 1 else 0


def local_rank() -> int:
    """Return the index of this process on its machine, which is that of its device."""
    return int(os.environ.get("LOCAL_RANK") or 0) if count() > 1 else 0


def claim_stdout() -> None:
    """Keep stdout for what Python prints: what libraries in C++ write there, as Gloo of torch 2.8 does when processes
    meet, goes to stderr and cannot break the output of ``--json``."""
    if sys.stdout is None or sys.stderr is None:  # closed
        return
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(ours, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)


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
