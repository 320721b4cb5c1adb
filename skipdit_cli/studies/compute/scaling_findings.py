"""The findings of the study of scaling: its answer in words, its plots and its tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, geometric_mean
from typing import Any

from skipdit_cli import console
from skipdit_cli.reports import Column, Plot, Point, Series, Table
from skipdit_cli.studies.compute.model_grid import (
    Model,
    best_at_budgets,
    correlations,
    sampling_pairs,
    training_pairs,
)
from skipdit_cli.studies.spread import half_width, spread
from skipdit_cli.studies.study import Findings

GIGA = 1e9
SHAPES = ("circle", "square", "diamond", "triangle", "star")
METRICS = {"fid": "FID", "loss": "held-out loss"}
DIGITS = {"fid": 2, "loss": 4}
STRONG = -0.8
"""The correlation below which a claim is said to hold."""
SATURATED = 2.0
"""The FID is called saturated where that of the median model is below this many times that of real samples."""
NOTE = (
    "FLOPs are counted as in the paper: multiply-adds of one forward without guidance, with torch's FlopCounterMode. "
    "Training compute is FLOPs x batch x steps x 3, sampling compute is FLOPs x denoising steps. Qualities are "
    "those of the averaged weights (EMA). The held-out loss is the squared error of the predicted noise on samples "
    "that no model was trained on, with the same noise and timesteps for all models."
)


def find(models: Sequence[Model], real: Mapping[str, float], steps: int) -> Findings:
    """Return what a grid of models shows.

    Args:
        models: The models, by their cost.
        real: The scores of held-out real samples; empty where no samples were scored.
        steps: The denoising steps of the samples that were scored over training.
    """
    metrics = ["fid", "loss"] if real else ["loss"]
    correlated = {metric: correlations(models, metric) for metric in metrics}
    saturated = bool(real) and _median_fid(models) < SATURATED * real["fid"]
    metric = "loss" if saturated or not real else "fid"
    unit = _training_unit(models)
    budgets, trained, pairs = best_at_budgets(models, metric), training_pairs(models, metric), sampling_pairs(models)
    lead = _scaling_words(correlated[metric], METRICS[metric], len(models))
    details = [_budget_words(budgets, trained, METRICS[metric], unit)]
    if real:
        details += [_sampling_words(pairs), _real_words(real, models, saturated)]
        other = "fid" if saturated else "loss"
        if correlated[other]:
            details.append(
                f"The correlation of log GFLOPs with the {METRICS[other]} is {spread(correlated[other], 2)}."
            )
    plots = [plot for each in metrics for plot in (_forward_plot(models, each), _training_plot(models, each))]
    if real:
        plots.insert(2, _sampling_plot(models))
    numbers = {
        "models": {model.name: asdict(model) for model in models},
        "correlation_with_log_gflops": correlated,
        "best_at_training_compute": budgets,
        "training_pairs": trained,
        "sampling_pairs": pairs,
        "held_out_real_samples": real,
    }
    tables = [_model_table(models, metrics, unit), _budget_table(budgets, metric, unit)]
    steps_note = f"FID over training is that of samples of {steps} denoising steps without guidance." if real else ""
    return Findings(lead, details, numbers, plots=plots, tables=tables, notes=[NOTE, *filter(None, [steps_note])])


def _median_fid(models: Sequence[Model]) -> float:
    return sorted(fmean(model.last("fid")) for model in models)[len(models) // 2]


def _scaling_words(values: Sequence[float], metric: str, count: int) -> str:
    """Return whether quality follows the compute of a forward.

    Args:
        values: The correlations, one for each seed; empty if there are none.
        count: The number of models.
    """
    claim = "The more compute a forward takes, the better is the model, the paper says."
    if not values:
        return f"{claim} Fewer than three amounts of compute are too few to say whether this holds here."
    mean, width = fmean(values), half_width(values)
    if mean + width >= 0:
        verdict = "This does not hold here"
    else:
        verdict = "This holds here" if mean < STRONG else "This holds here as a tendency only"
    return (
        f"{claim} {verdict}: over {count} models, the correlation of log GFLOPs with the {metric} is "
        f"{spread(values, 2)} (-1 is perfect)."
    )


def _budget_words(
    budgets: Sequence[Mapping[str, Any]],
    pairs: Sequence[Mapping[str, Any]],
    metric: str,
    unit: tuple[float, str],
) -> str:
    """Return whether the larger models are better at equal training compute, and which one is best at each budget."""
    if not pairs:
        return "No two models share a range of training compute, so nothing is said of equal training compute."
    larger, smaller = (sum(pair["larger_is_better"] == share for pair in pairs) for share in (1, 0))
    scale, name = unit
    listed = ", ".join(f"{budget['best']} at {_number(budget['training_macs'] / scale)}" for budget in budgets)
    best = (
        f" The model with the best {metric} at a budget of training {name} is {listed}; a budget has only the models "
        "with checkpoints on both sides of it, so the smallest cannot lead at the largest budgets."
    )
    return (
        "At equal training compute (figure 9 says that small models trained longer fall behind): of "
        f"{console.count(len(pairs), 'pair')} of models, compared by {metric} at the most compute that both have "
        f"spent, the larger one is better in "
        f"every seed in {larger}, and the smaller one in {smaller}.{best if listed else ''}"
    )


def _sampling_words(pairs: Sequence[Mapping[str, Any]]) -> str:
    """Return whether more sampling steps make up for a smaller model."""
    if not pairs:
        return "No two models share a range of sampling compute, so nothing is said of more sampling steps."
    behind = sum(pair["stays_behind"] == 1 for pair in pairs)
    ahead = sum(pair["stays_behind"] == 0 for pair in pairs)
    holds = "sometimes"
    if behind > len(pairs) / 2:
        holds = "do not" if behind == len(pairs) else "mostly do not"
    elif ahead > len(pairs) / 2:
        holds = "mostly"
    return (
        f"More sampling steps {holds} make up for a smaller model here (figure 10 says they do not): of "
        f"{console.count(len(pairs), 'pair')} in which the larger model is the better one, in {behind} the smaller "
        "one stays behind in every seed, at its best number of steps, against the larger one at no more sampling "
        "compute; in "
        f"{ahead} it is ahead in every seed."
    )


def _real_words(real: Mapping[str, float], models: Sequence[Model], saturated: bool) -> str:
    best = min(fmean(model.last("fid")) for model in models)
    text = f"Held-out real samples have an FID of {real['fid']:.2f}, the best model {best:.2f}"
    return (
        f"{text}: the FID is saturated at this size, so the answer is by the held-out loss."
        if saturated
        else f"{text}."
    )


def _number(value: float) -> str:
    """Return an amount of compute with three digits or, where it is large, as a whole number."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _unit(compute: Iterable[float]) -> tuple[float, str]:
    """Return the unit of amounts of compute: GFLOPs, or MFLOPs where their geometric mean is below 1 GFLOP."""
    return (GIGA, "GFLOPs") if geometric_mean(compute) >= GIGA else (GIGA / 1000, "MFLOPs")


