"""The findings of the study of efficiency: its answer in words, its plots and its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean

from skipdit_cli.reports import Column, Plot, Series, Table
from skipdit_cli.studies.compute.curves import seed_points
from skipdit_cli.studies.compute.training_pair import MEASURES, SKIP, VANILLA, VARIANTS, Pair
from skipdit_cli.studies.spread import RULE, sign_beyond_spread, spread
from skipdit_cli.studies.study import Findings

PAPER = 4.4
"""7.0 million steps of DiT-XL/2 over 1.6 million of Skip-DiT."""
GIGA = 1e9
METRICS = {"loss": "held-out loss", "fid": "FID"}
DIGITS = {"loss": 4, "fid": 2}
AXES = {"steps": "training steps", "seconds": "training seconds", "macs": "training GFLOPs (multiply-adds)"}
NOTE = (
    "The ratio r is how many times the training of Skip-DiT the vanilla model needs for the same quality, the one "
    "that the worse of the two has in the end; the training of the other is interpolated over the logarithm of the "
    "steps between checkpoints, and the best so far counts. Before the first checkpoint nothing is measured, so r "
    "and 1/r by steps are at most the steps of the last checkpoint over those of the first. r above 1 speaks for "
    "Skip-DiT. Both models of a seed begin with the same trunk and see the same samples, noise and timesteps. "
    "Seconds are the median of a step, both models measured in turn in one process, times the steps."
)


def find(pairs: Sequence[Pair]) -> Findings:
    """Return what trainings with and without skip branches show."""
    metrics = {pair.name: [each for each in METRICS if each in pair.curves[SKIP][0][0]] for pair in pairs}
    ratios = {
        pair.name: {
            metric: {measure: pair.ratios(metric, measure) for measure in MEASURES} for metric in metrics[pair.name]
        }
        for pair in pairs
    }
    equal = {
        pair.name: {
            metric: {measure: pair.at_equal(metric, measure) for measure in MEASURES} for metric in metrics[pair.name]
        }
        for pair in pairs
    }
    sentences = [
        _ratio_words(pair, metric, ratios[pair.name][metric]) for pair in pairs for metric in metrics[pair.name]
    ]
    details = [*sentences[1:], *(_cost_words(pair) for pair in pairs)]
    numbers = {"pairs": [asdict(pair) for pair in pairs], "ratios": ratios, "at_equal": equal}
    plots = [
        _plot(pair, metric, measure)
        for pair in pairs
        for metric in metrics[pair.name]
        for measure in ("steps", "seconds")
    ]
    tables = [_ratio_table(pairs, ratios), _equal_table(equal)]
    return Findings(sentences[0], details, numbers, plots=plots, tables=tables, notes=[NOTE, RULE])


def _ratio_words(pair: Pair, metric: str, ratios: dict[str, list[float]]) -> str:
    """Return how much training the vanilla model needs, and whether the difference is beyond the spread."""
    if not pair.is_told(metric):
        return (
            f"On {pair.name}, the {METRICS[metric]} says nothing of the training that a quality needs: in some seed "
            "both models have the quality that they are compared at from their first checkpoint on."
        )
    steps = ratios["steps"]
    mean, sign = fmean(steps), sign_beyond_spread([ratio - 1 for ratio in steps])
    if len(steps) == 1:
        verdict = f"one seed, so nothing says the spread; the paper claims {PAPER} times the steps"
    elif not sign:
        verdict = "no difference beyond the spread"
    elif sign > 0:
        verdict = "Skip-DiT needs less"
        verdict += f", but the paper claims {PAPER} times the steps" if mean < PAPER else ", as the paper claims"
    else:
        verdict = f"Skip-DiT needs more, where the paper claims {PAPER} times the steps for the vanilla model"
    return (
        f"On {pair.name}, by the {METRICS[metric]}, the vanilla model needs {spread(steps, 2)} times the steps of "
        f"Skip-DiT for the same quality, {spread(ratios['seconds'], 2)} times the time and "
        f"{spread(ratios['macs'], 2)} times the FLOPs: {verdict}."
    )


def _cost_words(pair: Pair) -> str:
    """Return what the branches add to a training step."""
    added = [100 * (pair.step_cost[name][SKIP] / pair.step_cost[name][VANILLA] - 1) for name in ("macs", "seconds")]
    return (
        f"A training step with branches takes {added[0]:+.1f} % FLOPs and {added[1]:+.1f} % time on {pair.name}, "
        "compared with one without."
    )


def _plot(pair: Pair, metric: str, measure: str) -> Plot:
    cost = {name: value / (GIGA if measure == "macs" else 1) for name, value in pair.step_cost[measure].items()}
    series = [
        Series(
            title,
            seed_points(pair.curves[name], metric, DIGITS[metric], cost[name]),
            at,
            ("circle", "square")[at],
            joined=True,
        )
        for at, (name, title) in enumerate(VARIANTS.items())
    ]
    return Plot(
        f"{pair.name}: {METRICS[metric]} against {AXES[measure]}",
        "At the checkpoints of the averaged weights; mean and spread over seeds.",
        AXES[measure],
        METRICS[metric],
        series,
        log_x=True,
        log_y=True,
    )


def _ratio_table(pairs: Sequence[Pair], ratios: dict) -> Table:
    columns = [
        Column("model", "its preset, and what its quality is measured by", numeric=False),
        *(
            Column(f"r at {title}", f"training of DiT over that of Skip-DiT, in {AXES[m]}")
            for m, title in MEASURES.items()
        ),
        Column("paper", "r of the paper, for DiT-XL/2 by steps"),
    ]
    rows = []
    for pair in pairs:
        for metric, values in ratios[pair.name].items():
            cells = [spread(values[measure], 2) if pair.is_told(metric) else "-" for measure in MEASURES]
            rows.append([f"{pair.name}, {METRICS[metric]}", *cells, f"{PAPER}"])
    return Table("How many times the training of Skip-DiT does DiT need?", columns, rows)


def _equal_table(equal: dict) -> Table:
    columns = [
        Column("model", "its preset, and what its quality is measured by", numeric=False),
        Column("at", "what both models have spent alike", numeric=False),
        *(Column(title, "mean and spread over seeds; lower is better") for title in VARIANTS.values()),
        Column("difference", "Skip-DiT less DiT, seed by seed"),
    ]
    rows = []
    for name, metrics in equal.items():
        for metric, measures in metrics.items():
            for measure, values in measures.items():
                if values is None:
                    rows.append([f"{name}, {METRICS[metric]}", MEASURES[measure], *["-"] * (len(VARIANTS) + 1)])
                    continue
                differences = [skip - vanilla for vanilla, skip in zip(values[VANILLA], values[SKIP])]
                cells = [spread(each, DIGITS[metric]) for each in (*values.values(), differences)]
                rows.append([f"{name}, {METRICS[metric]}", MEASURES[measure], *cells])
    return Table("Quality at equal steps, clock and FLOPs", columns, rows)
