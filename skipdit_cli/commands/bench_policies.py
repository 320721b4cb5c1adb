"""The caches that ``skipdit bench`` compares, from its flags."""

from __future__ import annotations

from skipdit_cli import console
from skipdit_cli.bench.bench_settings import BenchSettings
from skipdit_cli.commands import parsing, speedup
from skipdit_cli.errors import UsageError
from skipdit_cli.sampling.sample_settings import count_steps
from skipdit_cli.settings import flag_name, run_arguments


def make_all(settings: BenchSettings) -> tuple[list, list[float]]:
    """Return the policies of the levels, and of every combination of the other cache flags, those of a target speedup
    with a threshold that stands for it; and the speedups."""
    from skipdit_cli.bench.cases import make_policies
    from skipdit_cli.cache import CachePolicy
    from skipdit_cli.cache.trigger import LARGEST_THRESHOLD

    intervals, full_steps, threshold = settings.cache_interval, settings.full_steps, settings.cache_threshold
    steps = count_steps(settings.pipeline, settings.num_inference_steps)
    levels = [CachePolicy.level(level, steps) for level in parse_words(settings.cache or "")]
    speedup.check_compile(settings.compile, threshold, settings.target_speedup)
    speedups = parsing.parse_numbers(settings.target_speedup or "", "--target-speedup")
    for each in speedups:
        speedup.check_speedup(each)
    if (intervals, full_steps, threshold, settings.target_speedup) == (None,) * 4:
        others = ("cache_layers", "forecast", "cache_target")
        stray = next((each for each in others if getattr(settings, each) != getattr(BenchSettings, each)), None)
        if levels and stray:
            raise UsageError(f"Got --cache with {flag_name(stray)}, which it sets; give --cache-interval as well.")
        if levels:
            return levels, []
        intervals = "2,3,5"
    thresholds = parsing.parse_numbers(threshold or "", "--cache-threshold")
    policies = levels + make_policies(
        parsing.parse_layers(settings.cache_layers),
        parsing.parse_integers(intervals or "", "--cache-interval"),
        parsing.parse_integers(full_steps or "", "--full-steps"),
        parse_words(settings.forecast),
        [None] if settings.cache_target is None else parse_words(settings.cache_target),
        [*thresholds, *([LARGEST_THRESHOLD] if speedups else [])],
    )
    return policies, speedups


def with_thresholds(pipe, policies: list, speedups: list[float], conditions: list, settings, inputs: dict) -> list:
    """Return the policies, with one for each target speedup in the place of those that stand for them."""
    from skipdit_cli.cache.trigger import LARGEST_THRESHOLD

    arguments, found = {**run_arguments(settings), **inputs}, []
    for policy in policies:
        stands_in = speedups and policy.threshold == LARGEST_THRESHOLD
        steps = settings.num_inference_steps
        found += (
            speedup.find_thresholds(pipe, policy, speedups, conditions, steps, arguments) if stands_in else [policy]
        )
    return found


def parse_words(text: str) -> list[str]:
    """Parse ``"reuse,linear"`` to ``["reuse", "linear"]``."""
    return [word.strip() for word in text.split(",") if word.strip()]


def read_plans(settings: BenchSettings) -> list:
    """Return the plans of ``--plan``.

    Raises:
        UsageError: One does not exist, or is no plan.
    """
    if not settings.plan:
        return []
    from skipdit_cli.planning.plan import load_plan

    return [load_plan(path) for path in settings.plan]


def add_plans(run, plans: list, settings: BenchSettings) -> None:
    """Add a case for each plan to a bench.

    Raises:
        UsageError: A plan was made for another model.
    """
    from skipdit_cli.bench.cases import Case

    for plan in plans:
        plan.check_run(run.pipe, plan.sampler, plan.steps)
        if difference := plan.difference(run.pipe, settings.guidance_scale):
            console.warn(difference)
        candidate, branches = plan.candidate, run.has_branches
        label = plan.name if candidate.policy is None else f"{plan.name}: {candidate.policy.describe()}"
        run.cases.append(Case("plan", candidate.steps, candidate.policy, None, candidate.sampler, branches, label))
