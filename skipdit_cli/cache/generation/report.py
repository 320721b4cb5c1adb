"""The counts of a cache: how many steps were reused, and how many blocks ran."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from skipdit_cli.cache.generation.call import Decision

MOST_TRACED = 10_000
"""Forwards that a trace without a scheduler has at most, or a step more."""


@dataclass(frozen=True)
class CacheReport:
    """The counts of one run; ``str()`` is the line that every run ends with. ``triggered_steps`` are the full steps
    that a threshold forced."""

    steps: int = 0
    reused_steps: int = 0
    blocks_run: int = 0
    blocks_total: int = 0
    triggered_steps: int = 0

    @classmethod
    def over(cls, reports: Sequence[CacheReport]) -> CacheReport:
        """Return the sum of several reports: of two transformers (Wan 2.2), or of successive generations."""
        return cls(*(sum(counts) for counts in zip(*(vars(report).values() for report in reports))))

    def counts(self, has_threshold: bool = False) -> dict[str, int]:
        """Return the counts by name; the steps that a threshold forced only where there is one."""
        return {name: count for name, count in vars(self).items() if has_threshold or name != "triggered_steps"}

    def __str__(self) -> str:
        line = f"{self.reused_steps} of {self.steps} steps reused, {self.blocks_run} of {self.blocks_total} blocks run"
        return line + f", {self.triggered_steps} full by the threshold" * bool(self.triggered_steps)


class Record:
    """The forwards since the scheduler's last ``set_timesteps``, and the counts of earlier ones not yet reported.

    Attributes:
        trace: "full" or "reused", one per forward.
        steps: The step of each forward, counted on from one generation to the next.
        changes: What a trigger measured in each step: the change of each sample, or None.
        triggered_steps: How many steps it made full.
        is_read: Whether a report has been made since the trace began.
    """

    def __init__(self):
        self.trace: list[str] = []
        self.steps: list[int] = []
        self.changes: list[torch.Tensor | None] = []
        self.triggered_steps = 0
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
        self.changes, self.triggered_steps = [], 0
        self.begin_generation()

    def shorten(self, num_blocks: int, left_out: int) -> None:
        """Begin an empty trace where it has ``MOST_TRACED`` forwards, for nothing else ends it without a scheduler.
        The counts go on. The arguments are those of ``begin_trace``."""
        if len(self.trace) < MOST_TRACED:
            return
        is_read, self.is_read = self.is_read, False
        self.begin_trace(num_blocks, left_out)
        self.is_read = is_read

    def add(self, is_reused: bool, step: int, decision: Decision | None = None) -> None:
        """Add one forward, made in this step of the generation, and what a trigger decided in it."""
        self.trace.append("reused" if is_reused else "full")
        self.steps.append(self.first_step + step)
        if decision is not None:
            self.changes.append(decision.change)
            self.triggered_steps += decision.fired

    @property
    def full_steps(self) -> set[int]:
        """The steps of the trace in which a forward was full."""
        return {step for step, kind in zip(self.steps, self.trace) if kind == "full"}

    def report(self, num_blocks: int, left_out: int) -> CacheReport:
        """Return the counts of the trace, and of what is kept.

        Args:
            num_blocks: L, the blocks of the trunk.
            left_out: The blocks that a reused forward leaves out.
        """
        steps, full = set(self.steps), self.full_steps
        total = len(self.trace) * num_blocks
        run = total - self.trace.count("reused") * left_out
        own = CacheReport(len(steps), len(steps - full), run, total, self.triggered_steps)
        return CacheReport.over([self.earlier, own])

    def warn_if_unused(self, plan: Sequence[bool], threshold: float | None) -> None:
        """Warn if no step of the generation was reused although some of them could be.

        Args:
            plan: One bool per step, True where it must be full.
            threshold: That of the policy, or None.
        """
        steps = [step - self.first_step for step in self.steps[self.first_forward :]]
        was_planned = not all(plan[step] for step in steps if step < len(plan))
        if "reused" in self.trace[self.first_forward :] or not was_planned:
            return
        rule = f"schedule leaves out {plan.count(False)}"
        if threshold is not None:
            rule = f"threshold of {threshold:g} was passed in each"
        warnings.warn(f"Skip-Cache reused none of {len(set(steps))} steps; its {rule}.", stacklevel=3)
