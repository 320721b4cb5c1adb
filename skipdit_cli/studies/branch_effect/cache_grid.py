"""The grid of caches that every model is sampled with: samplers, live blocks, full steps and forecasts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from skipdit_cli.errors import UsageError

if TYPE_CHECKING:
    from skipdit_cli.cache import CachePolicy
    from skipdit_cli.sampling.schedulers import Sampler

EVERY, LATE_DENSE, LEVEL = "every", "late-dense", "level"
"""The rules that place full steps: every K-th, M of them late-dense, and those of ``CachePolicy.level``."""


@dataclass(frozen=True)
class Cell:
    """One cached run.

    Args:
        sampler: ``NAME[:SPACING]@STEPS``, such as ``ddim@50`` and ``dpm++:lu@20``.
        rule: ``EVERY``, ``LATE_DENSE`` or ``LEVEL``.
        count: K, M, or the name of the level.
        layers: N; 0 for a level, which runs no block on a reused step.
        forecast: ``reuse``, ``taylor2:boundary`` or ``taylor2:residual``; that of the level.
    """

    sampler: str
    rule: str
    count: int | str
    layers: int = 0
    forecast: str = LEVEL

    @property
    def name(self) -> str:
        """Its name in tables and results, which no other cell has."""
        depth = "" if self.rule == LEVEL else f" N={self.layers} {self.forecast}"
        return f"{self.sampler} {self.rule} {self.count}{depth}"

    @property
    def family(self) -> tuple[str, str, int, str]:
        """What it shares with the cells that differ in the number of full steps alone."""
        return self.sampler, self.rule, self.layers, self.forecast

    def policy(self) -> CachePolicy:
        """Return its cache."""
        from skipdit_cli.cache import CachePolicy

        if self.rule == LEVEL:
            return CachePolicy.level(str(self.count), parse_sampler(self.sampler)[1])
        forecast, _, target = self.forecast.partition(":")
        rule = {"interval" if self.rule == EVERY else "full_steps": self.count}
        return CachePolicy(self.layers, forecast=forecast, target=target or None, **rule)  # type: ignore[arg-type]


def make_cells(
    samplers: Sequence[str],
    layers: Sequence[int],
    intervals: Sequence[int],
    full_steps: Sequence[int],
    forecasts: Sequence[str],
    levels: Sequence[str] = (),
) -> list[Cell]:
    """Return a cell for every combination, without those that have as many full steps as steps.

    Args:
        samplers, forecasts: As of ``Cell``.
        layers, intervals, full_steps, levels: Values of N, of K, of M, and names of levels.

    Raises:
        UsageError: A sampler is not of this form, or a cache is impossible.
    """
    cells = []
    for sampler in samplers:
        counts = [m for m in full_steps if m < parse_sampler(sampler)[1]]
        rules = [*((EVERY, k) for k in intervals), *((LATE_DENSE, m) for m in counts)]
        cells += [Cell(sampler, *rule, n, forecast) for n in layers for forecast in forecasts for rule in rules]
        cells += [Cell(sampler, LEVEL, level) for level in levels]
    for cell in cells:
        cell.policy()
    return cells


def parse_sampler(text: str) -> tuple[Sampler, int]:
    """Return the sampler and the number of denoising steps of ``NAME[:SPACING]@STEPS``.

    Raises:
        UsageError: The text has another form, or the scheduler or its spacing is unknown.
    """
    from skipdit_cli.sampling.schedulers import Sampler
    from skipdit_cli.sampling.schedulers.make_scheduler import check_name

    start, _, steps = text.partition("@")
    if not steps.isdecimal() or not int(steps):
        raise UsageError(f"Got sampler '{text}' but expected NAME@STEPS or NAME:SPACING@STEPS, such as ddim@50.")
    name, _, spacing = start.partition(":")
    check_name(name)
    return Sampler(name, spacing or None), int(steps)
