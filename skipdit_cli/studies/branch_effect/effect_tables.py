"""The tables of the study of skip branches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from skipdit_cli.reports import Column, Table
from skipdit_cli.studies.branch_effect.arm_results import ARMS, REUSE, Results, split_forecasts
from skipdit_cli.studies.branch_effect.cache_grid import Cell
from skipdit_cli.studies.branch_effect.differences import EXACT, OWN, Effect, best_within
from skipdit_cli.studies.spread import spread

SCORES = {"fid": 2, "kid": 4, "agreement": 3}
"""The scores, and the digits that a table shows of each."""


def _groups(cells: Iterable[Cell], key: Callable[[Cell], tuple[str, str]]) -> dict[tuple[str, str], list[Cell]]:
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(key(cell), []).append(cell)
    return groups


def effect_table(results: Results, title: str, key: Callable[[Cell], tuple[str, str]]) -> Table:
    """Return the table of the differences of groups of caches; ``key`` returns the group of a cache."""
    rows = []
    for arm in ("residual", "replace"):
        for group, cells in _groups(results.cells, key).items():
            differences = {
                (measure, flops): results.effect(arm, cells, measure, flops)
                for measure in (OWN, EXACT)
                for flops in (False, True)
            }
            own = differences[OWN, False]
            rows.append([ARMS[arm], *group, "-" if own is None else own.count, *map(_cell, differences.values())])
    columns = [
        Column("model", "With skip branches, minus vanilla that is trained equally long.", numeric=False),
        Column("caches", "What the caches have in common.", numeric=False),
        Column("forecast", "How a reused step predicts the feature.", numeric=False),
        Column("better", "Caches whose PSNR to the uncached run is higher with branches."),
        Column("own", "Difference in dB of the PSNR to the uncached run of the same model, at the same full steps."),
        Column("own, FLOPs", "The same at equal FLOPs: vanilla may spend those of the branches on full steps."),
        Column(
            "exact", "Difference in dB of the PSNR to the exact solution of the same model, at the same full steps."
        ),
        Column("exact, FLOPs", "The same at equal FLOPs."),
    ]
    return Table(f"{title}, after {results.longest} steps", columns, rows)


def _cell(difference: Effect | None) -> str:
    return "-" if difference is None else str(difference)


def length_table(results: Results) -> Table:
    """Return the table of the differences by length of training."""
    rows = []
    for arm in ("residual", "replace"):
        for length in results.settings.lengths:
            for cells, name in zip(split_forecasts(results.cells), ("forecast", REUSE)):
                own = results.effect(arm, cells, length=length)
                exact = results.effect(arm, cells, EXACT, length=length)
                count = "-" if own is None else own.count
                rows.append([ARMS[arm], f"{length}", name, count, _cell(own), _cell(exact)])
    columns = [
        Column("model", "With skip branches, minus vanilla that is trained equally long.", numeric=False),
        Column("training", "Optimizer steps of both stages."),
        Column("caches", "Those that forecast, or those that reuse.", numeric=False),
        Column("better", "Caches whose PSNR to the uncached run is higher with branches."),
        Column("own", "Difference in dB of the PSNR to the uncached run of the same model."),
        Column("exact", "Difference in dB of the PSNR to the exact solution of the same model."),
    ]
    return Table("By length of training", columns, rows)


def score_table(results: Results) -> Table:
    """Return the table of the scores of all arms after the longest training, with the cost of each run."""
    rows = []
    for name in results.scores_of("vanilla")[0]:
        for arm, title in ARMS.items():
            runs = [each[name] for each in results.scores_of(arm)]
            cells = [_spread([run[key] for run in runs], digits) for key, digits in SCORES.items()]
            costs = [caches[name]["forwards"] for caches in results.runs(arm, results.longest) if name in caches]
            rows.append([name, title, _spread(costs[:1]), *cells])
    columns = [
        Column("run", "The sampler, and the cache.", numeric=False),
        Column("model", "The arm of the study.", numeric=False),
        Column("cost", "Multiply-adds of the run, in full forwards of vanilla."),
        Column("FID", "Frechet distance of the features of samples and real images; lower is better."),
        Column("KID", "Kernel distance of the same features, which has no bias; lower is better."),
        Column("agreement", "Share of samples that the network classifies as their class label."),
    ]
    return Table(f"Scores of {results.settings.score_samples} samples, after {results.longest} steps", columns, rows)


def _spread(values: Sequence[float | None], digits: int = 1) -> str:
    known = [value for value in values if value is not None]
    return spread(known, digits) if known else "-"


def cache_table(results: Results) -> Table:
    """Return the table of all caches after the longest training, with their cost in forwards without branches."""
    runs = {arm: results.runs(arm, results.longest) for arm in ARMS}
    rows = []
    for cell in results.cells:
        values = {arm: [run[cell.name] for run in each] for arm, each in runs.items()}
        costs = [_spread(sorted({run["forwards"] for run in values[arm]} - {None})) for arm in ("vanilla", "residual")]
        own = [_spread([run[OWN] for run in values[arm]]) for arm in ARMS]
        exact = [_spread([run[EXACT] for run in values[arm]]) for arm in ("vanilla", "residual", "replace")]
        difference = results.effect("residual", [cell])
        rows.append([cell.name, *costs, *own, _cell(difference), *exact])
    columns = [
        Column(
            "cache", "Sampler and steps, rule and number of full steps, live blocks N, forecast and its target.", False
        ),
        Column("cost", "Multiply-adds of a run of vanilla, in full forwards of vanilla."),
        Column("cost, branches", "Those of a run with branches, in the same unit."),
        *(Column(f"own: {title}", "PSNR in dB to the uncached run of the same model.") for title in ARMS.values()),
        Column("difference", "Residual branches minus vanilla, trained on, by seed."),
        *(
            Column(f"exact: {ARMS[arm]}", "PSNR in dB to the exact solution of the same model.")
            for arm in ("vanilla", "residual", "replace")
        ),
    ]
    return Table(f"Every cache, after {results.longest} steps", columns, rows)


def budget_table(results: Results) -> Table:
    """Return the table of the best cache of each arm, of whatever kind, within each budget of FLOPs."""
    rows = []
    runs = {arm: results.runs(arm, results.longest) for arm in ("vanilla", "residual", "replace")}
    for sampler in results.settings.samplers:
        cells = [cell for cell in results.cells if cell.sampler == sampler]
        for budget in results.settings.budgets:
            for measure, name in ((OWN, "own"), (EXACT, "exact")):
                best = {arm: [best_within(run, cells, budget, measure) for run in each] for arm, each in runs.items()}
                pairs = [(ours, theirs) for ours, theirs in zip(best["residual"], best["vanilla"])]
                gains = [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
                gain = spread(gains, 2, "+") if len(gains) == len(pairs) else "-"
                rows.append([sampler, f"{budget}", name, *map(_spread, best.values()), gain])
    columns = [
        Column("sampler", "The sampler and its denoising steps.", numeric=False),
        Column("budget", "Cost of a run, in full forwards of vanilla."),
        Column("PSNR to", "own: the uncached run of the same model; exact: its exact solution.", numeric=False),
        *(Column(ARMS[arm], "PSNR in dB of the best cache within the budget, of any kind.") for arm in runs),
        Column("difference", "Residual branches minus vanilla, trained on, by seed."),
    ]
    return Table(f"The best cache within a budget of FLOPs, after {results.longest} steps", columns, rows)
