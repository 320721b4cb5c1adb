"""The plots of the study of skip branches."""

from __future__ import annotations

from collections.abc import Mapping

from skipdit_cli.reports import Plot, Point, Series
from skipdit_cli.studies.branch_effect.arm_results import ARMS, REUSE, Results, split_forecasts
from skipdit_cli.studies.branch_effect.cache_grid import LATE_DENSE
from skipdit_cli.studies.branch_effect.differences import Effect


def plot_over_full_steps(results: Results, sampler: str) -> Plot:
    """Return the plot of the difference over late-dense full steps, the mean over N."""
    late = [cell for cell in results.cells if cell.sampler == sampler and cell.rule == LATE_DENSE]
    series = []
    for place, arm in enumerate(("residual", "replace")):
        for colour, forecast in enumerate(results.settings.forecasts):
            counts = sorted({int(cell.count) for cell in late})
            groups = {m: [cell for cell in late if (cell.count, cell.forecast) == (m, forecast)] for m in counts}
            points = _points({m: results.effect(arm, cells) for m, cells in groups.items()})
            series.append(Series(f"{ARMS[arm]}, {forecast}", points, colour, hollow=bool(place), joined=True))
    caption = (
        f"PSNR of a cached run to its own uncached run with skip branches, minus that of vanilla, trained as long "
        f"({results.longest} steps) and with the same cache; mean over N, bars: standard deviation over seeds."
    )
    return Plot(f"What branches add: {sampler}", caption, "full steps", "difference in dB", series)


def _points(effects: Mapping[int, Effect | None]) -> list[Point]:
    known = {x: each for x, each in effects.items() if each is not None}
    return [Point(x, each.mean, title=f"{each} dB", spread=each.spread) for x, each in known.items()]


def plot_over_lengths(results: Results) -> Plot:
    """Return the plot of the difference over the length of training."""
    series = []
    for place, arm in enumerate(("residual", "replace")):
        for colour, (cells, name) in enumerate(zip(split_forecasts(results.cells), ("forecast", REUSE))):
            lengths = results.settings.lengths
            points = _points({length: results.effect(arm, cells, length=length) for length in lengths})
            series.append(Series(f"{ARMS[arm]}, {name}", points, colour, hollow=bool(place), joined=True))
    caption = (
        "PSNR of a cached run to its own uncached run with skip branches, minus that of vanilla, trained equally long "
        "and with the same cache; mean over all caches, bars: standard deviation over seeds."
    )
    return Plot("What branches add over training", caption, "optimizer steps", "difference in dB", series, log_x=True)
