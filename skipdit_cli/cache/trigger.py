"""The probe trigger: full steps where the output of the first blocks has changed enough, decided while they run.

It finds the dense part of a run of few steps by itself (DPM-Solver++ in 20 steps of even log-SNR, where the late-dense
rule loses). In 50 steps of DDIM the late-dense rule is 1 to 2 dB closer to the exact solution at the same cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from skipdit_cli.cache.forecast import FORECASTS
from skipdit_cli.cache.generation.call import Call, Decision
from skipdit_cli.cache.generation.slot import Slot
from skipdit_cli.cache.policy import CachePolicy
from skipdit_cli.errors import UsageError
from skipdit_cli.families.pipeline_parts import unwrap_compiled

MOST_REUSED = 6
"""The most reused steps in a row."""
GROWTH = 1.5
"""The most by which the distance between full steps grows from one to the next. A polynomial through full steps that
lie close together is useless far behind them."""
LARGEST_THRESHOLD = 1e9
"""No change passes it, so that only ``MOST_REUSED`` makes steps full."""


class Trigger:
    """The decision whether a step is full, made at unit ``front``, whose input is the shallow output.

    The relative L1 change of the shallow output from each step to the next is summed over the steps since the last
    full one, per sample. A step is full if the largest sum in the batch passes the threshold (TeaCache, arXiv
    2411.19108, sums the change of the first block's input in this way), and after ``MOST_REUSED`` reused steps. For a
    forecast through m full steps the m-th roots of the changes are summed: the best knots of a piecewise polynomial of
    degree m-1 spread the m-th root of the m-th derivative evenly (de Boor, A Practical Guide to Splines, XII).
    Reading that sum is the one operation that waits for the device, once a step. The first call of a step decides for
    all calls of that step, so that the branches of guidance are cached alike.

    Where the tokens are split among processes, all of them measure all tokens, and so decide alike.

    Args:
        policy: Its threshold is the sum that a reused step may reach.
        group: The processes among which the tokens are split; None for one process.

    Attributes:
        is_reused: The decision of this step; None until it is made.
    """

    def __init__(self, policy: CachePolicy, group: Any = None):
        self.group = group
        self.threshold: float = policy.threshold  # type: ignore[assignment]  # a policy without one has no trigger
        self.power = 1 / FORECASTS[policy.forecast]
        self.distances = Distances()
        self.is_reused: bool | None = None
        self.probe: tuple[Slot, torch.Tensor] | None = None
        self.total: torch.Tensor | None = None

    def begin_call(self, slot: Slot, may_be_reused: bool, opens_step: bool) -> Call:
        """Return a call whose decision falls at unit ``front`` if it is the first of its step, else in this moment.

        Args:
            slot: The memory of its branch of guidance.
            may_be_reused: Whether that memory and the plan allow it.
            opens_step: Whether it is the first call of its step.
        """
        if opens_step:
            self.is_reused = None
        if self.is_reused is None:
            return Call(slot, is_reused=may_be_reused, trigger=self)
        return Call.reusing(slot) if may_be_reused and self.is_reused else Call(slot)

    @torch.compiler.disable
    def decide(self, call: Call, shallow: torch.Tensor) -> None:
        """Decide whether a call is full, from the shallow output of this forward.

        Args:
            call: The first call of a step.
            shallow: (batch, tokens, width) or alike.
        """
        slot: Slot = call.slot  # type: ignore[assignment]  # a call without memory has no trigger
        change, fired = self._measure(slot, shallow), False
        self.probe = slot, shallow
        if change is None or not (call.is_reused and self.distances.may_reuse):
            call.is_reused = False
        else:
            self.total = change if self.total is None else self.total + change
            call.is_reused = stays_below(self.total, self.threshold)
            fired = not call.is_reused
        call.trigger, call.decision = None, Decision(change, fired)
        self.is_reused = call.is_reused
        self.distances.add(call.is_reused)
        if call.is_reused:
            call.take_forecast()
        else:
            self.total = None

    def tensors(self) -> list[torch.Tensor]:
        """Return the tensors in memory: the shallow output of the last step."""
        return [] if self.probe is None else [self.probe[1]]

    def _measure(self, slot: Slot, shallow: torch.Tensor) -> torch.Tensor | None:
        """Return the root of each sample's relative L1 change since the last step, or None if another branch of
        guidance was the first call of that step."""
        if self.probe is None or self.probe[0] is not slot or self.probe[1].shape != shallow.shape:
            return None
        last = self.probe[1].flatten(1)
        means = torch.stack([(shallow.flatten(1) - last).float().abs().mean(1), last.float().abs().mean(1)])
        change, size = means if self.group is None else self._over_processes(means)
        return (change / size) ** self.power

    def _over_processes(self, means: torch.Tensor) -> torch.Tensor:
        """Return the mean of the tensors of all processes, the same bits in each."""
        shares = [torch.empty_like(means) for _ in range(torch.distributed.get_world_size(self.group))]
        torch.distributed.all_gather(shares, means, group=self.group)
        return torch.stack(shares).mean(0)


def make_trigger(policy: CachePolicy, transformer) -> Trigger | None:
    """Return the trigger of a policy; None if it has no threshold.

    Args:
        transformer: The model; diffusers' context parallelism may split its tokens among processes.
    """
    if policy.threshold is None:
        return None
    context = getattr(getattr(transformer, "_parallel_config", None), "context_parallel_config", None)
    return Trigger(policy, None if context is None else context._flattened_mesh.get_group())


class Distances:
    """The distances between full steps so far, which limit the next one."""

    def __init__(self):
        self.last, self.reused = MOST_REUSED + 1, 0
        self.has_begun = False

    @property
    def may_reuse(self) -> bool:
        """Whether the next step may be reused."""
        return self.reused < min(MOST_REUSED, math.ceil(GROWTH * self.last) - 1)

    def add(self, is_reused: bool) -> None:
        """Count a step."""
        if is_reused:
            self.reused += 1
            return
        if self.has_begun:
            self.last = self.reused + 1
        self.has_begun, self.reused = True, 0


def stays_below(total: torch.Tensor, threshold: float) -> bool:
    """Return whether no sample passes the threshold; NaN does. It waits for the device."""
    return bool((total <= threshold).all())


def check_not_compiled(model) -> None:
    """Refuse a transformer that is compiled as a whole; blocks that are compiled one by one are no problem.

    Args:
        model: The transformer, or its ``torch.compile`` wrapper.

    Raises:
        UsageError: It is compiled.
    """
    if unwrap_compiled(model) is not model or getattr(model, "_compiled_call_impl", None) is not None:
        raise UsageError(
            "Got a cache threshold for a compiled transformer, in the middle of whose forward it decides; give a "
            "schedule, or compile the blocks alone (compile_repeated_blocks)."
        )


def simulate(changes: Sequence[torch.Tensor | None], threshold: float) -> tuple[bool, ...]:
    """Return the plan that a threshold leads to, one bool per step, True where full.

    Args:
        changes: As of ``SkipCache.changes``. They hardly depend on which steps are full.
        threshold: As of ``CachePolicy``.
    """
    plan: list[bool] = []
    distances, total = Distances(), None
    for change in changes:
        if change is None:
            is_reused = False
        else:
            total = change if total is None else total + change
            is_reused = distances.may_reuse and stays_below(total, threshold)
        distances.add(is_reused)
        total = total if is_reused else None
        plan.append(not is_reused)
    return tuple(plan)
