"""The accuracy of candidates: each is sampled from the same noise as the exact solution, and compared with it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np

from skipdit_cli.errors import SkipditError
from skipdit_cli.planning.accuracy import each_accuracy_db
from skipdit_cli.planning.exact import Exact, solve_exactly
from skipdit_cli.planning.searching.candidate import Candidate
from skipdit_cli.planning.searching.prefixes import SharedPrefixes
from skipdit_cli.processes import Team
from skipdit_cli.sampling.generate import Generated, generate
from skipdit_cli.sampling.memory.halving import noted_in

WORST_DB = -99.0
"""Stands for a candidate that cannot run, or whose samples are not finite."""
BEST_DB = 150.0
"""Stands for a sample that equals the exact one: no float32 samples that differ are closer."""
LEAD_DB = 1.0
"""A candidate that is this far behind on the first samples is not sampled on the others."""


class Evaluator:
    """Measures candidates on some samples of one pipeline, by the accuracy of their final samples.

    Args:
        pipe: The pipeline.
        conditions: One per sample, as for ``generate``.
        seed: Sample i starts from noise of the seed ``seed + i``.
        accuracy_db: How well the exact solution is to converge, see ``solve_exactly``.
        first: The number of samples that a first look takes; the others follow where it is promising.
        decode: Compare decoded images, and not latents.
        known: Results of an earlier run, from the key of a candidate to the accuracy of its samples; new ones are
            added.
        exact: The exact solution, where another process has solved it; it is solved here if None.
        team: The processes that measure candidates together (see ``look_ahead``).
        settings: The settings of ``generate`` that all candidates share.

    Attributes:
        exact: The exact solution of all samples.
        results: Candidate's key to the accuracy in dB of each sample so far: of the first ones, or of all.
    """

    def __init__(
        self,
        pipe,
        conditions: Sequence[int | str | None],
        seed: int,
        *,
        accuracy_db: float = 60.0,
        first: int = 8,
        decode: bool = False,
        known: dict[str, list[float]] | None = None,
        exact: Exact | None = None,
        team: Team = Team(),
        **settings: Any,
    ):
        self.team = team
        self.pipe, self.conditions, self.seed, self.settings = pipe, list(conditions), seed, settings
        self.first, self.results = min(first, len(self.conditions)), {} if known is None else known
        self.decode = decode
        self.exact: Exact = exact or solve_exactly(
            pipe, self.conditions, accuracy_db=accuracy_db, seed=seed, decode=decode, **settings
        )
        self.prefixes = SharedPrefixes(pipe)

    def close(self) -> None:
        """Give the pipeline back as it was."""
        self.prefixes.close()

    def first_look(self, candidate: Candidate) -> float:
        """Return the accuracy in dB on the first samples, their mean."""
        return fmean(self._measure(candidate, self.first)[: self.first])

    def accuracy(self, candidate: Candidate, best: Candidate | None = None) -> float:
        """Return the accuracy in dB on all samples, their mean.

        Args:
            best: The best candidate so far. One that is far behind it on the first samples is not sampled on the
                others, and gets what it has on those.
        """
        if best is not None:
            first = self.first_look(candidate)
            if first < self.first_look(best) - LEAD_DB:
                return first
        return fmean(self._measure(candidate, len(self.conditions)))

    def each(self, candidate: Candidate) -> list[float]:
        """Return the accuracy in dB of each sample."""
        return list(self._measure(candidate, len(self.conditions)))

    def has_measured(self, candidate: Candidate) -> bool:
        """Return whether a candidate has been measured on the first samples."""
        return len(self.results.get(candidate.key(), ())) >= self.first

    def look_ahead(self, candidates: Iterable[Candidate], best: Candidate | None = None) -> None:
        """Measure candidates in all processes at once, as ``first_look`` does or, with ``best``, ``accuracy``.

        The results are those that the main process would have when it asks, which then takes no time.
        """
        candidates = list(candidates) if self.team.count > 1 else []
        self._measure_together(candidates, self.first)
        if candidates and best is not None:
            least = self.first_look(best) - LEAD_DB
            promising = [candidate for candidate in candidates if self.first_look(candidate) >= least]
            self._measure_together(promising, len(self.conditions))

    def _measure_together(self, candidates: Sequence[Candidate], count: int) -> None:
        unique = {candidate.key(): candidate for candidate in candidates}
        known = {key: self.results.setdefault(key, []) for key in unique}
        tasks = [(each, slice(len(known[key]), count)) for key, each in unique.items() if len(known[key]) < count]
        if len(tasks) > 1:
            self.team.broadcast(tasks)
            shares = self.measure_share(tasks)
            for at, (candidate, _) in enumerate(tasks):
                known[candidate.key()] += shares[at % self.team.count][at // self.team.count]

    def measure_share(self, tasks: list[tuple[Candidate, slice]]) -> list[list[list[float]]]:
        """Measure the share of this process of some candidates, each on a slice of the samples.

        Returns:
            The accuracies that each process has measured; nothing in all but the main one.
        """
        return self.team.gather([self._sample(*task) for task in self.team.share(tasks)])

    def _measure(self, candidate: Candidate, count: int) -> list[float]:
        """Return the accuracy of at least the first ``count`` samples."""
        known = self.results.setdefault(candidate.key(), [])
        if len(known) < count:
            known += self._sample(candidate, slice(len(known), count))
        return known

    def _sample(self, candidate: Candidate, part: slice) -> list[float]:
        count = part.stop - part.start
        policy = candidate.policy
        same = {"cache": policy and repr(replace(policy, full_steps=(0,))), "sampler": candidate.sampler.spaced()}
        self.prefixes.begin(f"{same} {candidate.steps} {part}", candidate.sampler.timesteps)
        try:
            samples = self._generate(candidate, part)
        except (SkipditError, ValueError, IndexError):  # a scheduler that cannot do so many steps, or samples of NaN
            return [WORST_DB] * count
        images = self.exact.images
        exact = replace(self.exact, latents=self.exact.latents[part], images=None if images is None else images[part])
        accuracies = each_accuracy_db(self.pipe, samples, exact)
        return [WORST_DB if math.isnan(each) else min(max(each, WORST_DB), BEST_DB) for each in accuracies]

    def images(self, candidate: Candidate, count: int) -> np.ndarray | None:
        """Return the images of the first ``count`` samples, uint8; None where they are not decoded or not finite."""
        try:
            return self._generate(candidate, slice(0, count)).images
        except (SkipditError, ValueError, IndexError):
            return None

    def _generate(self, candidate: Candidate, part: slice) -> Generated:
        return generate(
            self.pipe,
            self.conditions[part],
            policy=candidate.policy,
            scheduler=candidate.sampler,
            num_inference_steps=candidate.steps,
            seed=self.seed + part.start,
            decode=self.decode,
            on_halved=noted_in(self.settings),
            **self.settings,
        )
