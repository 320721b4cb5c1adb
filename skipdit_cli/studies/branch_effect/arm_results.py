"""The numbers of a study of skip branches by arm, length of training and seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from skipdit_cli.studies.branch_effect.cache_grid import LEVEL, Cell, make_cells
from skipdit_cli.studies.branch_effect.differences import OWN, Effect, Runs, effect, equal_flops, equal_schedule

ARMS = {
    "base": "vanilla, as it was",
    "vanilla": "vanilla, trained on",
    "residual": "residual branches",
    "replace": "replace branches",
}
"""The arms by name, as tables show them."""
REUSE = "reuse"


@dataclass(frozen=True)
class Results:
    """The numbers of a study.

    Args:
        settings: Its ``BranchSettings``.
        seeds: The training seeds.
        measured: What ``measure_caches`` returned, by ``caches-MODEL``.
        scores: What ``measure_scores`` returned, by ``scores-MODEL``.
    """

    settings: Any
    seeds: Sequence[int]
    measured: Mapping[str, Any]
    scores: Mapping[str, Any]

    @property
    def cells(self) -> list[Cell]:
        """All caches."""
        return make_cells(**self.settings.grid)

    @property
    def longest(self) -> int:
        """The longest training."""
        return self.settings.lengths[-1]

    def runs(self, arm: str, length: int) -> list[Runs]:
        """Return the runs of an arm, for each seed."""
        return [self.measured[f"caches-{name}"]["cells"] for name in self._names(arm, length)]

    def scores_of(self, arm: str) -> list[Runs]:
        """Return the scores of an arm after its longest training, for each seed."""
        return [self.scores[f"scores-{name}"] for name in self._names(arm, self.longest)]

    def _names(self, arm: str, length: int) -> list[str]:
        """Return the names of the models of an arm, one for each seed; all arms begin with one if it is embedded."""
        if arm != "base":
            return [f"{arm}-{length}-{seed}" for seed in self.seeds]
        return [f"base-{seed}" for seed in self.seeds] if self.settings.base_steps else ["base"]

    def effect(
        self,
        arm: str,
        cells: Iterable[Cell],
        measure: str = OWN,
        flops: bool = False,
        length: int = 0,
        control: str = "vanilla",
    ) -> Effect | None:
        """Return the effect of an arm against a control, the vanilla model that is trained equally long.

        Args:
            cells: The caches.
            control: Another arm to compare with.
            measure: ``OWN`` or ``EXACT``.
            flops: Whether at equal FLOPs, in place of an equal schedule.
            length: The training; the longest if 0.
        """
        length = length or self.longest
        pairs = list(zip(self.runs(arm, length), cycle(self.runs(control, length))))  # all seeds may share one base
        return effect(pairs, cells, equal_flops(measure, self.cells) if flops else equal_schedule(measure))


def split_forecasts(cells: Iterable[Cell]) -> tuple[list[Cell], list[Cell]]:
    """Return the caches that forecast with live blocks, and those that reuse."""
    live = [cell for cell in cells if cell.rule != LEVEL]
    return [c for c in live if c.forecast != REUSE], [c for c in live if c.forecast == REUSE]
