"""The state of one forward of a transformer whose cache is enabled."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

from skipdit_cli.cache.slot import Slot
from skipdit_cli.errors import UsageError


@dataclass
class Call:
    """One forward of the transformer.

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
    """

    slot: Slot | None = None
    is_reused: bool = False
    predicted: list = field(default_factory=list)
    last_shallow: Any = None  # a list, or None
    shallow: Any = None  # a list from unit N on
    boundary: list | None = None
    crossed: bool = False

    def check_crossed(self, model: str, layers: int) -> None:
        """Warn if the model itself left out all blocks from the boundary on (skip layer guidance).

        Args:
            model: The class name of the transformer.
            layers: N.

        Raises:
            UsageError: This is a reused forward, which then lacks its deep part.
        """
        if self.slot is None or self.crossed:
            return
        left_out = f"{model} left out its last {layers} of the blocks (skip layer guidance?), where the cache is read"
        if self.is_reused:
            raise UsageError(f"{left_out}, in a reused step; leave out other blocks, or take more --cache-layers.")
        warnings.warn(
            f"{left_out}: such calls are never reused; leave out other blocks, or take more --cache-layers.",
            stacklevel=2,
        )
