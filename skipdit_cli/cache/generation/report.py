"""The counts of a cache: how many steps were reused, and how many blocks ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CacheReport:
    """The counts of one run; ``str()`` is the line that every run ends with."""

    steps: int = 0
    reused_steps: int = 0
    blocks_run: int = 0
    blocks_total: int = 0

    @classmethod
    def over(cls, reports: Sequence[CacheReport]) -> CacheReport:
        """Return the sum of several reports: of two transformers (Wan 2.2), or of successive generations."""
        return cls(*(sum(counts) for counts in zip(*(vars(report).values() for report in reports))))

    def __str__(self) -> str:
        return f"{self.reused_steps} of {self.steps} steps reused, {self.blocks_run} of {self.blocks_total} blocks run"


class Record:
    """The forwards since the scheduler's last ``set_timesteps``, and the counts of earlier ones not yet reported.

    Attributes:
        trace: "full" or "reused", one per forward.
        steps: The step of each forward, counted on from one generation to the next.
        is_read: Whether a report has been made since the trace began.
    """

    def __init__(self):
        self.trace: list[str] = []
        self.steps: list[int] = []
        self.earlier, self.is_read = CacheReport(), False
        self.begin_generation()

    def begin_generation(self) -> None:
        """Count the steps of further forwards as other steps than those so far."""
        self.first_forward, self.first_step = len(self.trace), 1 + max(self.steps, default=-1)

    def begin_trace(self, num_blocks: int, left_out: int) -> None:
        """Begin an empty trace. The counts of the last one are kept unless they have been reported.

        Args:
            num_blocks: L, the blocks of the trunk.
            left_out: The blocks that a reused forward leaves out.
        """
        self.earlier = CacheReport() if self.is_read else self.report(num_blocks, left_out)
        self.trace, self.steps, self.is_read = [], [], False
        self.begin_generation()

    def add(self, is_reused: bool, step: int) -> None:
        """Add one forward, made in this step of the generation."""
        self.trace.append("reused" if is_reused else "full")
        self.steps.append(self.first_step + step)

    def report(self, num_blocks: int, left_out: int) -> CacheReport:
        """Return the counts of the trace, and of what is kept.

        Args:
            num_blocks: L, the blocks of the trunk.
            left_out: The blocks that a reused forward leaves out.
        """
        steps = set(self.steps)
        full = {step for step, kind in zip(self.steps, self.trace) if kind == "full"}
        total = len(self.trace) * num_blocks
        run = total - self.trace.count("reused") * left_out
        return CacheReport.over([self.earlier, CacheReport(len(steps), len(steps - full), run, total)])

    def steps_without_reuse(self, plan: Sequence[bool]) -> int:
        """Return the number of steps of the generation if none was reused although some of them were to be; else 0.

        Args:
            plan: One bool per step, True where full.
        """
        steps = [step - self.first_step for step in self.steps[self.first_forward :]]
        was_planned = not all(plan[step] for step in steps if step < len(plan))
        is_unused = "reused" not in self.trace[self.first_forward :] and was_planned
        return len(set(steps)) if is_unused else 0
