"""The cases that a bench compares: uncached, cached, the control, baselines, and fewer steps at the same cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from skipdit_cli.bench.peers.peer import PeerSetting
from skipdit_cli.cache import CachePolicy
from skipdit_cli.errors import UsageError
from skipdit_cli.planning.flops import StepFlops
from skipdit_cli.sampling.schedulers import Sampler


@dataclass(frozen=True)
class Case:
    """One way to sample a model.

    Args:
        name: "vanilla" and "skip" (uncached), "vanilla-cache" (the boundary cache without skip branches: the control),
            "skip-cache", "uniform" and "paper" (see ``make_baselines``), "fewer-steps" (vanilla), "fewer-steps-best"
            (vanilla, with the sampler that is closest to the exact solution), "plan" (of ``skipdit calibrate``), or
            "peer" (vanilla with the cache of another library).
        steps: Number of denoising steps.
        policy: The cache, or None without one.
        peer: The cache of another library, or None.
        sampler: The sampler; None for that of the bench.
        has_branches: Whether the case runs with skip branches.
        label: The schedule, as tables show it; that of the policy if None.
    """

    name: str
    steps: int
    policy: CachePolicy | None = None
    peer: PeerSetting | None = None
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
    model, has_branches = (vanilla, False) if skip is None else (skip, True)
    if has_branches:
        uncached = Case("skip", steps, has_branches=True)
        cases += [uncached, *(replace(uncached, name="skip-cache", policy=policy) for policy in policies)]
    step_cost = model.full / vanilla.full
    planned = [policy for policy in policies if policy.threshold is None]
    costs = [steps * step_cost / model.limit(policy.plan(timesteps), policy.layers) for policy in planned]
    fewer = sorted({max(fewest_steps, round(cost)) for cost in costs}, reverse=True)
    return list(dict.fromkeys([*cases, *(Case("fewer-steps", count) for count in fewer if count < steps)]))


def make_baselines(cached: Sequence[Case], timesteps: Sequence[float], num_blocks: int) -> list[Case]:
    """Return the caches that tell what a policy gains by its forecast from what it gains by its full steps.

    "uniform" has the depth, the forecast and the number of full steps of a policy that places them by another rule
    than an interval, and spaces them evenly. "paper" is the schedule of Skip-DiT (arXiv 2411.17616): N = 1, K = 2 and
    ``reuse``. Those that a cached case equals already are left out.

    Args:
        cached: The cases of one model with a cache.
        timesteps: Those of its full run.
        num_blocks: L.
    """
    known = {_identity(case, timesteps) for case in cached}
    proposals = []
    for case in cached:
        policy = case.policy
        if policy is not None and policy.full_steps is not None:
            plan = policy.plan(timesteps)
            even = tuple(place * len(plan) // sum(plan) for place in range(sum(plan)))
            policy = replace(policy, full_steps=even, placement="late-dense")
            proposals.append(replace(case, name="uniform", policy=policy, label=f"uniform {sum(plan)}"))
    if cached and num_blocks > 2:
        paper = CachePolicy(1, interval=2, forecast="reuse")
        proposals.append(replace(cached[0], name="paper", policy=paper, label=None))
    cases = []
    for case in proposals:
        if _identity(case, timesteps) not in known:
            known.add(_identity(case, timesteps))
            cases.append(case)
    return cases


def _identity(case: Case, timesteps: Sequence[float]) -> tuple:
    """Return what two cases that do the same have in common."""
    policy: Any = case.policy  # of a cached case
    schedule: dict[str, Any] = {"interval": 1, "window": None, "full_steps": None, "threshold": None}
    settings = replace(policy, **schedule, placement="late-dense", steps=None, target=policy.target_or_default)
    return case.sampler, settings, policy.plan(timesteps)


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
