"""The search for the most accurate candidate at a cost: a first look at many, then local search from the best."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

from skipdit_cli.cache import CachePolicy
from skipdit_cli.cache.noise_levels import noise_levels
from skipdit_cli.cache.schedule import mid_dense
from skipdit_cli.errors import SkipditError, UsageError
from skipdit_cli.planning.fit_sampler import MAX_EVALUATIONS, MIN_EVALUATIONS, SamplerFitter
from skipdit_cli.planning.flops import StepFlops
from skipdit_cli.planning.searching.candidate import Candidate, full_steps_within, moved, spread_steps
from skipdit_cli.planning.searching.effort import Effort
from skipdit_cli.planning.searching.evaluate import Evaluator
from skipdit_cli.sampling.schedulers import (
    Sampler,
    follows_flow,
    log_snr_timesteps,
    make_scheduler,
    set_usual_timesteps,
    shifted_timesteps,
)

RATIOS = (1.5, 2.0, 2.5, 3.5)
"""Steps to try for each full forward of the budget."""
ENDS = ((0, 0), (1, 0), (1, 1), (2, 0))
"""Live depths to try."""
FORECASTS = (("linear", "sqrt", 1.0), ("linear", "sqrt", 0.8), ("taylor2", "timestep", 1.0), ("taylor2", "sqrt", 1.0))
"""Forecasts to try: name, axis and damping. The first two are likely where nothing is live, the others elsewhere."""
PLACEMENTS = ((0.8, 1.0), (0.92, 1.0), (0.9, 0.8), (0.75, 1.2))
"""Placements of the full steps to start from, as ``spread_steps`` takes them: the end and the power."""
SHARES = (0.3, 0.12)
"""How far a timestep is moved, as a share of the gap to its neighbour, either way."""
DISTANCES = (1, -1, 2, -2)
"""How far a full step is moved."""

logger = logging.getLogger(__name__)


class Search:
    """Searches candidates of one pipeline by their accuracy.

    Args:
        evaluator: Measures them.
        flops: The cost of a step of the model.
        samplers: The samplers to try.
        num_blocks: L.
        needs_sources: Whether the last blocks need the first ones live (see ``check_depth``).
        effort: How much to try.
        tried: Called after each candidate.
        fitter: Fits samplers to the model, if given.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        flops: StepFlops,
        samplers: Sequence[Sampler],
        num_blocks: int,
        needs_sources: bool = False,
        effort: Effort = Effort(),
        tried: Callable[[], None] | None = None,
        fitter: SamplerFitter | None = None,
    ):
        self.fitter = fitter
        self.evaluator, self.flops, self.samplers, self.effort, self.tried = evaluator, flops, samplers, effort, tried
        self.ends = [
            (front, back) for front, back in ENDS if front + back < num_blocks and not (needs_sources and front < back)
        ]

    def best_at(self, cost: float) -> dict[str, Candidate]:
        """Return the best candidates that cost no more than ``cost`` full forwards: "plan", the best of all;
        "sampler", the best without a cache, at timesteps of its own or even in log SNR; "timesteps", the same at
        searched ones; "cached", the best with a cache; "fitted", a sampler that is fitted to the model, without one.

        Raises:
            UsageError: No candidate is so cheap.
        """
        if cost < 1:
            raise UsageError(f"Got a cost of {cost:g} full forwards but expected 1 or more.")
        plain = self._ranked(Candidate(sampler, int(cost)) for sampler in self.samplers)
        sampler = self._best([*plain[:3], *self._ranked(self._evenly_spaced(int(cost)))[:2]])
        searched = self._move_timesteps(self._explicit(sampler), sampler)
        cached = [self._move_full_steps(start) for start in self._starts(plain, cost)]
        named = {"sampler": sampler, "timesteps": searched}
        if cached:
            named["cached"] = self._improved(self._best(cached))
        if (fitted := self._fitted(int(cost))) is not None:
            named["fitted"] = fitted
        return {"plan": self._best(list(named.values())), **named}

    def _fitted(self, steps: int) -> Candidate | None:
        """Return a sampler that is fitted to the model; None without a fitter, or if none can be fitted: the loop of a
        pipeline may need what only its own scheduler has."""
        if self.fitter is None or not MIN_EVALUATIONS <= steps <= MAX_EVALUATIONS:
            return None
        try:
            return Candidate(self.fitter.search(steps, self.effort.fits, self.tried).sampler, steps)
        except SkipditError as cause:
            logger.warning("No sampler can be fitted to this pipeline, so plans are without one: %s", cause)
            self.fitter = None
            return None

    def _starts(self, plain: Sequence[Candidate], cost: float) -> list[Candidate]:
        """Return the best candidates with a cache, by a first look, no two with the same sampler and live depth."""
        samplers = [candidate.sampler for candidate in plain[: self.effort.samplers]]
        wide = [
            candidate
            for sampler in samplers
            for ratio in RATIOS
            for ends in self.ends[:2]
            for candidate in self._cached(sampler, round(cost * ratio), ends, cost, PLACEMENTS[:1])
        ]
        near = [
            candidate
            for best in self._apart(self._ranked(wide), self.effort.starts + 1)
            for ends in self.ends
            for candidate in self._cached(best.sampler, best.steps, ends, cost, PLACEMENTS)
        ]
        return self._apart(self._ranked([*wide, *near]), self.effort.starts)

    def _cached(
        self,
        sampler: Sampler,
        steps: int,
        ends: tuple[int, int],
        cost: float,
        placements: Iterable[tuple[float, float]],
    ) -> list[Candidate]:
        """Return candidates with a cache of this live depth: likely forecasts, and placements of the full steps, that
        by the noise levels among them."""
        count = full_steps_within(cost, steps, self.flops.reused(ends) / self.flops.full)
        if not 2 <= count < steps:
            return []
        places = [spread_steps(steps, count, end, power) for end, power in placements]
        return [
            Candidate(sampler, steps, CachePolicy(ends, full_steps=full, forecast=name, damping=damping, axis=axis))
            for full in dict.fromkeys([*self._by_noise_levels(sampler, steps, count), *places])
            for name, axis, damping in (FORECASTS[2:] if any(ends) else FORECASTS[:2])
        ]

    def _by_noise_levels(self, sampler: Sampler, steps: int, count: int) -> list[tuple[int, ...]]:
        """Return the full steps that a cache level would choose; none for a sampler that cannot do so many steps."""
        try:
            scheduler = self._scheduler(sampler, steps)
        except (UsageError, ValueError, IndexError):
            return []
        levels = noise_levels(scheduler, [float(t) for t in scheduler.timesteps])
        if levels is None or len(levels) != steps:
            return []
        return [tuple(step for step, is_full in enumerate(mid_dense(steps, count, levels)) if is_full)]

    def _improved(self, candidate: Candidate) -> Candidate:
        """Return the best candidate that local search finds from this one: with another forecast, then with moved full
        steps and timesteps."""
        other = self._best([candidate, *self._other_forecasts(candidate)])
        candidate = candidate if other == candidate else self._move_full_steps(other)
        return self._move_timesteps(self._explicit(candidate), candidate)

    def _other_forecasts(self, candidate: Candidate) -> list[Candidate]:
        policy: Any = candidate.policy
        return [
            replace(candidate, policy=replace(policy, forecast=name, axis=axis, damping=damping))
            for name, axis, damping in FORECASTS
        ]

    def _move_full_steps(self, candidate: Candidate) -> Candidate:
        """Return the best candidate that moving one full step after the other leads to."""
        for _ in range(self.effort.passes):
            before = candidate
            placements = moved(candidate.full_steps, candidate.steps, DISTANCES)
            candidate = self._climb(candidate, [partial(_with_full_steps, full_steps=full) for full in placements])
            if candidate == before:
                break
        return candidate

    def _climb(self, candidate: Candidate, moves: Sequence[Callable[[Candidate], Candidate | None]]) -> Candidate:
        """Return the best candidate that one move after the other leads to, each from the best so far.

        Args:
            moves: Each returns another candidate, or None where there is none.
        """
        for at, move in enumerate(moves):
            if (other := move(candidate)) is not None:
                if not self.evaluator.has_measured(other):  # the moves after it as well, as most lead nowhere
                    ahead = (each(candidate) for each in moves[at : at + self.evaluator.team.count])
                    self.evaluator.look_ahead((each for each in ahead if each is not None), candidate)
                candidate = self._best([candidate, other])
        return candidate

    def _evenly_spaced(self, steps: int) -> list[Candidate]:
        """Return each sampler at fractional timesteps that are even in the log of the signal-to-noise ratio; none for
        a flow, whose samplers have such timesteps of their own."""
        plain = dict.fromkeys(replace(sampler, spacing=None) for sampler in self.samplers)
        candidates = []
        for sampler in plain:
            table = getattr(make_scheduler(sampler, self.evaluator.pipe), "alphas_cumprod", None)
            if table is not None and steps > 1 and not follows_flow(self.evaluator.pipe.scheduler):
                even = replace(sampler, timesteps=tuple(log_snr_timesteps(table, steps)))
                candidates.append(Candidate(even, steps))
        return candidates

    def _explicit(self, candidate: Candidate) -> Candidate:
        """Return a candidate at explicit timesteps that are about its own, from which they can be moved."""
        if candidate.sampler.timesteps is not None:
            return candidate
        scheduler = self._scheduler(candidate.sampler, candidate.steps)
        timesteps, steps = [float(t) for t in scheduler.timesteps], candidate.steps
        if len(timesteps) != steps or any(after >= before for before, after in pairwise(timesteps)):
            table = getattr(scheduler, "alphas_cumprod", None)
            most = scheduler.config.get("num_train_timesteps", 1000)
            timesteps = shifted_timesteps(most, steps) if table is None else log_snr_timesteps(table, steps)
        sampler = replace(candidate.sampler, spacing=None, timesteps=tuple(timesteps))
        return replace(candidate, sampler=sampler)

    def _scheduler(self, sampler: Sampler, steps: int):
        """Return the scheduler of a sampler, with its timesteps set."""
        scheduler = make_scheduler(sampler, self.evaluator.pipe)
        set_usual_timesteps(scheduler, steps)
        return scheduler

    def _move_timesteps(self, candidate: Candidate, start: Candidate | None = None) -> Candidate:
        """Return the best candidate that moving one timestep after the other leads to; ``start`` if that is better."""
        for share in SHARES * (self.effort.passes // 2):
            before = candidate
            places = ((at, by) for at in range(candidate.steps - 1, -1, -1) for by in (share, -share))
            candidate = self._climb(candidate, [partial(_with_timestep, at=at, share=by) for at, by in places])
            if candidate == before and share == SHARES[-1]:
                break
        return candidate if start is None else self._best([start, candidate])

    def _ranked(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Return candidates by a first look, the best first."""
        looks, candidates = {}, dict.fromkeys(candidates)
        self.evaluator.look_ahead(candidates)
        for candidate in candidates:
            looks[candidate] = self.evaluator.first_look(candidate)
            self._count()
        return sorted(looks, key=lambda each: -looks[each])

    def _best(self, candidates: Sequence[Candidate]) -> Candidate:
        """Return the most accurate of some candidates; of equals, the first."""
        best = candidates[0]
        self.evaluator.look_ahead(candidates[1:], best)
        for candidate in candidates[1:]:
            accuracy = self.evaluator.accuracy(candidate, best)
            self._count()
            if accuracy > self.evaluator.accuracy(best):
                best = candidate
        return best

    def _apart(self, candidates: Sequence[Candidate], count: int) -> list[Candidate]:
        """Return the first candidates of a list that differ in sampler, number of steps or live depth."""
        apart: dict[tuple, Candidate] = {}
        for candidate in candidates:
            assert candidate.policy is not None
            apart.setdefault((candidate.sampler, candidate.steps, candidate.policy.layers), candidate)
        return list(apart.values())[:count]

    def _count(self) -> None:
        if self.tried is not None:
            self.tried()


def _with_full_steps(candidate: Candidate, full_steps: tuple[int, ...]) -> Candidate | None:
    """Return a candidate with other full steps, if these are one move away from its own."""
    assert candidate.policy is not None
    is_near = len(set(full_steps) ^ set(candidate.full_steps)) == 2
    return replace(candidate, policy=replace(candidate.policy, full_steps=full_steps)) if is_near else None


def _with_timestep(candidate: Candidate, at: int, share: float) -> Candidate | None:
    """Return a candidate with one timestep moved towards the next (or, below 0, towards the one before it)."""
    timesteps = list(candidate.sampler.timesteps or ())
    neighbour = at + 1 if share > 0 else at - 1
    if not 0 <= neighbour < len(timesteps):
        return None
    timesteps[at] += abs(share) * (timesteps[neighbour] - timesteps[at])
    return replace(candidate, sampler=replace(candidate.sampler, timesteps=tuple(timesteps)))