def _training_unit(models: Sequence[Model]) -> tuple[float, str]:
    """Return the unit of the compute of whole trainings."""
    return _unit(model.training_macs(model.curves[0][-1]["step"]) for model in models)


def _forward_plot(models: Sequence[Model], metric: str) -> Plot:
    scale, unit = _unit(model.macs for model in models)
    points = [
        Point(
            model.macs / scale,
            fmean(values),
            model.name,
            f"{model.name}: {spread(values, DIGITS[metric])}",
            half_width(values),
        )
        for model in models
        for values in [model.last(metric)]
    ]
    return Plot(
        f"{_title(metric)} against compute per forward",
        "As figure 8 of the paper: each model at the end of training, with the spread over seeds.",
        f"{unit} per forward",
        _title(metric),
        [Series("models", points, 0)],
        log_x=True,
    )


def _training_plot(models: Sequence[Model], metric: str) -> Plot:
    scale, unit = _training_unit(models)

    def curve(model: Model) -> list[Point]:
        rows = zip(*model.curves)
        return [
            Point(model.training_macs(row[0]["step"]) / scale, fmean(each[metric] for each in row)) for row in rows
        ]

    return Plot(
        f"{_title(metric)} against training compute",
        "As figure 9 of the paper: each model at its checkpoints, FLOPs x batch x steps x 3; means over seeds.",
        f"training {unit}",
        _title(metric),
        _series(models, curve),
        log_x=True,
        log_y=True,
    )


