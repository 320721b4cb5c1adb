"""The state of one forward of a transformer whose cache is enabled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from skipdit_cli.cache.generation.slot import Slot
from skipdit_cli.errors import UsageError


@dataclass(frozen=True)
class Decision:
    """What a trigger decided in one step.

    Args:
        change: What it measured of each sample, (batch,); None if it could not.
        fired: Whether the threshold made the step full, and not the first step or the limit of reused steps.
    """

    change: torch.Tensor | None
    fired: bool


@dataclass
class Call:
    """One forward of the transformer.

    With the layers (0, 0) the boundary is the output of the transformer, and its tensors are the streams.

    Streams are lists with one tensor each, (batch, tokens, width) or alike, or None.

    Args:
        slot: The memory of its branch of guidance; None where the cache is bypassed (training).
        is_reused: Whether the deep part is left out.
        predicted: In a reused forward, the boundary that ``slot`` predicts.
        last_shallow: The shallow output at the last full step, in the layout of the boundary; in a full forward, that
            of this one.
        shallow: The shallow output of this forward.
        boundary: In a full forward, the streams at the boundary.
        crossed: Whether the boundary has been passed.
        trigger: Decides at unit ``front`` whether this forward is reused, which ``is_reused`` only allows until then;
            None where that is decided.
        decision: What the trigger decided, in the call that it decided in, else None.
    """

    slot: Slot | None = None
    is_reused: bool = False
    predicted: list = field(default_factory=list)
    last_shallow: Any = None  # a list, or None
    shallow: Any = None  # a list from unit N on
    boundary: list | None = None
    crossed: bool = False
    trigger: Any = None  # a Trigger, or None
    decision: Decision | None = None

    @classmethod
    def reusing(cls, slot: Slot) -> Call:
        """Return a reused forward."""
        call = cls(slot, is_reused=True)
        call.take_forecast()
        return call

    def take_forecast(self) -> None:
        """Take from memory what a reused forward needs."""
        slot: Any = self.slot
        self.predicted, self.last_shallow = slot.predict(slot.steps.time), slot.shallow

    def output(self, forward: Callable[[], Any]) -> Any:
        """Return the output of the transformer, which is what is forecast: a full forward runs it.

        Args:
            forward: Runs the transformer.
        """
        slot: Any = self.slot
        self.crossed = True
        if self.is_reused:
            return tree_unflatten(self.predicted, slot.layout)
        output = forward()
        leaves, slot.layout = tree_flatten(output)
        self.boundary = [leaf if isinstance(leaf, torch.Tensor) else None for leaf in leaves]
        return output

    def check_crossed(self, model: str, back: int) -> None:
        """Warn if the model itself left out all blocks from the boundary on (skip layer guidance).

        Args:
            model: The class name of the transformer.
            back: The number of live blocks behind the boundary.

        Raises:
            UsageError: This is a reused forward, which then lacks its deep part.
        """
        if self.slot is None or self.crossed:
            return
        where = f"its last {back or 1} of the blocks (skip layer guidance?)"
        left_out = f"{model} left out {where}, where the cache is read"
        if self.is_reused:
            raise UsageError(f"{left_out}, in a reused step; leave out other blocks, or take more --cache-layers.")
        warnings.warn(
            f"{left_out}: such calls are never reused; leave out other blocks, or take more --cache-layers.",
            stacklevel=2,
        )
