"""The results of ``skipdit calibrate``: their table, and the HTML report."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from skipdit_cli.version import list_versions

if TYPE_CHECKING:
    from skipdit_cli.planning.calibrate import Accuracy, Calibration, Calibrator
    from skipdit_cli.reports import Comparison, Plot, Point, Report

NAMES = {
    "plan": "plan",
    "cached": "best with a cache",
    "fitted": "fitted sampler, no cache",
    "timesteps": "best timesteps, no cache",
    "sampler": "best sampler, no cache",
    "same-sampler": "same sampler, fewer steps",
    "output-branch": "fitted sampler, output branch",
    "branch": "plan with blocks 0 and L-1 live",
}
COLUMNS = {
    "budget": "The most full forwards that a run may cost.",
    "what": "The plan, which is the best of all, and what it is compared with.",
    "how": "The sampler, its steps and the cache.",
    "cost": "FLOPs of the run in full forwards of the model.",
    "dB to exact, held out": "PSNR to the exact solution on samples that were not searched with: mean, standard "
    "deviation over the samples, and the mean on the samples of the search.",
}
"""The columns of the table, and what each says."""
SHOWN = 8
"""The most samples in the comparison of pictures."""


def table(found: Calibration) -> tuple[list[str], list[list[str]]]:
    """Return the column names and the rows of the table of plans."""
    rows = [
        [f"{cost:g}", NAMES[name], each.candidate.describe(), f"{each.cost:.2f}", _accuracy(each)]
        for cost, best in found.plans.items()
        for name, each in best.items()
    ]
    rows.append(["all", "full run", found.full.candidate.describe(), f"{found.full.cost:g}", _accuracy(found.full)])
    return list(COLUMNS), rows


def exact_sentence(found: Calibration) -> str:
    """Return how many held-out samples there are, and how the exact solution was computed."""
    exact = found.exact
    agreement = f"agree with it to {exact.agreement_db:.0f} dB" if exact.agreement_db < math.inf else "give the same"
    return (
        f"Held out: {found.held_out} other samples. ±: standard deviation over them. The exact solution is "
        f"{exact.sampler.describe()}; half as many steps {agreement}."
    )


def make_report(
    found: Calibration, calibrator: Calibrator, written: Sequence[Path], model: str, settings: Mapping[str, object]
) -> Report:
    """Return the HTML report of a calibration.

    Args:
        found: The plans.
        calibrator: What found them; it samples the pictures.
        written: The files of the plans.
        model: The name of the model.
        settings: What the run is recorded with: guidance scale, seed and others.
    """
    from skipdit_cli.bench.results.html_report import name_machine
    from skipdit_cli.bench.results.tables import environment
    from skipdit_cli.reports import Column, Command, Report, Table

    columns, rows = table(found)
    lead, *details = [_verdict(best, found.full) for best in found.plans.values()]
    transformer = calibrator.pipe.transformer
    facts = environment(transformer.device, transformer.dtype)
    again = Command(shlex.join(["skipdit", *sys.argv[1:]]), "Calibrate again.")
    use = [Command(f"skipdit sample --plan {shlex.quote(str(path))}", "Sample with the plan.") for path in written]
    return Report(
        f"Calibration of {model}",
        subtitle=f"{facts['device_name']}, {facts['dtype']}, {facts['date'][:10]}",
        lead=lead,
        details=[*details, exact_sentence(found)],
        comparison=_comparison(found, calibrator),
        plots=[_plot(found)],
        tables=[Table("All figures", [Column(name, COLUMNS[name], name == "cost") for name in columns], rows)],
        schedules=_schedules(found),
        commands=[*use, again],
        facts={
            "Machine": name_machine(facts),
            "Date": facts["date"],
            "Versions": list_versions(facts["versions"]),
            "Settings": ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None),
        },
        notes=found.notes,
    )


def _accuracy(each: Accuracy) -> str:
    searched = "" if each.searched_db is None else f" ({each.searched_db:.1f} searched)"
    return f"{each.mean_db:.1f} ±{each.deviation_db:.1f}{searched}"


def _verdict(best: Mapping[str, Accuracy], full: Accuracy) -> str:
    """Return what the plan of a budget is worth, in one sentence."""
    plan, same = best["plan"], best["same-sampler"]
    difference = plan.mean_db - full.mean_db
    comparison = f"{abs(difference):.1f} dB {'more' if difference > 0 else 'less'} than"
    text = (
        f"At a cost of {plan.cost:.3g} full forwards, the plan has {plan.mean_db:.1f} dB to the exact solution, "
        f"{comparison} the full run of {full.cost:g}"
    )
    steps = same.candidate.steps
    return f"{text}; {steps} {'step' if steps == 1 else 'steps'} of the same sampler alone have {same.mean_db:.1f} dB."


def _named(found: Calibration) -> dict[str, Accuracy]:
    """Return the candidates of all budgets and the full run, by a name that tells them apart."""
    several = len(found.plans) > 1
    named = {
        f"{NAMES[name]}{f' for {cost:g}' if several else ''}": each
        for cost, best in found.plans.items()
        for name, each in best.items()
    }
    return {**named, "full run": found.full}


def _comparison(found: Calibration, calibrator: Calibrator) -> Comparison | None:
    """Return the pictures of the plans and of what they are compared with; None where there are no pictures."""
    from skipdit_cli.bench.results.html_report import EXACT, name_samples
    from skipdit_cli.reports import make_comparison

    conditions = calibrator.held_out[:SHOWN]
    count = len(conditions)
    if found.exact.images is None:
        return None
    pictures = {EXACT: found.exact.images[:count]}
    for name, each in _named(found).items():
        images = calibrator.sample(each.candidate, count)
        if images is not None:
            pictures[name] = images
    right = next((name for name in pictures if name.startswith("plan")), None)
    return make_comparison(pictures, name_samples(conditions), EXACT, right)


def _plot(found: Calibration) -> Plot:
    """Return the plot of accuracy over cost, with one series for each kind of candidate."""
    from skipdit_cli.reports import Plot, Point, Series
    from skipdit_cli.reports.charts import SHAPES

    kinds = [name for name in NAMES if _candidates(found, name)]
    series = [
        Series(
            NAMES[kind],
            [_point(kind, each, len(found.plans) == 1) for each in _candidates(found, kind)],
            number,
            SHAPES[number % len(SHAPES)],
            joined=len(found.plans) > 1,
        )
        for number, kind in enumerate(kinds)
    ][::-1]  # the plan is drawn last, above those that equal it
    full = Point(found.full.cost, found.full.mean_db, "full run", f"full run: {found.full.mean_db:.1f} dB")
    series.append(Series("full run", [full], hollow=True))
    return Plot(
        "Quality against cost",
        "Each mark is a row of the table. Higher is closer, further left is cheaper.",
        "cost in full forwards (logarithmic)",
        "PSNR to the exact solution, held out (dB)",
        series,
        log_x=True,
        has_front=True,
    )


def _candidates(found: Calibration, kind: str) -> list[Accuracy]:
    """Return the candidates of one kind that are not those of the plans as well."""
    return [
        best[kind]
        for best in found.plans.values()
        if kind in best and (kind == "plan" or best[kind].candidate != best["plan"].candidate)
    ]


def _point(kind: str, each: Accuracy, is_named: bool) -> Point:
    from skipdit_cli.reports import Point

    title = f"{NAMES[kind]}, {each.candidate.describe()}: {each.mean_db:.1f} dB at a cost of {each.cost:.2f}"
    return Point(each.cost, each.mean_db, NAMES[kind] if is_named else f"{each.cost:.3g}", title)


def _schedules(found: Calibration) -> list:
    """Return the full steps of each candidate."""
    from skipdit_cli.reports import Schedule

    return [
        Schedule(name, each.candidate.steps, each.candidate.full_steps, len(each.candidate.full_steps))
        for name, each in _named(found).items()
    ]
