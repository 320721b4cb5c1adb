"""Candidates of a search: a sampler, its number of steps, and a cache or none."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from skipdit_cli.cache import CachePolicy
from skipdit_cli.cache.policy import write_layers
from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.formats import check_values, parse_yaml, to_json
from skipdit_cli.planning.flops import StepFlops
from skipdit_cli.sampling.schedulers import Sampler, check_name

SAMPLER_FLAGS = ("scheduler", "scheduler-spacing", "scheduler-arg", "timesteps")
CACHE_FLAGS = ("cache-layers", "full-steps", "forecast", "cache-target", "forecast-axis", "forecast-damping")
FLAGS = (*SAMPLER_FLAGS, "num-inference-steps", *CACHE_FLAGS, "guidance-scale")
"""The flags of ``sample`` that make a candidate, and the guidance scale that it was measured with."""


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
        """Return a text that no other candidate has, wherever the file of its output branch lies."""
        arguments = {name: value for name, value in self.sampler.arguments.items() if name != "output_branch"}
        return to_json(replace(self, sampler=replace(self.sampler, arguments=arguments)).flags())


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
    places[-1] = min(places[-1], last)
    for at in range(count - 2, -1, -1):
        places[at] = min(places[at], places[at + 1] - 1)
    return tuple(places)


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


def candidate_of(flags: Mapping[str, Any], name: str) -> Candidate:
    """Return the candidate that flags of ``sample`` make, the inverse of ``Candidate.flags``.

    Args:
        flags: Each without dashes; the guidance scale may be among them. Other spellings of them are refused.
        name: What holds them, for messages.

    Raises:
        UsageError: A flag is unknown, malformed, or does not fit the others.
    """
    for flag, value in flags.items():
        if flag not in FLAGS:
            raise UsageError(f"{name} sets 'sample: {flag}', which no plan does.{nearest(flag, FLAGS)}")
        if isinstance(value, list) != (flag == "scheduler-arg"):
            raise UsageError(f"{name} has 'sample: {flag}: {value}' but expected {_expected(flag)}.")
    try:
        return _candidate(flags, name)
    except UsageError as cause:
        if str(cause).startswith(name):
            raise
        raise UsageError(f"{name} cannot be used: {cause}") from cause


def _candidate(flags: Mapping[str, Any], name: str) -> Candidate:
    check_name(flags.get("scheduler"))
    timesteps = flags.get("timesteps")
    sampler = Sampler(
        flags.get("scheduler"),
        flags.get("scheduler-spacing"),
        _arguments(flags.get("scheduler-arg", []), name),
        None if timesteps is None else _numbers(timesteps, float, "timesteps", name),
    )
    (steps,) = _numbers(flags.get("num-inference-steps", ""), int, "num-inference-steps", name, count=1)
    if steps < 1:
        raise UsageError(f"{name} has 'num-inference-steps: {steps}' but expected 1 or more.")
    if sampler.timesteps is not None and len(sampler.timesteps) != steps:
        raise UsageError(
            f"{name} has 'num-inference-steps: {steps}' and {len(sampler.timesteps)} timesteps; correct one of them."
        )
    return Candidate(sampler, steps, _policy(flags, steps, name))


def _policy(flags: Mapping[str, Any], steps: int, name: str) -> CachePolicy | None:
    stray = [flag for flag in CACHE_FLAGS if flag in flags]
    if not stray:
        return None
    for flag in ("cache-layers", "full-steps"):
        if flag not in flags:
            raise UsageError(f"{name} has '{stray[0]}' without '{flag}'; a cache needs both.")
    full = _numbers(flags["full-steps"].removesuffix(","), int, "full-steps", name)
    if (
        "," not in flags["full-steps"]
        or full[0] != 0
        or any(after <= before for before, after in itertools.pairwise(full))
    ):
        raise UsageError(f"{name} has 'full-steps: {flags['full-steps']}' but expected ascending steps from 0.")
    if full[-1] >= steps:
        raise UsageError(f"{name} has the full step {full[-1]}, but its {steps} steps end with {steps - 1}.")
    layers = _numbers(flags["cache-layers"].replace(":", ","), int, "cache-layers", name)
    (damping,) = _numbers(flags.get("forecast-damping", "1"), float, "forecast-damping", name, count=1)
    return CachePolicy(
        layers[0] if len(layers) == 1 else layers,
        full_steps=full,
        forecast=flags.get("forecast", "taylor2"),
        target=flags.get("cache-target"),
        damping=damping,
        axis=flags.get("forecast-axis", "timestep"),
    )


def _numbers(text: str, kind: type, flag: str, name: str, count: int | None = None) -> tuple:
    """Return the numbers in the text of a flag, of which there is one at least, or ``count``."""
    try:
        numbers = tuple(kind(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or count not in (None, len(numbers)) or not all(map(math.isfinite, numbers)):
        raise UsageError(f"{name} has 'sample: {flag}: {text[:60]}' but expected {_expected(flag)}.")
    return numbers


def _expected(flag: str) -> str:
    expected = {"scheduler-arg": "a list of KEY=VALUE", "num-inference-steps": "a whole number"}
    expected |= {"full-steps": "the indices of steps", "timesteps": "numbers", "cache-layers": "N, or FRONT:BACK"}
    return expected.get(flag, "one value")


def _arguments(texts: Sequence[str], name: str) -> dict[str, object]:
    arguments = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier() or key in arguments:
            raise UsageError(f"{name} has 'sample: scheduler-arg: {text[:60]}' but expected KEY=VALUE, each key once.")
        arguments[key] = parse_yaml(value, f"{name}: scheduler-arg {key}")
        check_values(arguments[key], f"{name}: scheduler-arg {key}")
    return arguments
