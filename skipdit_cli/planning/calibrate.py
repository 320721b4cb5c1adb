"""Calibration: the plans of one pipeline for some budgets, and what they are worth on samples not searched with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from skipdit_cli.errors import UsageError
from skipdit_cli.planning.exact import Exact
from skipdit_cli.planning.fit_branch import branch_samples, check_one_transformer, fit_output_branch
from skipdit_cli.planning.fit_sampler import SamplerFitter
from skipdit_cli.planning.flops import StepFlops
from skipdit_cli.planning.searching.candidate import Candidate
from skipdit_cli.planning.searching.effort import Effort
from skipdit_cli.planning.searching.evaluate import Evaluator
from skipdit_cli.planning.searching.search import Search
from skipdit_cli.planning.searching.together import Evaluators
from skipdit_cli.processes import Team
from skipdit_cli.sampling.by_class import sample_shape
from skipdit_cli.sampling.generate import batches
from skipdit_cli.sampling.pipelines.call_arguments import is_text_conditional
from skipdit_cli.sampling.refusals import check_steps
from skipdit_cli.sampling.run_settings import RunSettings
from skipdit_cli.sampling.schedulers import (
    Sampler,
    candidates,
    check_deterministic,
    check_single_forwards,
    full_run_sampler,
    make_scheduler,
)
from skipdit_cli.trunk import known_trunk

COSTS = (5, 6, 7, 8, 9, 10, 12, 14, 17, 20, 25, 30, 40)
"""Budgets to try, in full forwards, where an accuracy is asked for."""
MIN_VALUES = 4096
"""The fewest values of latents, of all samples together, that a sampler is fitted to."""
MARGIN_DB = 0.3
"""The least by which a plan exceeds the accuracy asked for on the samples that it was searched with."""


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of one candidate on held-out samples.

    Args:
        candidate: What was sampled.
        cost: In full forwards.
        mean_db, deviation_db: Mean and standard deviation over the samples of the PSNR to the exact solution.
        searched_db: The mean on the samples of the search; None for a candidate that was not searched.
    """

    candidate: Candidate
    cost: float
    mean_db: float
    deviation_db: float
    searched_db: float | None = None


@dataclass(frozen=True)
class Calibration:
    """The plans of one pipeline.

    Args:
        plans: Budget in full forwards to its candidates: "plan", "sampler" and others as of ``Search.best_at``,
            "same-sampler" (fewer steps of the pipeline's own sampler), and for a model with skip branches "branch"
            (the plan with the first and the last block live, which are joined by one).
        full: The pipeline's own sampler with all steps.
        exact: The exact solution of the held-out samples.
        held_out: The number of held-out samples.
        notes: One sentence for each budget without an output branch where one was to be fitted.
    """

    plans: Mapping[float, Mapping[str, Accuracy]]
    full: Accuracy
    exact: Exact
    held_out: int
    notes: Sequence[str] = ()


def check_full_run(
    pipe, sampler: Sampler | str | None, steps: int, arguments: Mapping[str, object] | None = None
) -> None:
    """Refuse a full run that no plan can be compared with.

    Args:
        pipe: The pipeline.
        sampler: The sampler of the run; the pipeline's own if None.
        steps: The number of denoising steps of the run.
        arguments: The arguments of the pipeline's call.

    Raises:
        UsageError: The scheduler is unknown, adds noise, cannot do so many steps, or does not evaluate the model once
            a step.
    """
    sampler = full_run_sampler(pipe, sampler)
    scheduler = make_scheduler(sampler, pipe)
    check_deterministic(scheduler, arguments)
    check_steps(RunSettings(num_inference_steps=steps, scheduler=sampler), scheduler)
    check_single_forwards(scheduler)


