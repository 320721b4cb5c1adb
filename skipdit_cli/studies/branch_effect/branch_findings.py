"""What the study of skip branches finds: its answer in words made from the numbers, and the pieces of its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from skipdit_cli.studies.branch_effect.arm_results import REUSE, Results, split_forecasts
from skipdit_cli.studies.branch_effect.cache_grid import LATE_DENSE, LEVEL, Cell
from skipdit_cli.studies.branch_effect.differences import EXACT, OWN, Effect, effect, equal_schedule
from skipdit_cli.studies.branch_effect.effect_plots import plot_over_full_steps, plot_over_lengths
from skipdit_cli.studies.branch_effect.effect_tables import (
    budget_table,
    cache_table,
    effect_table,
    length_table,
    score_table,
)
from skipdit_cli.studies.spread import RULE
from skipdit_cli.studies.study import Findings


def find(settings: Any, seeds: Sequence[int], measured: Mapping[str, Any], scores: Mapping[str, Any]) -> Findings:
    """Return the findings of the study."""
    results = Results(settings, seeds, measured, scores)
    lead, details = answer(results)
    plots = [*(plot_over_full_steps(results, sampler) for sampler in settings.samplers), plot_over_lengths(results)]
    return Findings(
        lead,
        details,
        numbers={"caches": measured, "scores": scores, "effects": _effects(results)},
        plots=[plot for plot in plots if any(series.points for series in plot.series)],
        tables=[
            effect_table(results, "By sampler and forecast", lambda cell: (cell.sampler, cell.forecast)),
            effect_table(results, "By live blocks and forecast", lambda cell: (f"N={cell.layers}", cell.forecast)),
            budget_table(results),
            length_table(results),
            score_table(results),
            cache_table(results),
        ],
        notes=_notes(results),
        warnings=[] if len(seeds) > 1 else ["With one seed, 'help' and 'harm' are the sign of one number."],
    )


def answer(results: Results) -> tuple[str, list[str]]:
    """Return the answer in two sentences, and further ones."""
    forecast, reuse = split_forecasts(results.cells)
    shallowest = min((cell.layers for cell in forecast + reuse), key=str)
    shallow = [[cell for cell in cells if cell.layers == shallowest] for cells in (forecast, reuse)]
    ours = [results.effect("residual", cells) for cells in shallow]
    exact = [results.effect("residual", cells, EXACT) for cells in shallow]
    untouched = [results.effect("residual", cells, control="base") for cells in shallow]
    flops = [results.effect("residual", cells, flops=True) for cells in shallow]
    lead = (
        f"After {results.longest} steps of training, at the same full steps and N={shallowest}, skip branches "
        f"{_verdict(ours[0])} a cache that forecasts, against a model without them that is trained equally long: "
        f"{_number(ours[0])} of PSNR to the model's own uncached samples. They {_verdict(ours[1])} one that reuses: "
        f"{_number(ours[1])}. Against the model before all training it is {_number(untouched[0])} and "
        f"{_number(untouched[1])}; at equal FLOPs, as branches cost some, {_number(flops[0])} and {_number(flops[1])}."
    )
    details = [
        f"To the model's own exact solution, in place of its uncached samples: {_number(exact[0])} with a forecast, "
        f"{_number(exact[1])} at reuse.",
        _details_of_depths(results, (forecast, reuse)),
        _details_of_official_form(results, (forecast, reuse)),
        _details_of_samplers(results, forecast),
        _details_of_levels(results),
        *(_training_alone(results, cells, name) for cells, name in zip((forecast, reuse), ("a forecast", "reuse"))),
    ]
    return lead, [text for text in details if text]


def _details_of_depths(results: Results, kinds: Sequence[Sequence[Cell]]) -> str:
    """Return a sentence on all depths together, at an equal schedule and at equal FLOPs."""
    effects = [results.effect("residual", cells, flops=flops) for flops in (False, True) for cells in kinds]
    return (
        f"Over all depths of the cache: {_number(effects[0])} with a forecast, {_number(effects[1])} at reuse; at "
        f"equal FLOPs {_number(effects[2])} and {_number(effects[3])}."
    )


def _details_of_official_form(results: Results, kinds: Sequence[Sequence[Cell]]) -> str:
    """Return a sentence on branches that replace the input of a block, as in the official code."""
    effects = [results.effect("replace", cells) for cells in kinds]
    return (
        f"Branches of the official form, which replace the input of a block, over all depths: {_number(effects[0])} "
        f"with a forecast, {_number(effects[1])} at reuse."
    )


def _verdict(difference: Effect | None) -> str:
    if difference is None:
        return "were not measured with"
    return {1: "help", -1: "harm", 0: "make no difference beyond the spread to"}[difference.sign]


def _number(difference: Effect | None) -> str:
    return "an unknown difference" if difference is None else f"{difference} dB (better in {difference.count} caches)"


def _details_of_samplers(results: Results, forecast: Sequence[Cell]) -> str:
    """Return a sentence on the late-dense forecasts of each sampler."""
    parts = []
    for sampler in results.settings.samplers:
        cells = [cell for cell in forecast if cell.sampler == sampler and cell.rule == LATE_DENSE]
        difference = results.effect("residual", cells)
        if difference is not None:
            parts.append(f"{sampler} {difference} dB")
    return f"With a forecast and late-dense full steps, residual branches add: {', '.join(parts)}." if parts else ""


def _details_of_levels(results: Results) -> str:
    """Return a sentence on the levels, whose reused steps run no block and so no branch."""
    difference = results.effect("residual", [cell for cell in results.cells if cell.rule == LEVEL])
    return (
        ""
        if difference is None
        else f"With the levels, whose reused steps run no block, they add: {_number(difference)}."
    )


def _training_alone(results: Results, cells: Sequence[Cell], name: str) -> str:
    """Return a sentence on what training alone does to the caches of vanilla."""
    base, trained = results.runs("base", 0), results.runs("vanilla", results.longest)
    pairs = [(after, base[at % len(base)]) for at, after in enumerate(trained)]
    difference = effect(pairs, cells, equal_schedule(OWN))
    return "" if difference is None else f"Training vanilla on changes its own caches with {name} by {difference} dB."


def _effects(results: Results) -> dict[str, Any]:
    """Return the effects as JSON: by arm, length and kind of cache, per seed."""
    effects: dict[str, Any] = {}
    for arm in ("residual", "replace"):
        for length in results.settings.lengths:
            for cells, name in zip(split_forecasts(results.cells), ("forecast", REUSE)):
                for measure in (OWN, EXACT):
                    for flops in (False, True):
                        difference = results.effect(arm, cells, measure, flops, length)
                        key = f"{arm} {length} {name} {measure}{' at equal FLOPs' if flops else ''}"
                        effects[key] = difference and {
                            **vars(difference),
                            "mean": difference.mean,
                            "spread": difference.spread,
                        }
    return effects


def _notes(results: Results) -> list[str]:
    settings = results.settings
    share = results.measured[f"caches-residual-{results.longest}-{results.seeds[0]}"]["branches"]
    exact = [each["exact"]["agreement_db"] for each in results.measured.values()]
    least = min((agreement for agreement in exact if agreement is not None), default=settings.exact_db)
    seeds = (
        "each seed has a model of its own from the first step"
        if settings.base_steps
        else "all seeds begin with the same embedded model, so the spread is that of the training on"
    )
    return [
        "Half of a training is stage 1 (branches alone, the trunk frozen), half stage 2 (everything). Vanilla trains "
        "everything in both, with the same data, batch, learning rates and average of weights: the control has more "
        "training of the trunk, not less.",
        "Residual branches begin at 0, so that the model is unchanged at first; replace branches begin with random "
        "weights, as in the official code, for with 0 the output would not depend on the image.",
        f"A forward with branches costs {100 * share:.1f} % more than without. At equal FLOPs, vanilla's value is "
        "interpolated over the logarithm of the cost between caches that differ in their full steps alone; caches "
        "beyond the costliest of vanilla are left out. Where many blocks stay live (N=4), that share of a run buys "
        "many full steps: the table of budgets compares the best caches of any kind instead.",
        f"All runs of all models begin with the same noise, {settings.samples} samples each, so the spread is that of "
        "training and not of noise. Every model has an exact solution of its own; the last two runs of each agree "
        f"within {least:.0f} dB or better.",
        f"Of the training: {seeds}.",
        RULE,
    ]
