"""The cases that a bench compares: uncached, cached, the control, baselines, and fewer steps at the same cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from skipdit_cli.bench.flops import StepFlops
from skipdit_cli.cache import CachePolicy
from skipdit_cli.errors import UsageError
from skipdit_cli.sampling.schedulers import Sampler


@dataclass(frozen=True)
class Case:
    """One way to sample a model.

    Args:
        name: "vanilla" and "skip" (uncached), "vanilla-cache" (the boundary cache without skip branches: the control),
            "skip-cache", "uniform" and "paper" (see ``make_baselines``), "fewer-steps" (vanilla), or
            "fewer-steps-best" (vanilla, with the sampler that is closest to the exact solution).
        steps: Number of denoising steps.
        policy: The cache, or None without one.
        sampler: The sampler; None for that of the bench.
        has_branches: Whether the case runs with skip branches.
        label: The schedule, as tables show it; that of the policy if None.
    """

    name: str
    steps: int
    policy: CachePolicy | None = None
    sampler: Sampler | None = None
    has_branches: bool = False
    label: str | None = None

    @property
    def reference(self) -> str:
        """The name of the uncached case with which this one is compared."""
        return "skip" if self.has_branches else "vanilla"

    @property
    def schedule(self) -> str | None:
        """The schedule in a few words; None without a cache."""
        if self.label is not None or self.policy is None:
            return self.label
        return self.policy.describe()


def make_cases(
    policies: Sequence[CachePolicy],
    steps: int,
    timesteps: Sequence[float],
    vanilla: StepFlops,
    skip: StepFlops | None = None,
    fewest_steps: int = 1,
    baselines: bool = False,
) -> list[Case]:
    """Return every case of a bench once, in the order of its table.

    Vanilla with fewer steps gets, for each cached run of Skip-DiT (of vanilla, if the model has no branches), the
    number of steps that costs the same FLOPs, rounded.

    Args:
        policies: The caches.
        steps, timesteps: Those of the full run; second-order samplers have more timesteps than steps.
        vanilla, skip: Cost of a step without and with skip branches; ``skip`` is None if there are no branches.
        fewest_steps: The fewest steps that make a run.
        baselines: Add those of ``make_baselines``.

    Raises:
        UsageError: A policy does not fit the model or the number of steps.
    """
    cases = [Case("vanilla", steps), *(Case("vanilla-cache", steps, policy) for policy in policies)]
    model, has_branches = (vanilla, False) if skip is None else (skip, True)
    if has_branches:
        uncached = Case("skip", steps, has_branches=True)
        cases += [uncached, *(replace(uncached, name="skip-cache", policy=policy) for policy in policies)]
    if baselines:
        cases += make_baselines(policies, steps, timesteps, len(model.units), has_branches)
    step_cost = model.full / vanilla.full
    costs = [steps * step_cost / model.limit(policy.plan(timesteps), policy.layers) for policy in policies]
    fewer = sorted({max(fewest_steps, round(cost)) for cost in costs}, reverse=True)
    return list(dict.fromkeys([*cases, *(Case("fewer-steps", count) for count in fewer if count < steps)]))


def make_baselines(
    policies: Sequence[CachePolicy], steps: int, timesteps: Sequence[float], num_blocks: int, has_branches: bool
) -> list[Case]:
    """Return the caches that tell what a policy gains by its forecast from what it gains by its full steps.

    "uniform" has the depth, the forecast and the number of full steps of a policy that places them by another rule
    than an interval, and spaces them evenly. "paper" is the schedule of Skip-DiT (arXiv 2411.17616): N = 1, K = 2 and
    ``reuse``. Those that a policy equals already are left out.

    Args:
        policies, steps, timesteps: As for ``make_cases``.
        num_blocks: L.
        has_branches: Whether the model has skip branches.
    """
    known = {(_without_schedule(policy), policy.plan(timesteps)) for policy in policies}
    paper = CachePolicy(1, interval=2, forecast="reuse")
    proposals: list[tuple[str, CachePolicy, str | None]] = [("paper", paper, None)] if num_blocks > 2 else []
    for policy in reversed(policies):
        if policy.full_steps is not None:
            plan = policy.plan(timesteps)
            count = sum(plan)
            even = tuple(place * len(plan) // count for place in range(count))
            proposals.insert(0, ("uniform", replace(policy, full_steps=even), f"uniform {count}"))
    cases = []
    for name, policy, label in proposals:
        key = _without_schedule(policy), policy.plan(timesteps)
        if key not in known:
            known.add(key)
            cases.append(Case(name, steps, policy, has_branches=has_branches, label=label))
    return cases


def _without_schedule(policy: CachePolicy) -> CachePolicy:
    """Return a policy whose depth, forecast and target alone differ from those of others."""
    return replace(policy, interval=1, window=None, full_steps=None, target=policy.target_or_default)


def make_policies(
    layers: Sequence[int | tuple[int, int]],
    intervals: Sequence[int],
    full_steps: Sequence[int],
    forecasts: Sequence[str],
    targets: Sequence[str | None],
) -> list[CachePolicy]:
    """Return a policy for every combination of N, of K or M, of forecast and of target.

    Args:
        layers, intervals, full_steps: Values of N or (front, back), of K and of M.
        forecasts, targets: Names, as of ``CachePolicy``.

    Raises:
        UsageError: A value is out of range, or there is no N, or neither K nor M.
    """
    if not layers or not (intervals or full_steps):
        raise UsageError("Got nothing to cache; give --cache-layers and --cache-interval or --full-steps.")
    rules: list[dict[str, Any]] = [*({"interval": k} for k in intervals), *({"full_steps": m} for m in full_steps)]
    return [
        CachePolicy(n, forecast=forecast, target=target, **rule)
        for n in layers
        for forecast in forecasts
        for target in targets
        for rule in rules
    ]