class Calibrator:
    """Searches plans of one pipeline, and measures them on held-out samples.

    Args:
        pipe: The pipeline.
        conditions, held_out: One per sample to search with, and to report on.
        steps: The number of denoising steps of a full run.
        scheduler: Search this sampler alone; all that the pipeline can take if None.
        known: Results of an interrupted calibration, to which new ones are added (see ``Evaluator``).
        team: The processes that measure candidates; all but the main one call ``help``.
        advance: Called after each candidate.
        settings: Further settings of ``generate``: guidance_scale, seed, negative_prompt and others.

    Raises:
        UsageError: As for ``check_full_run``, or a setting does not fit the pipeline.
    """

    def __init__(
        self,
        pipe,
        conditions: Sequence[int | str | None],
        held_out: Sequence[int | str | None],
        *,
        steps: int = 50,
        scheduler: Sampler | str | None = None,
        known: dict[str, list[float]] | None = None,
        advance: Callable[[], None] | None = None,
        team: Team = Team(),
        seed: int = 0,
        **settings: Any,
    ):
        self.evaluators = Evaluators(pipe, conditions, held_out, seed, settings, team)
        self.pipe, self.conditions, self.held_out = pipe, conditions, held_out
        self.seed, self.settings = seed, settings
        self.own, self.steps, self.fits = full_run_sampler(pipe, scheduler), steps, scheduler is None
        check_full_run(pipe, self.own, steps, settings.get("arguments"))
        self.samplers = candidates(pipe) if scheduler is None else [self.own]
        self.flops, self.trunk = StepFlops(pipe.transformer), known_trunk(pipe.transformer)
        self.known, self.advance = {} if known is None else known, advance

    def for_costs(self, costs: Sequence[float], effort: Effort = Effort()) -> Calibration:
        """Return the plans for some budgets, in full forwards."""
        return self._calibrate(lambda search: {cost: search.best_at(cost) for cost in sorted(costs)}, effort)

    def for_accuracy(self, accuracy_db: float, effort: Effort = Effort()) -> Calibration:
        """Return the plan for the smallest budget of ``COSTS`` that has an accuracy in dB; the most accurate plan if
        none has it."""

        def find(search: Search) -> dict[float, dict[str, Candidate]]:
            best: dict[float, dict[str, Candidate]] = {}
            accuracy: dict[float, float] = {}
            for cost in (float(cost) for cost in COSTS if cost < self.steps):
                best[cost] = search.best_at(cost)
                accuracy[cost] = search.evaluator.accuracy(best[cost]["plan"])
                if accuracy[cost] >= accuracy_db + self.margin_db(search.evaluator.each(best[cost]["plan"])):
                    break
            cost = max(accuracy, key=lambda each: accuracy[each])
            return {cost: best[cost]}

        return self._calibrate(find, effort)

    def margin_db(self, searched: Sequence[float]) -> float:
        """Return by how much an accuracy on the samples of the search is to exceed the one asked for, so that the
        held-out samples mostly have it: the standard error of the difference of the two means."""
        return max(MARGIN_DB, stdev(searched) * math.sqrt(1 / len(searched) + 1 / len(self.held_out)))

    def _calibrate(self, find: Callable[[Search], dict[float, dict[str, Candidate]]], effort: Effort) -> Calibration:
        """Return what ``find`` finds by a search, measured on the held-out samples as well."""
        evaluator = self.searcher = self.evaluators.searcher(self.known)
        try:
            found = find(self._search(evaluator, effort))
            searched = {each: evaluator.accuracy(each) for best in found.values() for each in best.values()}
        finally:
            evaluator.close()
            self.evaluators.dismiss()
        return self._report(found, searched)

    def _search(self, evaluator: Evaluator, effort: Effort) -> Search:
        needs_sources = self.trunk is not None and self.trunk.needs_sources
        blocks = len(self.flops.units)
        fitter = self._fitter(evaluator) if self.fits else None
        return Search(evaluator, self.flops, self.samplers, blocks, needs_sources, effort, self.advance, fitter)

    def _fitter(self, evaluator: Evaluator) -> SamplerFitter:
        """Return what fits samplers to the first batch of samples, with more seeds where samples are small."""
        conditions, most = list(self.conditions), self.settings.get("batch_size")
        if most is not None:
            conditions = conditions[:most]
        elif not is_text_conditional(self.pipe):
            values = math.prod(sample_shape(self.pipe, self.settings.get("num_frames"))) * len(conditions)
            conditions *= math.ceil(MIN_VALUES / values)
        return self._make_fitter(conditions, prefixes=evaluator.prefixes, known=self.known)

    def _make_fitter(self, conditions: Sequence[int | str | None], **shared: Any) -> SamplerFitter:
        """Return what fits samplers to samples in one batch, of one prompt where a pipeline has a batch for each."""
        if len(batches(self.pipe, conditions)) > 1:
            conditions = list(conditions[:1]) * len(conditions)
        return SamplerFitter(self.pipe, conditions, seed=self.seed, **shared, **self.settings)

    def _report(
        self, found: Mapping[float, Mapping[str, Candidate]], searched: Mapping[Candidate, float]
    ) -> Calibration:
        """Measure what was found, and what it is compared with, on the held-out samples."""
        self.reporter = self.evaluators.reporter()

        def accuracy(candidate: Candidate) -> Accuracy:
            return self._held_out(candidate, candidate.cost(self.flops), searched.get(candidate))

        compared: dict[float, dict[str, Candidate]] = {}
        for cost, best in found.items():
            compared[cost] = {**best, "same-sampler": Candidate(self.own.spaced(), max(1, int(cost)))}
            if (branch := self._with_branch(best["plan"])) is not None:
                compared[cost]["branch"] = branch
        full = Candidate(self.own.spaced(), self.steps)
        self.reporter.look_ahead([full, *(each for named in compared.values() for each in named.values())])
        self.evaluators.dismiss()
        plans = {cost: {name: accuracy(each) for name, each in named.items()} for cost, named in compared.items()}
        return Calibration(plans, accuracy(full), self.reporter.exact, len(self.held_out))

    def _held_out(self, candidate: Candidate, cost: float, searched_db: float | None) -> Accuracy:
        """Measure one candidate on the held-out samples."""
        each = self.reporter.each(candidate)
        return Accuracy(candidate, cost, fmean(each), stdev(each) if len(each) > 1 else 0.0, searched_db)

    def sample(self, candidate: Candidate, count: int) -> np.ndarray | None:
        """Return the images of the first held-out samples, uint8; None where they are not decoded or not finite."""
        return self.reporter.images(candidate, count)

    def check_output_branch(self) -> None:
        """Refuse output branches where none can be fitted.

        Raises:
            UsageError: A batch has too few samples, or the pipeline has two transformers.
        """
        check_one_transformer(self.pipe)
        branch_samples(self.pipe, len(self.conditions), self.settings)

    def with_output_branches(self, found: Calibration, folder: Path) -> Calibration:
        """Return a calibration with an output branch for each plan that is a fitted sampler ("output-branch"). It is
        part of the plan where it is more accurate on the held-out samples.

        Args:
            found: What ``for_costs`` or ``for_accuracy`` returned.
            folder: For the files of the branches.
        """
        plans: dict[float, Mapping[str, Accuracy]] = dict(found.plans)
        notes, fitter = [], None
        for cost, best in found.plans.items():
            plan, what = best["plan"], f"The plan for a cost of {cost:g} has no output branch"
            if not plan.candidate.sampler.is_fitted:
                notes.append(f"{what}: it is no fitted sampler.")
                continue
            try:
                fitter = fitter or self._branch_fitter()
                branched = self._fit_branch(plan.candidate, fitter, folder / f"{cost:g}.safetensors")
            except UsageError as cause:
                notes.append(f"{what}: {cause}")
                continue
            wins = branched.mean_db > plan.mean_db
            plans[cost] = {**best, "plan": branched if wins else plan, "output-branch": branched}
            if not wins:
                accuracies = f"{branched.mean_db:.1f} dB on held-out samples, and without it {plan.mean_db:.1f}"
                notes.append(f"{what}: with one it has {accuracies}.")
        return replace(found, plans=plans, notes=notes)

    def _fit_branch(self, plan: Candidate, fitter: SamplerFitter, file: Path) -> Accuracy:
        """Fit the output branch of a plan, write it to a file, and measure the plan with it."""
        sampler, branch = fit_output_branch(fitter, plan.sampler)
        named = {"output_branch": str(file), "output_branch_sha256": branch.save(file)}
        sampler = replace(sampler, arguments={**sampler.arguments, **named})
        candidate = replace(plan, sampler=sampler)
        cost = candidate.cost(self.flops) + branch.macs / (sum(branch.calls) * self.flops.full)
        return self._held_out(candidate, cost, self.searcher.accuracy(candidate))

    def _branch_fitter(self) -> SamplerFitter:
        """Return what fits output branches, to the samples of the search and to more seeds of them."""
        count = branch_samples(self.pipe, len(self.conditions), self.settings)
        conditions = [self.conditions[at % len(self.conditions)] for at in range(count)]
        return self._make_fitter(conditions, advance=self.advance)

    def _with_branch(self, plan: Candidate) -> Candidate | None:
        """Return a plan with the pair (0, L-1) live, which a skip branch joins; None without branches."""
        has_branches = self.trunk is not None and self.trunk.branches is not None and len(self.trunk) > 2
        if not has_branches or plan.policy is None:
            return None
        policy = plan.policy
        forecast = ("taylor2", "timestep") if policy.forecasts_output else (policy.forecast, policy.axis)
        return replace(plan, policy=replace(policy, layers=(1, 1), forecast=forecast[0], axis=forecast[1]))
