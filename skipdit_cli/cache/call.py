"""One forward call of a transformer whose cache is on."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

from skipdit_cli.cache.slot import Slot
from skipdit_cli.errors import UsageError


@dataclass
class Call:
    """One forward call of the transformer.

    Args:
        slot: The memory of its branch of guidance; None where the cache stands aside (training).
        reusing: The deep part is left out.
        base: On a reused step what the forecast makes of the slot: a stream each, (batch, tokens, width) or alike.
        shallow: The shallow output at the last full step, in the layout of the boundary; on a full step, of this one.
        fresh: The shallow output of this call.
        captured: On a full step the boundary.
        crossed: The boundary has been passed.
    """

    slot: Slot | None = None
    reusing: bool = False
    base: list = field(default_factory=list)
    shallow: list | None = None
    fresh: list | None = None
    captured: list | None = None
    crossed: bool = False

    @property
    def capturing(self) -> bool:
        return self.slot is not None and not self.reusing

    def check_crossed(self, model: str, layers: int) -> None:
        """Say so where the model itself left out all blocks from the boundary on (skip layer guidance).

        Raises:
            UsageError: On a reused step, which then lacks its deep part.
        """
        if self.slot is None or self.crossed:
            return
        left_out = f"{model} left out its last {layers} of the blocks (skip layer guidance?), where the cache is read"
        if self.reusing:
            raise UsageError(f"{left_out}, in a reused step; leave out other blocks, or take more --cache-layers.")
        warnings.warn(
            f"{left_out}: such calls are never reused; leave out other blocks, or take more --cache-layers.",
            stacklevel=2,
        )
