"""The settings that a checkpoint records, and which of them a resumed run may change."""

from __future__ import annotations

import math
from pathlib import Path

from skipdit_cli.errors import UsageError

FILES = "files"
"""The recorded setting that holds a hash of the names of all samples and of their labels or captions."""
BATCH = ("train_batch_size", "gradient_accumulation_steps", "processes")
"""The recorded settings of which a resumed run has to share the product, the samples of one optimizer step."""
DRAW_SIZE = "draw_size"
"""The recorded number of samples whose random numbers are drawn together, which a resumed run takes over."""
SINCE_CHECKSUMS = ("labels", FILES)
"""Recorded settings that checkpoints of version 0.1.0 do not hold."""


def check_settings(folder: Path, then: dict, now: dict, force: bool = False) -> None:
    """Check that a checkpoint can be resumed from under the settings of a run.

    Args:
        folder: The folder of the checkpoint.
        then: The settings that it records.
        now: The settings of the run that the next checkpoint will record, as JSON holds them.
        force: Whether to accept other settings.
    Raises:
        UsageError: The settings differ.
    """
    for key in BATCH:
        if type(then.get(key)) is not int or not 0 < then[key] < 2**31:
            raise UsageError(f"Checkpoint {folder} records no {key} that a run has; resume from an earlier one.")
    changed = [
        _change(key, then.get(key), now.get(key))
        for key in {**then, **now}
        if then.get(key) != now.get(key)
        and key not in (FILES, DRAW_SIZE, *BATCH)
        and (key in then or key not in SINCE_CHECKSUMS)
    ]
    if samples_of_step(then) != samples_of_step(now):
        changed.append(_change_of_batch(then, now))
    if FILES in then and then[FILES] != now.get(FILES):
        changed.append("other files, labels or captions in --data now")
    if changed and not force:
        raise UsageError(
            f"Checkpoint {folder} was made with other settings ({'; '.join(changed)}); go on with --force-config."
        )


def _change(key: str, then, now) -> str:
    """Describe a setting that differs; of the labels of classes, the first that does."""
    if isinstance(then, dict) and isinstance(now, dict):
        name = next(name for name in {**then, **now} if then.get(name) != now.get(name))
        key, then, now = f"{key}: {name}", then.get(name), now.get(name)
    return f"{key} {then} then, {now} now"


def _change_of_batch(then: dict, now: dict) -> str:
    """Describe another number of samples per optimizer step, and what is allowed."""
    numbers = [f"{' x '.join(str(settings[key]) for key in BATCH)}" for settings in (then, now)]
    return (
        f"{' x '.join(BATCH)} {numbers[0]} then, {numbers[1]} now, of which the product has to stay "
        f"{samples_of_step(then)}"
    )


def samples_of_step(settings: dict) -> int:
    """Return the number of samples in one optimizer step of all processes.

    Args:
        settings: The recorded settings of a run.
    """
    return math.prod(settings[key] for key in BATCH)


def draw_size_of(settings: dict) -> int:
    """Return the number of samples whose random numbers a run draws together.

    Args:
        settings: The recorded settings of the run. Version 0.1.0 did not record this number, which was a micro-batch.
    """
    return settings.get(DRAW_SIZE) or settings["train_batch_size"]
