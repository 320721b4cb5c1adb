"""What a cache did: one entry a forward call, and the counts that every run ends with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CacheReport:
    """The counts of one run; ``str()`` is the line every run ends with."""

    steps: int = 0
    reused_steps: int = 0
    blocks_run: int = 0
    blocks_total: int = 0

    @classmethod
    def over(cls, reports: Sequence[CacheReport]) -> CacheReport:
        """The counts of transformers that took turns (Wan 2.2), or of generations that followed one another."""
        return cls(*(sum(counts) for counts in zip(*(vars(report).values() for report in reports))))

    def __str__(self) -> str:
        return f"{self.reused_steps} of {self.steps} steps reused, {self.blocks_run} of {self.blocks_total} blocks run"


class Record:
    """The calls since the scheduler's last ``set_timesteps``, and the counts of those before that nobody has read.

    Args:
        num_blocks, left_out: Blocks of the trunk, and those that a reused call leaves out.
    """

    def __init__(self):
        self.trace: list[str] = []
        self.steps: list[int] = []
        self.earlier, self.read = CacheReport(), False
        self.begin_generation()

    def begin_generation(self) -> None:
        """Further calls are of other steps than those so far."""
        self.first, self.passed = len(self.trace), 1 + max(self.steps, default=-1)

    def begin_trace(self, num_blocks: int, left_out: int) -> None:
        """Start an empty trace; the counts of the last are kept unless they have been read."""
        self.earlier = CacheReport() if self.read else self.report(num_blocks, left_out)
        self.trace, self.steps, self.read = [], [], False
        self.begin_generation()

    def add(self, reused: bool, step: int) -> None:
        """One call has been made in this step of the generation."""
        self.trace.append("reused" if reused else "full")
        self.steps.append(self.passed + step)

    def report(self, num_blocks: int, left_out: int) -> CacheReport:
        """The counts of the trace, and of what is kept."""
        steps = set(self.steps)
        full = {step for step, kind in zip(self.steps, self.trace) if kind == "full"}
        total = len(self.trace) * num_blocks
        run = total - self.trace.count("reused") * left_out
        return CacheReport.over([self.earlier, CacheReport(len(steps), len(steps - full), run, total)])

    def inert(self, plan: Sequence[bool]) -> int:
        """How many steps the generation had, if some that were planned to be reused were run and none was; else 0."""
        steps = [step - self.passed for step in self.steps[self.first :]]
        idle = "reused" not in self.trace[self.first :] and not all(plan[step] for step in steps if step < len(plan))
        return len(set(steps)) if idle else 0
