"""The share of one process of ``skipdit sample``: whole batches of the one process that would make all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from skipdit_cli import console
from skipdit_cli.processes import Team
from skipdit_cli.sampling.sample_settings import SampleSettings, count_steps

if TYPE_CHECKING:
    from skipdit_cli.cache import CachePolicy
    from skipdit_cli.sampling.generate import Generated


class Share:
    """The batches that this process makes, of those that are not there yet from an interrupted run.

    Process r of R makes the batches r, r + R, ... A batch is the same whoever makes it, so the files do not depend on
    the number of processes, and a run can be resumed by another number of them. Under context parallelism all
    processes make each batch together, and the main one writes it.

    Args:
        team: The processes of the run.
        batches: All batches, as slices of the samples.
        has: Returns whether the files of a batch are there already; the main process asks.
        steps: Denoising steps of a batch.
        together: Whether all processes make each batch together.

    Attributes:
        total: The denoising steps of all processes.
        writes: Whether this process writes what it makes.
    """

    def __init__(
        self, team: Team, batches: Sequence[slice], has: Callable[[slice], bool], steps: int, together: bool = False
    ):
        self.team, self.writes = team, team.is_main or not together
        missing = team.on_main(lambda: [batch for batch in batches if not has(batch)])
        self.total = steps * len(missing)
        shared = missing if together else team.share(missing)
        self.has, self.own = has, {index for batch in shared for index in range(batch.start, batch.stop)}
        team.is_apart = True

    def leaves_out(self, batch: slice) -> bool:
        """Return whether this process does not make a batch, or a part of one that does not fit into memory."""
        return batch.start not in self.own or self.has(batch)

    def counting(self, advance: console.Advance) -> Callable[[], None]:
        """Return what to call after each denoising step: it advances the progress of all processes.

        Raises:
            ProcessError: Another process has failed or ended.
        """
        if self.team.count == 1:
            return advance
        return lambda: advance(self.team.add_steps(int(self.writes)) - advance.done)


def share_of(team, pipe, settings: SampleSettings, conditions: list, output) -> Share:
    """Return the batches of this process, of those that the output lacks."""
    from skipdit_cli.sampling.generate import batches

    slices = batches(pipe, conditions, settings.batch_size, alone=settings.pipeline.image is not None)
    steps = count_steps(settings.pipeline, settings.num_inference_steps)
    return Share(team, slices, output.has, steps, together=settings.context_parallel is not None)


class Costs:
    """The costs of the batches of all processes.

    Args:
        team: The processes of the run.
    """

    def __init__(self, team: Team):
        self.team = team
        self.batches: list[tuple[int, Generated]] = []
        self.seconds = 0.0, 0.0

    def add(self, batch: slice, part: Generated) -> None:
        """Add a batch of this process."""
        self.batches.append((batch.start, part.without_samples()))

    def collect(self) -> None:
        """Wait for all processes, and take their costs to the main one."""
        shares = self.team.gather(self.batches)
        sums = [[(part.denoise_seconds, part.total_seconds) for _, part in share] for share in shares]
        totals = [tuple(map(sum, zip(*each))) for each in sums if each]
        self.seconds = tuple(map(max, zip(*totals))) if totals else (0.0, 0.0)
        self.batches = sorted((entry for share in shares for entry in share), key=lambda entry: entry[0])

    def joined(self, policy: CachePolicy | None) -> Generated | None:
        """Return the cost of the run, with the seconds of the process that took longest; None if it made no batch.

        Args:
            policy: That of the run.
        """
        from skipdit_cli.sampling.generate import join

        if not self.batches:
            return None
        denoising, total = self.seconds
        return replace(
            join([part for _, part in self.batches], policy), denoise_seconds=denoising, total_seconds=total
        )