def _sampling_plot(models: Sequence[Model]) -> Plot:
    scale, unit = _unit(model.macs * max(model.sampling[0]) for model in models)

    def curve(model: Model) -> list[Point]:
        steps = sorted(model.sampling[0])
        return [
            Point(model.macs * n / scale, fmean(values), title=f"{model.name}, {n} steps", spread=half_width(values))
            for n in steps
            for values in [[each[n] for each in model.sampling]]
        ]

    return Plot(
        "FID against sampling compute",
        "As figure 10 of the paper: each model at several numbers of denoising steps, FLOPs x steps.",
        f"sampling {unit} per image",
        "FID",
        _series(models, curve),
        log_x=True,
        log_y=True,
    )


def _series(models: Sequence[Model], points: Callable[[Model], Iterable[Point]]) -> list[Series]:
    """Return one joined series for each model, all of them told apart by colour and shape."""
    return [
        Series(model.name, list(points(model)), at, SHAPES[at % len(SHAPES)], joined=True)
        for at, model in enumerate(models)
    ]


def _model_table(models: Sequence[Model], metrics: Sequence[str], unit: tuple[float, str]) -> Table:
    scale, flops = _unit(model.macs for model in models)
    training_scale, training_flops = unit
    columns = [
        Column("model", "the point of the sweep", numeric=False),
        Column("parameters", "parameters of the model, in millions"),
        Column(flops, "multiply-adds of a forward of one sample, as the paper counts"),
        Column(f"training {training_flops}", "multiply-adds of a forward x batch x steps x 3"),
        *(Column(METRICS[metric], "at the end of training, mean and spread over seeds") for metric in metrics),
    ]
    rows = [
        [
            model.name,
            f"{model.parameters / 1e6:.3f} M",
            f"{model.macs / scale:.5g}",
            _number(model.training_macs(model.curves[0][-1]["step"]) / training_scale),
            *(spread(model.last(metric), DIGITS[metric]) for metric in metrics),
        ]
        for model in models
    ]
    return Table("Models", columns, rows)


def _budget_table(budgets: Sequence[Mapping[str, Any]], metric: str, unit: tuple[float, str]) -> Table:
    scale, flops = unit
    columns = [
        Column(f"training {flops}", "the budget"),
        Column("best model", "the model with the best mean at that budget, by interpolation over its curve", False),
        Column(METRICS[metric], "of that model at that budget, mean and spread over seeds"),
        Column("second", "the next best model", numeric=False),
        Column(f"{METRICS[metric]} of the second", "mean and spread over seeds"),
    ]
    rows = []
    for budget in budgets:
        order = sorted(budget["values"], key=lambda name: fmean(budget["values"][name]))
        cells = [cell for name in order[:2] for cell in (name, spread(budget["values"][name], DIGITS[metric]))]
        rows.append([_number(budget["training_macs"] / scale), *cells, *["-"] * (4 - len(cells))])
    return Table("The best model at equal training compute", columns, rows)


def _title(metric: str) -> str:
    name = METRICS[metric]
    return name[0].upper() + name[1:]
