"""One bench: every case timed in turn on one model, and its pictures compared at the same seeds."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from skipdit_cli.bench.cases import Case, make_cases
from skipdit_cli.bench.first_step import first_step
from skipdit_cli.bench.flops import StepFlops
from skipdit_cli.bench.quality import compare
from skipdit_cli.bench.tables import environment
from skipdit_cli.bench.timing import MOST_ROUNDS, Measured, interleave, median, ratios, spread
from skipdit_cli.cache import CachePolicy
from skipdit_cli.errors import NotFiniteError
from skipdit_cli.families.pipeline_parts import transformers_of
from skipdit_cli.sampling.device import computes_wide
from skipdit_cli.sampling.generate import Generated, batches, generate
from skipdit_cli.sampling.pipelines.call_arguments import is_text_conditional
from skipdit_cli.sampling.pixels import is_pixel_space
from skipdit_cli.sampling.schedulers import make_scheduler
from skipdit_cli.skip import add_skip_branches, remove_skip_branches
from skipdit_cli.trunk import Trial, check_class, known_trunk

WARM_UP_STEPS = 2


class Bench:
    """Every case that some policies give (see ``make_cases``), on one pipeline.

    Args:
        pipe: The pipeline; the cases with skip branches are left out if it has none.
        conditions: One per picture or video, as for ``generate``.
        vanilla: A pipeline for the cases without branches; ``pipe`` with its branches taken off if not given.
        sampling: guidance_scale, cfg_channels, seed, batch_size, negative_prompt, height, image, ..., as for
            ``generate``.
    Raises:
        UsageError: A policy or a setting does not fit.

    Attributes:
        cases: In the order of the rows.
        has_branches: Whether ``pipe`` has skip branches.
        has_pictures: Whether its latents can be made pictures, so that PSNR and SSIM exist.
        macs: Multiply-adds of one forward for one image, the mean where guidance takes calls of different length:
            "vanilla", and "skip" if it has branches.
        generated: What each case's first round made; after ``run``.
        broken: Why what some cached or shorter case makes is NaN or infinite.
        warm_up_seconds: Time of the runs that were not counted; mostly compilation if the forward is compiled.
    """

    def __init__(
        self,
        pipe,
        policies: Sequence[CachePolicy],
        conditions: Sequence[int | str | None],
        *,
        vanilla=None,
        num_inference_steps: int = 50,
        scheduler: str | None = None,
        batch_size: int | None = None,
        **sampling,
    ):
        self.pipe, self.vanilla, self.conditions = pipe, vanilla or pipe, conditions
        self.has_branches = any(trunk.branches is not None for trunk in map(known_trunk, _models(pipe)) if trunk)
        self.has_pictures = getattr(pipe, "vae", None) is not None or is_pixel_space(pipe)
        self.sampling = {**sampling, "scheduler": scheduler, "batch_size": batch_size, "decode": self.has_pictures}
        run = {"num_inference_steps": num_inference_steps, **self.sampling}
        seen = {each: first_step(each, conditions, **run) for each in dict.fromkeys([pipe, self.vanilla])}
        for each, step in seen.items():
            _find_trunks(each, step.calls[0])
        with _without_branches(self.vanilla):
            self.flops = {"vanilla": StepFlops(self.vanilla.transformer, seen[self.vanilla].calls)}
        if self.has_branches:
            self.flops["skip"] = StepFlops(pipe.transformer, seen[pipe].calls)
        self.macs = {name: flops.full for name, flops in self.flops.items()}
        self.least = math.ceil(1 / (sampling.get("strength") or 1))
        self.cases = make_cases(policies, num_inference_steps, seen[pipe].timesteps, **self.flops, least=self.least)
        self.batches = len(batches(pipe, conditions, batch_size, alone=sampling.get("image") is not None))
        self.generated: list[Generated] = []
        self.broken: dict[Case, str] = {}
        self.warm_up_seconds = 0.0

    def steps(self, rounds: int | None) -> int:
        """How often ``run`` will call ``advance``, about."""
        return (rounds or MOST_ROUNDS) * self.batches * sum(case.steps for case in self.cases)

    def run(self, rounds: int | None = None, warmup: int = 1, advance: Callable[[], None] | None = None) -> list[dict]:
        """Time and compare all cases; one row each, with the keys of ``bench --json``.

        Args:
            rounds: How often each case runs (see ``interleave``); the pictures of the first round are compared.
            warmup: Short runs of each model and each depth of cache before that.
            advance: Called after each denoising step that counts.
        Raises:
            NotFiniteError: What all is compared with is NaN or infinite.
        """
        began = time.perf_counter()
        for case in self._warm_ups() * warmup:
            self._generate(case)
        self.warm_up_seconds = time.perf_counter() - began
        runs = [lambda case=case: self._generate(case, advance) for case in self.cases]
        measured = dict(zip(self.cases, interleave(runs, rounds, self.pipe.transformer.device)))
        self.rounds = len(measured[self.cases[0]].seconds)
        self.generated = [measured[case].first for case in self.cases]
        return [row(case, measured, self.flops[case.reference]) for case in self.cases]

    def report(self, rows: list[dict], model: str, settings: dict) -> dict:
        """The object that ``bench --json`` prints: the rows, and all that they depend on."""
        transformer = self.pipe.transformer
        sampler = make_scheduler(self.sampling["scheduler"], self.pipe)
        seconds = {"compile_seconds" if settings.get("compile") else "warmup_seconds": self.warm_up_seconds}
        return {
            "model": model,
            "command": shlex.join(["skipdit", *sys.argv[1:]]),
            **environment(transformer.device, transformer.dtype),
            **settings,
            "scheduler": type(sampler).__name__,
            "rounds": self.rounds,
            **seconds,
            "macs": self.macs,
            "notes": self._notes(settings.get("random_weights", False), settings.get("compile", False)),
            "rows": rows,
        }

    def _notes(self, random_weights: bool, compiled: bool) -> list[str]:
        notes = []
        if compiled:
            notes.append(f"Compiled, in {self.warm_up_seconds:.0f} s of runs before those that are timed.")
        if known_trunk(self.pipe.transformer).backbone.native_skips:
            notes.append(
                "This class has skips of its own: vanilla is the model with them, vanilla-cache is Skip-Cache on "
                "them; there are no skip rows, for there is nothing to convert."
            )
        elif not self.has_branches:
            notes.append("No skip rows: this model has no skip branches; 'skipdit convert' adds them.")
        elif self.vanilla is self.pipe:
            notes.append("vanilla is this model's own trunk with its skip branches taken off.")
        if not self.has_pictures:
            notes.append("No PSNR and SSIM: there is no VAE to make pictures with.")
        if computes_wide(self.pipe.transformer):
            notes.append("This CPU has no bfloat16 arithmetic: weights are bfloat16, their products float32.")
        if is_text_conditional(self.pipe) and self.conditions[0] is None:
            notes.append("No texts: noise as long as the longest text stands for each.")
        for case, why in self.broken.items():
            schedule = case.policy.describe() if case.policy else f"{case.steps} steps"
            notes.append(f"{case.name}, {schedule}: no quality, for it is NaN or infinite. {why}")
        if random_weights:
            notes.append("Random weights: the times are real, the quality columns say nothing about a trained model.")
        return notes

    def _generate(self, case: Case, advance: Callable[[], None] | None = None) -> Generated:
        settings = {"num_inference_steps": case.steps, "policy": case.policy, "advance": advance, **self.sampling}
        try:
            if case.has_branches:
                return generate(self.pipe, self.conditions, **settings)
            with _without_branches(self.vanilla):
                return generate(self.vanilla, self.conditions, **settings)
        except NotFiniteError as cause:
            if (case.name == case.reference and case.policy is None) or self.batches > 1:
                raise  # of several batches, those after it were not run: it took no time that could be told
            if case in self.cases:
                self.broken[case] = str(cause)
            return cause.made

    def _warm_ups(self) -> list[Case]:
        """A short run for each model alone, and for each depth of its cache and way to forecast.

        Where two transformers take turns, only a whole run is sure to reuse a step of each.
        """
        most = self.cases[0].steps
        steps = min(WARM_UP_STEPS * self.least, most) if len(_models(self.pipe)) == 1 else most
        policies = [case.policy and replace(case.policy, interval=2, full_steps=None) for case in self.cases]
        return list(dict.fromkeys(Case(case.reference, steps, p) for case, p in zip(self.cases, policies)))


def row(case: Case, measured: dict[Case, Measured], flops: StepFlops) -> dict:
    """One row of ``bench --json``; None where a key does not apply.

    Args:
        measured: Every case of the bench.
        flops: Cost of a step of the case's own model.
    """
    own, policy = measured[case], case.policy
    uncached = {other.name: result for other, result in measured.items() if other.name == other.reference}
    made, reference = own.first, uncached[case.reference].first
    speedup = {name: ratios(result.seconds, own.seconds) for name, result in uncached.items()}
    full_steps, limit, quality = made.steps, None, None
    if policy is not None:
        full_steps = made.report.steps - made.report.reused_steps
    if case.name != case.reference:
        limit = reference.calls * flops.full / _cost(case, made, flops)
        quality = compare(made.images, reference.images, made.latents, reference.latents)
    return {
        "case": case.name,
        "cache_layers": policy and policy.layers,
        "cache_interval": _interval(policy),
        "schedule": policy and policy.describe(),
        "forecast": policy and policy.forecast,
        "cache_target": policy and policy.target,
        "steps": made.steps,
        "full_steps": full_steps,
        "seconds": median(own.seconds),
        "seconds_iqr": spread(own.seconds),
        "seconds_end_to_end": median(own.seconds_end_to_end),
        "speedup_vs_vanilla": median(speedup["vanilla"]),
        "speedup_vs_vanilla_iqr": spread(speedup["vanilla"]),
        "speedup_vs_skip": median(speedup["skip"]) if "skip" in speedup else None,
        "limit": limit,
        "measured_over_limit": limit and median(speedup[case.reference]) / limit,
        "psnr": quality and quality.psnr,
        "ssim": quality and quality.ssim,
        "temporal_difference": quality and quality.temporal_difference,
        "latent_rel_l2": quality and quality.latent_rel_l2,
        "identical": quality and quality.identical,
        "peak_memory_mb": own.peak_bytes and own.peak_bytes / 1e6,
        "cache_mb": policy and made.cache_bytes / 1e6,
    }


def _interval(policy: CachePolicy | None) -> int | None:
    if policy is None or policy.full_steps is not None:
        return None
    return 2 if policy.interval is None else policy.interval


def _cost(case: Case, made: Generated, flops: StepFlops) -> int:
    """Multiply-adds of all the calls that a run made."""
    if case.policy is None:
        return made.calls * flops.full
    left_out = len(flops.units) - 2 * case.policy.layers
    reused = (made.report.blocks_total - made.report.blocks_run) // left_out
    return (made.calls - reused) * flops.full + reused * flops.reused(case.policy.layers)


def _models(pipe) -> list:
    return list(transformers_of(pipe).values())


def _find_trunks(pipe, arguments) -> None:
    """Find the trunk of each transformer whose class is not declared.

    Raises:
        UsageError: It has none.
    """
    for transformer in _models(pipe):
        if known_trunk(transformer) is None:
            check_class(transformer)
            Trial(transformer, arguments).accept()


@contextmanager
def _without_branches(pipe) -> Iterator[None]:
    taken = {transformer: remove_skip_branches(transformer) for transformer in _models(pipe)}
    try:
        yield
    finally:
        for transformer, branches in taken.items():
            if branches is not None:
                add_skip_branches(transformer, branches=branches)
