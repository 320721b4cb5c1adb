"""The memory of one branch of guidance: the boundary at its last full steps."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

from skipdit_cli.cache.forecast import FORECASTS, weights
from skipdit_cli.cache.generation.steps import CountedSteps, ScheduledSteps
from skipdit_cli.cache.policy import CachePolicy

Key: TypeAlias = "str | int | tuple"
"""The key of a slot: its cache context, with a number where it is called again, or a number alone."""


def map_streams(function, *streams: list) -> list:
    """Apply ``function`` to each stream of several lists; the result is None where a stream is None."""
    return [None if any(x is None for x in group) else function(*group) for group in zip(*streams)]


class Slot:
    """The memory of one call in each step: of a merged guidance batch, or of one branch of guidance.

    Args:
        policy: Its forecast says how many full steps are remembered.
        condition: The tensors of the call besides its input and timestep; they tell slots apart.
        signature: The shapes, dtypes, devices and switches (temporal attention, say) that the memory is valid for.
        steps: The steps of the generation, or the slot's own where no scheduler is followed.

    Attributes:
        times: Positions of the remembered full steps, newest first.
        boundary: The boundary at the newest of them: one tensor per stream, or None.
        shallow: The shallow output at the newest of them, where the residual over it is forecast.
        older: What is forecast, at each of the others.
        layout: The structure of the transformer's output, where that is forecast.
    """

    def __init__(
        self,
        policy: CachePolicy,
        condition: list[torch.Tensor],
        signature: list[tuple],
        steps: ScheduledSteps | CountedSteps,
    ):
        self.policy, self.condition, self.signature, self.steps = policy, condition, signature, steps
        self.forget()

    def forget(self) -> None:
        """Forget all steps."""
        self.times: list[float] = []
        self.boundary: list = []
        self.shallow: list | None = None
        self.older: list[list] = []
        self.layout: Any = None

    def remember(self, t: float, boundary: list, shallow: list | None) -> None:
        """Remember a full step.

        Args:
            t: Its position on the axis of the forecast.
            boundary: The streams at the boundary, each (batch, tokens, width) or alike, or None.
            shallow: The shallow output in the layout of the boundary, where the residual over it is forecast.
        """
        count = FORECASTS[self.policy.forecast] - 1
        past = list(zip(self.times, [self._newest(), *self.older])) if count and self.times else []
        # Second-order schedulers visit a timestep twice: the later visit counts.
        past = [(time, value) for time, value in past if time != t][:count]
        self.times = [t, *(time for time, _ in past)]
        self.older = [value for _, value in past]
        self.boundary, self.shallow = boundary, shallow

    def _newest(self) -> list:
        """Return what is forecast, at the newest full step. It is not kept, to save a tensor."""
        return self.boundary if self.shallow is None else map_streams(torch.sub, self.boundary, self.shallow)

    def predict(self, t: float) -> list:
        """Return the boundary at t for an unchanged shallow output: the last boundary plus the forecast's change.

        It is a sum of differences, so that it equals the last boundary bit for bit where t has not moved.
        """
        boundary = list(self.boundary)
        if not self.older:
            return boundary
        newest, shares = self._newest(), weights(self.policy.forecast, self.times, t, self.policy.damping)
        for value, share in zip(self.older, shares[1:]):
            for at, stream in enumerate(boundary):
                if stream is not None:
                    boundary[at] = torch.add(stream, value[at] - newest[at], alpha=share)
        return boundary

    def has_same(self, condition: list[torch.Tensor]) -> bool:
        """Return whether a call has the very tensors of this branch as its condition."""
        return len(condition) == len(self.condition) and all(a is b for a, b in zip(condition, self.condition))

    def has_equal(self, condition: list[torch.Tensor]) -> bool:
        """Return whether a call has the tensors of this branch as its condition, or equal ones. It may wait for a
        device."""
        return len(condition) == len(self.condition) and all(
            a is b or (a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b))
            for a, b in zip(condition, self.condition)
        )

    def tensors(self) -> list[torch.Tensor]:
        """Return every tensor in memory, each once."""
        tensors = [*self.boundary, *(self.shallow or []), *(t for value in self.older for t in value)]
        return list({id(tensor): tensor for tensor in tensors if tensor is not None}.values())


def find_slot(
    slots: dict[Key, Slot], called: set[Key], context: str | None, condition: list[torch.Tensor]
) -> tuple[Key, Slot | None, int]:
    """Find the memory of a call, by its cache context, else by its condition. Several calls of one branch of guidance
    within a step (tiles, say) have one slot each.

    Args:
        slots: The slots by key.
        called: The keys of the slots that were called in this step.
        context: The name of the cache context that the call is made in, or None.
        condition: The tensors of the call that tell branches apart.

    Returns:
        The key, its slot or None if it has none yet, and how many calls of the branch were made in this step before.
    """
    if context is not None:
        repeated = 0
        key: Key = context
        while key in called:
            repeated += 1
            key = (context, repeated)
        return key, slots.get(key), repeated
    for belongs in (Slot.has_same, Slot.has_equal):  # comparing values waits for a device
        for key, slot in slots.items():
            if key not in called and belongs(slot, condition):
                return key, slot, 0
    belongs = Slot.has_same if len(called) < 2 else Slot.has_equal
    repeated = sum(belongs(slots[key], condition) for key in called if key in slots)
    return 1 + max((key for key in slots if isinstance(key, int)), default=-1), None, repeated
