"""The threshold of the probe trigger that gives a speedup, from the changes in one short calibration run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from skipdit_cli.cache import CachePolicy
from skipdit_cli.cache.trigger import LARGEST_THRESHOLD, simulate
from skipdit_cli.errors import UsageError
from skipdit_cli.families.pipeline_parts import transformers_of
from skipdit_cli.sampling.generate import generate
from skipdit_cli.trunk import known_trunk

ROUNDS = 40
"""Halvings of the search, which ends at neighbouring thresholds."""
DIGITS = 4
"""Significant digits of a threshold that is chosen, which a record holds."""

Changes = Sequence[torch.Tensor | None]


def measure_changes(
    pipe,
    conditions: Sequence[int | str | None],
    policy: CachePolicy,
    advance: Callable[[], None] | None = None,
    **settings: Any,
) -> list[Changes]:
    """Return the changes of the shallow output in each step of one batch, for each transformer that runs.

    That run reuses as many steps as a threshold ever allows, so it costs a fraction of an uncached one, and the
    changes hardly differ from those of any other run.

    Args:
        pipe, conditions: As for ``generate``; the conditions of one batch.
        policy: The cache, whose threshold is not used.
        advance: Called after each denoising step.
        settings: As for ``generate``.

    Raises:
        UsageError: As for ``generate``.
    """
    changes: list[Changes] = []

    def follow() -> None:
        caches: list[Any] = [trunk.cache for trunk in map(known_trunk, transformers_of(pipe).values()) if trunk]
        changes[:] = [list(cache.changes) for cache in caches if cache is not None]
        if advance is not None:
            advance()

    settings |= {"policy": replace(policy, threshold=LARGEST_THRESHOLD), "decode": False, "advance": follow}
    generate(pipe, conditions, **settings)
    return [each for each in changes if each]


def choose_threshold(
    changes: Sequence[Changes], speedup: float, limit_of: Callable[[Sequence[bool]], float]
) -> tuple[float, float]:
    """Return the smallest threshold whose run is at least so many times as fast, and its speedup.

    Args:
        changes: As of ``measure_changes``.
        speedup: The FLOPs of the uncached run over those of the cached one.
        limit_of: Returns that speedup for one bool per step, True where it is full.

    Raises:
        UsageError: No threshold reaches the speedup.
    """

    def reached(threshold: float) -> float:
        return limit_of([full for each in changes for full in simulate(each, threshold)])

    most = reached(LARGEST_THRESHOLD)
    if not 1 < speedup <= most:
        raise UsageError(
            f"Got --target-speedup {speedup:g} but expected more than 1 and at most {_floor(most):g}, which the live "
            "blocks and the limit of reused steps in a row allow here; give fewer --cache-layers, or --full-steps."
        )
    low, high = 0.0, LARGEST_THRESHOLD
    for _ in range(ROUNDS):
        middle = (low * high) ** 0.5 if low else high / 1e3
        low, high = (low, middle) if reached(middle) >= speedup else (middle, high)
    while reached(threshold := float(f"{high:.{DIGITS}g}")) < speedup:  # rounded down
        high *= 1 + 10.0**-DIGITS
    return threshold, reached(threshold)


def _floor(number: float) -> float:
    return int(number * 100) / 100
