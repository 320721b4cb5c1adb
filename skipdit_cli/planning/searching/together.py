"""The evaluators of a calibration: in the main process, which searches, and in those that measure for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from skipdit_cli.errors import SkipditError
from skipdit_cli.planning.exact import Exact
from skipdit_cli.planning.searching.evaluate import Evaluator
from skipdit_cli.processes import Team
from skipdit_cli.sampling.pixels import is_pixel_space

HELD_OUT_SEED = 1_000_000
"""The seeds of the samples that plans are reported on lie so far from those that they are searched with."""


@dataclass(frozen=True)
class Evaluators:
    """Makes the evaluators of a calibration: one to search with, then one to report on.

    Each has its exact solution from the main process.

    Args:
        pipe: The pipeline.
        conditions, held_out: One per sample to search with, and to report on.
        seed: The seed of the first sample to search with.
        settings: The settings of ``generate`` that all candidates share.
        team: The processes.
    """

    pipe: Any
    conditions: Sequence[int | str | None]
    held_out: Sequence[int | str | None]
    seed: int
    settings: Mapping[str, Any]
    team: Team = Team()

    def searcher(self, known: dict[str, list[float]] | None = None) -> Evaluator:
        """Return the evaluator to search with.

        Args:
            known: As for ``Evaluator``.
        """
        return self._shared(lambda exact: self._searcher(known, exact))

    def reporter(self) -> Evaluator:
        """Return the evaluator of the held-out samples."""
        return self._shared(self._reporter)

    def _shared(self, make: Callable[[Exact | None], Evaluator]) -> Evaluator:
        """Return an evaluator whose exact solution the main process solves, and the others get."""
        if not self.team.is_main:
            return make(self.team.broadcast())
        evaluator = make(None)
        self.team.broadcast(evaluator.exact)
        return evaluator

    def _searcher(self, known: dict[str, list[float]] | None, exact: Exact | None) -> Evaluator:
        more: dict[str, Any] = {"known": known, "exact": exact, "team": self.team}
        return Evaluator(self.pipe, self.conditions, self.seed, **more, **self.settings)

    def _reporter(self, exact: Exact | None) -> Evaluator:
        decodes = getattr(self.pipe, "vae", None) is not None or is_pixel_space(self.pipe)
        more: dict[str, Any] = {"first": len(self.held_out), "decode": decodes, "exact": exact, "team": self.team}
        evaluator = Evaluator(self.pipe, self.held_out, self.seed + HELD_OUT_SEED, **more, **self.settings)
        evaluator.close()  # no two of these runs begin alike
        return evaluator

    def help(self) -> None:
        """Measure candidates for the main process until it needs no more."""
        self.team.is_apart = True
        for make in (self.searcher, self.reporter):
            evaluator = make()
            tasks: list | None
            while (tasks := self.team.broadcast()) is not None:
                evaluator.measure_share(tasks)
            evaluator.close()

    def dismiss(self) -> None:
        """Let the processes that help go on to the next evaluator, or end."""
        with suppress(SkipditError):  # one of them has ended, which the main process has seen
            self.team.broadcast()
