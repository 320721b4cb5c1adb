"""A bench: the cases of one model run in interleaved rounds, timed and compared at the same seeds."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from skipdit_cli.bench.cases import Case, make_baselines, make_cases
from skipdit_cli.bench.kept_rounds import KeptRounds
from skipdit_cli.bench.machine import find_warnings, load_average
from skipdit_cli.bench.peers.peer import PeerSetting, RunFacts
from skipdit_cli.bench.peers.peer_runs import PeerRuns
from skipdit_cli.bench.results.tables import environment, make_notes
from skipdit_cli.bench.results.verdict import make_verdict, reached_by
from skipdit_cli.bench.rows import make_failed_row, make_row
from skipdit_cli.bench.solutions import Solutions, describe
from skipdit_cli.bench.timing import MOST_ROUNDS, Measured
from skipdit_cli.cache import CachePolicy
from skipdit_cli.errors import NotFiniteError
from skipdit_cli.families.pipeline_parts import transformers_of
from skipdit_cli.planning.first_step import FirstStep, first_step
from skipdit_cli.planning.flops import StepFlops
from skipdit_cli.sampling.generate import Generated, batches, generate
from skipdit_cli.sampling.pipelines.call_arguments import is_text_conditional
from skipdit_cli.sampling.pixels import is_pixel_space
from skipdit_cli.sampling.schedulers import Sampler, as_sampler, make_scheduler, policy_for
from skipdit_cli.skip import add_skip_branches, remove_skip_branches
from skipdit_cli.trunk import Trial, check_class, known_trunk

WARM_UP_STEPS = 2


class Bench:
    """A bench of one pipeline: every case that its policies give (see ``make_cases``).

    Args:
        pipe: The pipeline. Without skip branches on it, the cases that need them are left out.
        policies: The caches to measure.
        conditions: One per image or video, as for ``generate``.
        vanilla: The pipeline of the cases without skip branches; by default ``pipe`` with its branches removed.
        peers: Caches of other libraries to run beside, on vanilla.
        arguments: guidance_scale, cfg_channels, seed, negative_prompt, height, image and others, as for ``generate``.

    Raises:
        UsageError: A policy or an argument does not fit the model.

    Attributes:
        cases: In the order of the rows; after ``run`` without the peers that did not run, whose rows are the last.
        has_branches: Whether ``pipe`` has skip branches.
        has_pictures: Whether its latents are decoded, so that there are PSNR and SSIM.
        macs: Multiply-adds of one forward for one image (the mean where the calls of guidance differ in length):
            "vanilla", and "skip" if ``pipe`` has branches.
        generated: The result of each case in the first round; empty before ``run``.
        solutions: The exact solutions, after ``solving.solve``.
        broken: The reason for each cached or shorter case whose result is NaN or infinite.
        warm_up_seconds: Duration of the runs before those that are timed; mostly compilation if there is any.
    """

    def __init__(
        self,
        pipe,
        policies: Sequence[CachePolicy],
        conditions: Sequence[int | str | None],
        *,
        vanilla=None,
        peers: Sequence[PeerSetting] = (),
        num_inference_steps: int = 50,
        scheduler: Sampler | str | None = None,
        batch_size: int | None = None,
        **arguments,
    ):
        self.pipe, self.vanilla, self.conditions = pipe, vanilla or pipe, conditions
        self.has_branches = any(trunk.branches is not None for trunk in map(known_trunk, _models(pipe)) if trunk)
        self.has_pictures = getattr(pipe, "vae", None) is not None or is_pixel_space(pipe)
        self.scheduler = as_sampler(scheduler)
        self.arguments = {
            **arguments,
            "scheduler": self.scheduler,
            "batch_size": batch_size,
            "decode": self.has_pictures,
        }
        self.fewest_steps = math.ceil(1 / (arguments.get("strength") or 1))
        self.batches = len(batches(pipe, conditions, batch_size, alone=arguments.get("image") is not None))
        self.generated: list[Generated] = []
        self.solutions = Solutions()
        self.broken: dict[Case, str] = {}
        self.warm_up_seconds = 0.0
        self.flops, step = self._count_flops(num_inference_steps)
        self.calls_per_step, self.timesteps = len(step.calls), step.timesteps
        self.macs = {name: flops.full for name, flops in self.flops.items()}
        scheduler = make_scheduler(self.scheduler, pipe)
        self.cases = make_cases(
            [policy_for(policy, scheduler, arguments.get("arguments")) for policy in policies],
            num_inference_steps,
            step.timesteps,
            **self.flops,
            fewest_steps=self.fewest_steps,
        )
        self.cases += [Case("peer", num_inference_steps, peer=setting) for setting in peers]
        self.peer_settings = list(peers)
        self.peers = PeerRuns(self.vanilla, self._sample_vanilla, self._run_facts(step))

    def _count_flops(self, num_inference_steps: int) -> tuple[dict[str, StepFlops], FirstStep]:
        """Return the cost of a step without and with branches, and the first step of a run."""
        arguments = {"num_inference_steps": num_inference_steps, **self.arguments}
        pipes = dict.fromkeys([self.pipe, self.vanilla])
        steps = {pipe: first_step(pipe, self.conditions, **arguments) for pipe in pipes}
        for pipe, step in steps.items():
            _find_trunks(pipe, step.calls[0])
        with _without_branches(self.vanilla):
            flops = {"vanilla": StepFlops(self.vanilla.transformer, steps[self.vanilla].calls)}
        if self.has_branches:
            flops["skip"] = StepFlops(self.pipe.transformer, steps[self.pipe].calls)
        return flops, steps[self.pipe]

    def _run_facts(self, step: FirstStep) -> RunFacts:
        """Return what peers know of the runs of vanilla, given the first step of one."""
        noisy: list[Any] = [next(iter(call.values())) for call in step.calls]
        samples = len(self.conditions[batches(self.pipe, self.conditions, self.arguments["batch_size"])[0]])
        return RunFacts(
            timesteps=step.timesteps,
            calls=len(noisy),
            doubled=len(noisy[0]) == 2 * samples,
            by_class=not is_text_conditional(self.pipe),
            dimensions=noisy[0].ndim if hasattr(noisy[0], "ndim") else noisy[0][0].ndim + 1,
            batches=self.batches,
            uncached=lambda: self._sample_vanilla(decode=False),
        )

    def add_baselines(self) -> None:
        """Add the cases of ``make_baselines`` for the model with branches, or for vanilla if it has none."""
        cached = [
            case
            for case in self.cases
            if case.policy and case.sampler is None and case.has_branches == self.has_branches
        ]
        num_blocks = len(self.flops["vanilla"].units)
        at = max((place for place, case in enumerate(self.cases) if case in cached), default=0) + 1
        self.cases[at:at] = make_baselines(cached, self.timesteps, num_blocks)

    def steps(self, rounds: int | None) -> int:
        """Return about how many times ``run`` calls ``advance``."""
        trials = [self.cases[0], *(case for case in self.cases if case.peer)] if self.peer_settings else []
        timed = (rounds or MOST_ROUNDS) * sum(case.steps for case in self.cases)
        return self.batches * (timed + sum(case.steps for case in trials))

    def run(
        self,
        rounds: int | None = None,
        warmup: int = 1,
        advance: Callable[[], None] | None = None,
        kept: KeptRounds | None = None,
    ) -> list[dict]:
        """Time and compare all cases; return one row for each, with the keys of ``bench --json``.

        Args:
            rounds: Timed runs of each case (see ``interleave``); the results of the first round are compared.
            warmup: Short runs of each model and each cache before the first round.
            advance: Called after each denoising step of the rounds.
            kept: The rounds of an interrupted bench, which this one goes on from.

        Raises:
            NotFiniteError: The result of an uncached case, with which others are compared, is NaN or infinite.
        """
        start = time.perf_counter()
        for case in self._warm_ups() * warmup:
            self.generate_case(case)
        self.warm_up_seconds = time.perf_counter() - start
        if self.peer_settings:
            with _without_branches(self.vanilla):
                self.peers.try_out(self.peer_settings, advance)
        self.cases = [case for case in self.cases if case.peer not in self.peers.failures]
        runs = [lambda case=case: self.generate_case(case, advance) for case in self.cases]
        self.load = [load_average()]
        self.kept = kept or KeptRounds(None, {})
        measured = self.kept.measure(self.cases, runs, rounds, self.pipe.transformer.device)
        self.load.append(load_average())
        self.rounds = len(measured[self.cases[0]].seconds)
        self.generated = [measured[case].first for case in self.cases]
        rows = [self._make_row(case, measured) for case in self.cases]
        return rows + [make_failed_row(setting, why, rows[0]) for setting, why in self.peers.failures.items()]

    def _make_row(self, case: Case, measured: dict[Case, Measured]) -> dict:
        cost = self.peers.costs.get(case.peer) if case.peer else None
        pipe = self.pipe if case.has_branches else self.vanilla  # nothing runs, so branches may stay on
        sampler = describe(case.sampler or self.scheduler, pipe)
        psnr_exact = self.solutions.measure(case.reference, pipe, measured[case].first)
        return make_row(case, measured, self.flops[case.reference], cost, self.calls_per_step, sampler, psnr_exact)

    def report(self, rows: list[dict], model: str, settings: dict) -> dict:
        """Return the object that ``bench --json`` prints: the rows, and all that they depend on.

        Args:
            model: Name of the model in the report.
            settings: Settings of the bench to record beside the device and the versions.
        """
        transformer = self.pipe.transformer
        facts = environment(transformer.device, transformer.dtype)
        facts["versions"] |= self.peers.versions()
        warm_up = "compile_seconds" if settings.get("compile") else "warmup_seconds"
        return {
            "model": model,
            "command": shlex.join(["skipdit", *sys.argv[1:]]),
            **facts,
            **settings,
            "scheduler": type(make_scheduler(self.scheduler, self.pipe)).__name__,
            "peers": list(dict.fromkeys(setting.peer for setting in self.peer_settings)),
            "rounds": self.rounds,
            "load_average": self.load,
            "exact": self.solutions.record(),
            "verdict": make_verdict(rows, self.macs),
            "target": reached_by(rows, self.macs),
            "warnings": find_warnings(rows, self.load),
            warm_up: self.warm_up_seconds,
            "macs": self.macs,
            "sessions": [count for count in self.kept.sessions if count],
            "notes": make_notes(self, settings.get("random_weights", False), settings.get("compile", False)),
            "rows": rows,
        }

    def _warm_ups(self) -> list[Case]:
        """Return a short run for each model alone, and for each depth and forecast of its cache.

        Where two transformers take turns, only a whole run is sure to reuse a step of each.
        """
        steps = self.cases[0].steps
        if len(_models(self.pipe)) == 1:
            steps = min(WARM_UP_STEPS * self.fewest_steps, steps)
        policies = [
            case.policy and replace(case.policy, interval=2, full_steps=None, threshold=None) for case in self.cases
        ]
        short = [
            Case(case.reference, steps, p, has_branches=case.has_branches) for case, p in zip(self.cases, policies)
        ]
        return list(dict.fromkeys(short))

    @contextmanager
    def pipe_of(self, case: Case) -> Iterator[Any]:
        """Give the pipeline of a case, with or without its branches."""
        with nullcontext() if case.has_branches else _without_branches(self.vanilla):
            yield self.pipe if case.has_branches else self.vanilla

    def generate_case(self, case: Case, advance: Callable[[], None] | None = None) -> Generated:
        """Return the samples of a case; without images, and noted in ``broken``, if they are NaN or infinite."""
        if case.peer is not None:
            with self.pipe_of(case):
                return self.peers.run(case.peer, advance)
        arguments = {"num_inference_steps": case.steps, "policy": case.policy, "advance": advance, **self.arguments}
        timesteps = self.scheduler.timesteps
        if case.sampler is not None:
            arguments["scheduler"] = case.sampler
        elif timesteps is not None and len(timesteps) != case.steps:  # a row of fewer steps, or a warm-up
            arguments["scheduler"] = self.scheduler.at_any_steps()
        try:
            with self.pipe_of(case) as pipe:
                return generate(pipe, self.conditions, **arguments)
        except NotFiniteError as cause:
            if (case.name == case.reference and case.policy is None) or self.batches > 1:
                raise  # the batches after it did not run, so there is no time of the whole
            if case in self.cases:
                self.broken[case] = str(cause)
            return cause.made

    def _sample_vanilla(self, advance: Callable[[], None] | None = None, decode: bool = True) -> Generated:
        """Sample once from vanilla, whose branches are off and on which a peer may be enabled."""
        arguments = {**self.arguments, "decode": decode and self.has_pictures, "advance": advance}
        return generate(self.vanilla, self.conditions, num_inference_steps=self.cases[0].steps, **arguments)


def _models(pipe) -> list:
    return list(transformers_of(pipe).values())


def _find_trunks(pipe, arguments) -> None:
    """Find the trunk of each transformer whose class is not declared.

    Raises:
        UsageError: A transformer has no trunk.
    """
    for transformer in _models(pipe):
        if known_trunk(transformer) is None:
            check_class(transformer)
            Trial(transformer, arguments).accept()


@contextmanager
def _without_branches(pipe) -> Iterator[None]:
    removed = {transformer: remove_skip_branches(transformer) for transformer in _models(pipe)}
    try:
        yield
    finally:
        for transformer, branches in removed.items():
            if branches is not None:
                add_skip_branches(transformer, branches=branches)
