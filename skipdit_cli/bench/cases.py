"""Which cases a bench compares: uncached, cached, the control, and fewer steps for the same work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from skipdit_cli.bench.flops import StepFlops
from skipdit_cli.cache import CachePolicy
from skipdit_cli.errors import UsageError


@dataclass(frozen=True)
class Case:
    """One way of sampling.

    Args:
        name: "vanilla", "vanilla-cache" (the boundary cache without skip branches: the control), "skip",
            "skip-cache" or "fewer-steps" (vanilla).
        steps: Denoising steps.
        policy: The cache; None without.
    """

    name: str
    steps: int
    policy: CachePolicy | None = None

    @property
    def has_branches(self) -> bool:
        return self.name.startswith("skip")

    @property
    def reference(self) -> str:
        """The uncached case that this one is judged against."""
        return "skip" if self.has_branches else "vanilla"


def make_cases(
    policies: Sequence[CachePolicy],
    steps: int,
    timesteps: Sequence[float],
    vanilla: StepFlops,
    skip: StepFlops | None = None,
    least: int = 1,
) -> list[Case]:
    """Every case of a bench, each once, in the order of its table.

    Vanilla with fewer steps takes as many steps as cost the FLOPs of each Skip-DiT cached run (each cached vanilla
    run where the model has no branches), rounded.

    Args:
        steps, timesteps: Those of the full run (second-order samplers visit more timesteps than steps).
        least: So few steps are still a run.
        vanilla, skip: Cost of a step without and with skip branches; ``skip`` None where there are none.
    Raises:
        UsageError: A policy does not fit the model or the number of steps.
    """
    cases = [Case("vanilla", steps), *(Case("vanilla-cache", steps, policy) for policy in policies)]
    if skip is not None:
        cases += [Case("skip", steps), *(Case("skip-cache", steps, policy) for policy in policies)]
    model = vanilla if skip is None else skip
    a_step = model.full / vanilla.full
    cost = [steps * a_step / model.limit(policy.plan(timesteps), policy.layers) for policy in policies]
    fewer = sorted({max(least, round(count)) for count in cost}, reverse=True)
    return list(dict.fromkeys([*cases, *(Case("fewer-steps", count) for count in fewer if count < steps)]))


def make_policies(
    layers: Sequence[int],
    intervals: Sequence[int],
    full_steps: Sequence[int],
    forecasts: Sequence[str],
    targets: Sequence[str],
) -> list[CachePolicy]:
    """Every combination of N, of K or M, of forecast and of target.

    Raises:
        UsageError: A value is out of range, or there is no N, K or M at all.
    """
    if not layers or not (intervals or full_steps):
        raise UsageError("Got nothing to cache; give --cache-layers and --cache-interval or --full-steps.")
    rules = [*({"interval": k} for k in intervals), *({"full_steps": m} for m in full_steps)]
    return [
        CachePolicy(n, forecast=forecast, target=target, **rule)
        for n in layers
        for forecast in forecasts
        for target in targets
        for rule in rules
    ]
