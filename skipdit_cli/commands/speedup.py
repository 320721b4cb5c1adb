"""The flags of the probe trigger of ``skipdit sample`` and ``bench``: ``--cache-threshold``, ``--target-speedup``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from skipdit_cli import console
from skipdit_cli.errors import UsageError
from skipdit_cli.sampling.sample_settings import CacheSettings
from skipdit_cli.settings import flag_name

OTHER_RULES = ("cache_threshold", "cache_interval", "cache_window", "full_steps")


def check_compile(compile: bool, threshold: object, speedup: object) -> None:
    """Refuse a threshold for a compiled transformer.

    Args:
        threshold, speedup: Values of the two flags, or None.

    Raises:
        UsageError: One of them and ``--compile`` were given.
    """
    if compile and (threshold, speedup) != (None, None):
        flag = "--cache-threshold" if threshold is not None else "--target-speedup"
        raise UsageError(
            f"Got --compile with {flag}, which decides in the middle of a compiled forward; leave one of the two out."
        )


def check_speedup(speedup: float) -> None:
    """Refuse a target speedup that no run has.

    Raises:
        UsageError: It is not a number above 1.
    """
    if not 1 < speedup < math.inf:
        raise UsageError(f"Got --target-speedup {speedup:g} but expected a number above 1, such as 2.5.")


def check(settings: CacheSettings, compile: bool) -> None:
    """Refuse a target speedup beside another rule for the full steps, or a rule that does not fit the run.

    Raises:
        UsageError: See ``check_compile`` and ``check_speedup``; or there are two rules.
    """
    check_compile(compile, settings.cache_threshold, settings.target_speedup)
    if settings.target_speedup is None:
        return
    check_speedup(settings.target_speedup)
    other = next((name for name in OTHER_RULES if getattr(settings, name) is not None), None)
    if other is not None:
        raise UsageError(f"Got --target-speedup together with {flag_name(other)}; give one of the two.")


def find_thresholds(pipe, policy, speedups: Sequence[float], conditions: list, steps: int, arguments: dict) -> list:
    """Return the policy with the threshold that gives each speedup, and say which it is.

    Args:
        policy: A ``CachePolicy`` with a threshold, which is replaced.
        steps: The number of denoising steps.
        arguments: As for ``generate``.

    Raises:
        UsageError: A speedup cannot be reached.
    """
    from skipdit_cli.planning.first_step import first_step
    from skipdit_cli.planning.flops import StepFlops
    from skipdit_cli.planning.threshold import choose_threshold, measure_changes
    from skipdit_cli.sampling.generate import batches

    alone = arguments.get("image") is not None
    first = conditions[batches(pipe, conditions, arguments.get("batch_size"), alone=alone)[0]]
    arguments = {**arguments, "num_inference_steps": steps}
    with console.progress("calibrate", int(steps * (arguments.get("strength") or 1))) as advance:
        changes = measure_changes(pipe, first, policy, advance, **arguments)
    flops = StepFlops(pipe.transformer, first_step(pipe, first, **{**arguments, "decode": False}).calls)
    policies = []
    for speedup in speedups:
        threshold, reached = choose_threshold(changes, speedup, lambda plan: flops.limit(plan, policy.layers))
        console.say(
            f"--target-speedup {speedup:g} takes --cache-threshold {threshold:g}: {reached:.2f} times fewer FLOPs on "
            "the first batch."
        )
        policies.append(replace(policy, threshold=threshold))
    return policies


def calibrate(pipe, settings, policy, conditions: list, arguments: dict) -> tuple:
    """Return the settings and the policy of a run of ``skipdit sample`` with the threshold in the place of a target
    speedup, so that its record holds the threshold.

    Raises:
        UsageError: The speedup cannot be reached.
    """
    speedup, steps = settings.cache.target_speedup, settings.num_inference_steps
    if speedup is None:
        return settings, policy
    (policy,) = find_thresholds(pipe, policy, [speedup], conditions, steps, arguments)
    cache = replace(settings.cache, cache_threshold=policy.threshold, target_speedup=None)
    return replace(settings, cache=cache), policy


def warn_about(report, policy) -> None:
    """Warn of a threshold that does nothing: one that every step passed, or none."""
    if not report.reused_steps:
        console.warn(
            f"no step was reused: --cache-threshold {policy.threshold:g} was passed in each; give a larger one."
        )
    elif not report.triggered_steps:
        from skipdit_cli.cache.trigger import MOST_REUSED

        console.warn(
            f"--cache-threshold {policy.threshold:g} was passed in no step: only the limit of {MOST_REUSED} reused "
            "steps in a row made steps full; give a smaller one."
        )
