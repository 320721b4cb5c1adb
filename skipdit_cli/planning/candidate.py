"""Candidates of a search: a sampler, its number of steps, and a cache or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from skipdit_cli.cache import CachePolicy
from skipdit_cli.cache.policy import write_layers
from skipdit_cli.formats import to_json
from skipdit_cli.planning.flops import StepFlops
from skipdit_cli.sampling.schedulers import Sampler


@dataclass(frozen=True)
class Candidate:
    """One way to sample a model.

    Args:
        sampler: The scheduler and its timesteps.
        steps: The number of denoising steps.
        policy: The cache, whose ``full_steps`` are a tuple of step indices; None without a cache.
    """

    sampler: Sampler
    steps: int
    policy: CachePolicy | None = None

    @property
    def full_steps(self) -> tuple[int, ...]:
        """The indices of the full steps: all of them without a cache."""
        full: Any = range(self.steps) if self.policy is None else self.policy.full_steps
        return tuple(full)

    def cost(self, flops: StepFlops) -> float:
        """Return the cost of a run in full forwards: 1 for a full step, and its share for a reused one."""
        if self.policy is None:
            return float(self.steps)
        full = set(self.full_steps)
        return flops.cost([step in full for step in range(self.steps)], self.policy.layers)

    def describe(self) -> str:
        """Return the candidate in a few words, as tables show it."""
        text = f"{self.sampler.describe()}, {self.steps} steps"
        if self.policy is None:
            return text
        damping = "" if self.policy.damping == 1 else f" damped by {self.policy.damping:g}"
        axis = "" if self.policy.axis == "timestep" else f" over {self.policy.axis} t"
        forecast = f"{self.policy.forecast}{axis}{damping} of the {self.policy.target_or_default}"
        layers = write_layers(self.policy.layers)  # type: ignore[arg-type]  # both ends, since it was checked
        return f"{text}, {len(self.full_steps)} full, {layers} live, {forecast}"

    def flags(self) -> dict[str, str | list[str]]:
        """Return the flags of ``sample`` that make it, without dashes, as in a preset."""
        flags: dict[str, str | list[str]] = dict(self.sampler.flags())
        flags["num-inference-steps"] = str(self.steps)
        if self.policy is not None:
            flags["cache-layers"] = write_layers(self.policy.layers)  # type: ignore[arg-type]  # as in describe
            flags["full-steps"] = ",".join(map(str, self.full_steps)) + ("," if len(self.full_steps) == 1 else "")
            flags["forecast"] = self.policy.forecast
            flags["cache-target"] = self.policy.target_or_default
            if self.policy.axis != "timestep":
                flags["forecast-axis"] = self.policy.axis
            if self.policy.damping != 1:
                flags["forecast-damping"] = f"{self.policy.damping:g}"
        return flags

    def key(self) -> str:
        """Return a text that no other candidate has."""
        return to_json(self.flags())


def full_steps_within(cost: float, steps: int, share: float) -> int:
    """Return the most full steps of a run that costs no more than ``cost`` full forwards.

    Args:
        cost: In full forwards.
        steps: The number of denoising steps.
        share: The cost of a reused step, in full forwards.
    """
    return min(steps, int((cost - steps * share) / (1 - share) + 1e-9))


def spread_steps(steps: int, count: int, end: float = 1.0, power: float = 1.0) -> tuple[int, ...]:
    """Return ``count`` full steps over the first ``end`` of the way, from the first step on.

    Args:
        steps: The number of denoising steps.
        count: From 1 to ``steps``.
        end: Where the last of them lies, as a share of the way.
        power: 1 spaces them evenly; above 1 they are dense early, below 1 late.
    """
    last = max(round((steps - 1) * end), count - 1)
    places = [round(last * (at / max(count - 1, 1)) ** power) for at in range(count)]
    for at in range(1, count):  # rounding may put two on one step
        places[at] = max(places[at], places[at - 1] + 1)
    for at in range(count - 2, -1, -1):
        places[at] = min(places[at], places[at + 1] - 1) if places[at + 1] > last else places[at]
    return tuple(min(place, steps - 1) for place in places)


def moved(places: Sequence[int], steps: int, distances: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the full steps that one move leads to: each but the first, shifted by each distance to a free step.

    The last ones come first: what lies before a moved step need not be sampled again.
    """
    moves = []
    for at in range(len(places) - 1, 0, -1):
        for distance in distances:
            place = places[at] + distance
            if 0 < place < steps and place not in places:
                moves.append(tuple(sorted({*places[:at], place, *places[at + 1 :]})))
    return list(dict.fromkeys(moves))
