"""The part of a bench that is not timed: the exact solutions, and the search for the best plain sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from skipdit_cli.bench.cases import Case
from skipdit_cli.bench.run import WARM_UP_STEPS, Bench
from skipdit_cli.bench.solutions import plain_samplers
from skipdit_cli.errors import NotFiniteError, UsageError
from skipdit_cli.planning.exact import usual_steps
from skipdit_cli.sampling.generate import Generated
from skipdit_cli.sampling.schedulers import Sampler, check_deterministic, make_scheduler


def count_steps(bench: Bench) -> int:
    """Return about how many times ``solve`` calls ``advance``."""
    uncached = _uncached_cases(bench)
    solving = sum(usual_steps(bench.pipe if case.has_branches else bench.vanilla) for case in uncached)
    return bench.batches * (solving + sum(case.steps for case in (*uncached, *_plain_cases(bench))))


def solve(bench: Bench, time_limit: float | None = None, advance: Callable[[], None] | None = None) -> None:
    """Compute the exact solutions of a bench for ``psnr_exact``, and add its cases "fewer-steps-best".

    There is none where the scheduler is not deterministic or a solution is NaN: see ``Solutions.reason``.

    Args:
        bench: The bench, before its run.
        time_limit: Do nothing where it would take more seconds than this, by the time of one step.
        advance: Called after each denoising step.
    """
    solutions, own = bench.solutions, bench.scheduler.spaced()
    plain: dict[int, list[tuple[Sampler, Generated]]] = {}
    try:
        check_deterministic(make_scheduler(bench.scheduler, bench.pipe), bench.arguments.get("arguments"))
        seconds = _seconds_per_step(bench) * count_steps(bench) / bench.batches
        if time_limit is not None and seconds > time_limit:
            solutions.reason = f"It takes about {seconds / 60:.0f} minutes here; 'bench --exact' computes it."
            return
        for case in _plain_cases(bench):
            plain.setdefault(case.steps, []).append((case.sampler or own, bench.generate_case(case, advance)))
        for case in _uncached_cases(bench):
            trials = [bench.generate_case(case, advance)]
            trials += [] if case.has_branches else [samples for runs in plain.values() for _, samples in runs]
            with bench.pipe_of(case) as pipe:
                solutions.solve(case.name, pipe, bench.conditions, trials, advance, bench.arguments)
    except (UsageError, NotFiniteError) as cause:
        solutions.exact.clear()
        solutions.reason = str(cause)
        return
    solutions.choose(bench.vanilla, plain)
    best = solutions.best.items()
    bench.cases += [Case("fewer-steps-best", steps, sampler=sampler) for steps, sampler in best if sampler != own]


def _uncached_cases(bench: Bench) -> list[Case]:
    return [case for case in bench.cases if case.name == case.reference]


def _plain_cases(bench: Bench) -> list[Case]:
    """Return vanilla with fewer steps, with each sampler of the short list."""
    return [
        replace(case, sampler=sampler)
        for case in bench.cases
        if case.name == "fewer-steps"
        for sampler in plain_samplers(bench.vanilla, bench.scheduler.spaced(), case.steps)
    ]


def _seconds_per_step(bench: Bench) -> float:
    """Return the duration of one step of all batches: of two runs the shorter one, as the first warms up."""
    case = Case("vanilla", min(WARM_UP_STEPS * bench.fewest_steps, bench.cases[0].steps))
    timed = [bench.generate_case(case) for _ in range(2)]
    return min(each.denoise_seconds / max(each.steps, 1) for each in timed)
