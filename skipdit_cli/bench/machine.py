"""The load of the machine during a bench, and what it does to the measured times."""

from __future__ import annotations

import os
from collections.abc import Sequence

import psutil

OF_IT = (0.85, 1.15)
"""The range of ``measured_over_limit`` outside of which a time says more of the machine than of the schedule."""
DOUBT = 1.5
"""The factor by which a disturbed machine may change a speedup."""


def load_average() -> float:
    """Return the number of processes that want to run, averaged over the last minute."""
    return psutil.getloadavg()[0]


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_warnings(rows: Sequence[dict], loads: Sequence[float], cores: int | None = None) -> list[str]:
    """Return one sentence for each sign that the times of a bench are not to be trusted.

    Args:
        rows: Rows of ``bench --json``.
        loads: Load averages, before and after the rounds.
        cores: The cores that the bench may use; those of this process if None.
    """
    warnings = []
    cores = cores or count_cores()
    if max(loads) > cores:
        word = "core" if cores == 1 else "cores"
        warnings.append(
            f"The load average was up to {max(loads):.1f} on {cores} {word}: other processes ran, and the times are "
            "not those of an idle machine."
        )
    ours = [row["measured_over_limit"] for row in rows if not row.get("peer")]
    ratios = [ratio for ratio in ours if ratio is not None]
    outside = [ratio for ratio in ratios if not OF_IT[0] <= ratio <= OF_IT[1]]
    if outside:
        span = f"{min(outside):.2f}" + (f" to {max(outside):.2f}" if len(outside) > 1 else "")
        verb = "lies" if len(outside) == 1 else "lie"
        warnings.append(
            f"Measured speedup over limit ('of it') of {len(outside)} of {len(ratios)} rows {verb} outside "
            f"{OF_IT[0]:g} to {OF_IT[1]:g} ({span}): other work on the machine, or the overhead of a small model, "
            "disturbs the times."
        )
    return warnings


def is_in_doubt(speedup: float, limit: float, minimum: float) -> bool:
    """Return whether a disturbed measurement cannot tell if a speedup reaches a minimum.

    Args:
        speedup, limit: Those of the fastest row.
        minimum: The speedup that is required.
    """
    return minimum <= DOUBT * max(speedup, limit) and not (speedup >= DOUBT * minimum and limit >= minimum)
