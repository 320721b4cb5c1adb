"""The choice of a way to sample by its speedup: a plan, a cache level, or a number of full steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from skipdit_cli.cache import CachePolicy
from skipdit_cli.cache.policy import LEVELS
from skipdit_cli.planning.plan import Plan
from skipdit_cli.planning.searching.candidate import CACHE_FLAGS, Candidate, full_steps_within
from skipdit_cli.sampling.schedulers import Sampler

ROUNDING = 1e-6
"""The part of a full forward by which a cost may exceed its budget."""


@dataclass(frozen=True)
class PlanFile:
    """A plan and the file that ``skipdit sample --plan`` reads it from."""

    plan: Plan
    path: str


@dataclass(frozen=True)
class Choice:
    """One way to sample the model.

    Args:
        name: What a reader calls it: "no cache", "cache level balanced", "10 full steps", "plan NAME".
        full: One bool per denoising step, True where the step is full.
        cost: In full forwards.
        flags: The flags of ``skipdit sample`` that select it, beside those of an uncached run.
        plan: The plan that it is, or None.
    """

    name: str
    full: tuple[bool, ...]
    cost: float
    flags: tuple[str, ...] = ()
    plan: Plan | None = None


@dataclass(frozen=True)
class Choices:
    """The ways to sample one model faster than an uncached run of ``len(timesteps)`` steps.

    Args:
        timesteps: The timesteps of the uncached run, in order.
        levels: log(alpha / sigma) at each of them, or None where they are not known.
        plans: The plans for this model.
        has_live_block: Whether the scheduler adds noise, so that a reused step runs the first block.
        share: The cost of such a reused step, in full forwards.
    """

    timesteps: Sequence[float]
    levels: Sequence[float] | None = None
    plans: Sequence[PlanFile] = ()
    has_live_block: bool = False
    share: float = 0.0

    def at(self, speedup: float) -> Choice:
        """Return the best way known to sample for 1 / ``speedup`` of the cost of the uncached run.

        It is the most expensive plan within the budget; without one, the most full steps within the budget, by the
        rule of the cache levels. Where not even one full step fits, the cost is larger than the budget.
        """
        steps = len(self.timesteps)
        budget = steps / speedup + ROUNDING
        count = max(full_steps_within(budget, steps, self.share if self.has_live_block else 0.0), 1)
        if budget >= steps or count >= steps:
            return Choice("no cache", (True,) * steps, float(steps))
        affordable = [each for each in self.plans if _cost(each) <= budget]
        if affordable:
            return _planned(max(affordable, key=_cost))
        return self._by_rule(count)

    def _by_rule(self, count: int) -> Choice:
        """Return the choice of ``count`` full steps, which the rule of the cache levels places."""
        steps = len(self.timesteps)
        policy = CachePolicy.output_forecast(count)
        policy = policy.with_live_block() if self.has_live_block else policy
        full = policy.plan(self.timesteps, self.levels)
        cost = count + (steps - count) * self.share if self.has_live_block else float(count)
        for level in LEVELS:
            if CachePolicy.level(level, steps).full_steps == count:
                return Choice(f"cache level {level}", full, cost, ("--cache", level))
        indices = tuple(step for step, is_full in enumerate(full) if is_full)
        flags = Candidate(Sampler(), steps, replace(policy, full_steps=indices)).flags()
        words = [word for name in CACHE_FLAGS if name in flags for word in (f"--{name}", str(flags[name]))]
        return Choice(f"{count} full step{'s' * (count > 1)}", full, cost, tuple(words))


def _planned(file: PlanFile) -> Choice:
    candidate = file.plan.candidate
    full = set(candidate.full_steps)
    is_full = tuple(step in full for step in range(candidate.steps))
    return Choice(f"plan {file.plan.name}", is_full, _cost(file), ("--plan", file.path), file.plan)


def _cost(file: PlanFile) -> float:
    return float(file.plan.made_for["cost"])
