"""The cases that a bench compares: uncached, cached, the control, and fewer steps at the same cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from skipdit_cli.bench.peers.peer import PeerSetting
from skipdit_cli.cache import CachePolicy
from skipdit_cli.errors import UsageError
from skipdit_cli.planning.flops import StepFlops


@dataclass(frozen=True)
class Case:
    """One way to sample a model.

    Args:
        name: "vanilla", "vanilla-cache" (the boundary cache without skip branches: the control), "skip",
            "skip-cache", "fewer-steps" (vanilla) or "peer" (vanilla with the cache of another library).
        steps: Number of denoising steps.
        policy: The cache, or None without one.
        peer: The cache of another library, or None.
    """

    name: str
    steps: int
    policy: CachePolicy | None = None
    peer: PeerSetting | None = None

    @property
    def has_branches(self) -> bool:
        """Whether the case runs with skip branches."""
        return self.name.startswith("skip")

    @property
    def reference(self) -> str:
        """The name of the uncached case with which this one is compared."""
        return "skip" if self.has_branches else "vanilla"


def make_cases(
    policies: Sequence[CachePolicy],
    steps: int,
    timesteps: Sequence[float],
    vanilla: StepFlops,
    skip: StepFlops | None = None,
    fewest_steps: int = 1,
) -> list[Case]:
    """Return every case of a bench once, in the order of its table.

    Vanilla with fewer steps gets, for each cached run of Skip-DiT (of vanilla, if the model has no branches) whose
    cost is known before it runs, the number of steps that costs the same FLOPs, rounded.

    Args:
        policies: The caches.
        steps, timesteps: Those of the full run; second-order samplers have more timesteps than steps.
        vanilla, skip: Cost of a step without and with skip branches; ``skip`` is None if there are no branches.
        fewest_steps: The fewest steps that make a run.

    Raises:
        UsageError: A policy does not fit the model or the number of steps.
    """
    cases = [Case("vanilla", steps), *(Case("vanilla-cache", steps, policy) for policy in policies)]
    if skip is not None:
        cases += [Case("skip", steps), *(Case("skip-cache", steps, policy) for policy in policies)]
    model = vanilla if skip is None else skip
    step_cost = model.full / vanilla.full
    planned = [policy for policy in policies if policy.threshold is None]
    costs = [steps * step_cost / model.limit(policy.plan(timesteps), policy.layers) for policy in planned]
    fewer = sorted({max(fewest_steps, round(cost)) for cost in costs}, reverse=True)
    return list(dict.fromkeys([*cases, *(Case("fewer-steps", count) for count in fewer if count < steps)]))


def make_policies(
    layers: Sequence[int | tuple[int, int]],
    intervals: Sequence[int],
    full_steps: Sequence[int],
    forecasts: Sequence[str],
    targets: Sequence[str | None],
    thresholds: Sequence[float] = (),
) -> list[CachePolicy]:
    """Return a policy for every combination of N, of K, M or threshold, of forecast and of target.

    Args:
        layers, intervals, full_steps: Values of N or (front, back), of K and of M.
        forecasts, targets, thresholds: As of ``CachePolicy``.

    Raises:
        UsageError: A value is out of range, or there is no N, or no K, M or threshold.
    """
    if not layers or not (intervals or full_steps or thresholds):
        raise UsageError("Got nothing to cache; give --cache-layers and --cache-interval or --full-steps.")
    rules: list[dict[str, Any]] = [*({"interval": k} for k in intervals), *({"full_steps": m} for m in full_steps)]
    rules += [{"threshold": threshold} for threshold in thresholds]
    return [
        CachePolicy(n, forecast=forecast, target=target, **rule)
        for n in layers
        for forecast in forecasts
        for target in targets
        for rule in rules
    ]
