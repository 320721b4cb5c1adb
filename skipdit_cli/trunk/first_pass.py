"""The check of a declared trunk in its first forward, which notices a diffusers that it was not declared for."""

from __future__ import annotations

import torch

from skipdit_cli.errors import UsageError
from skipdit_cli.families.declarations import BlockList


class FirstPass:
    """Checks that the blocks of one forward take and return the streams that are declared for them.

    A forward that ``torch.compile`` traces is not checked.

    Args:
        model_class: The class name of the model, for messages.
    """

    def __init__(self, model_class: str):
        self.model_class = model_class
        self.outputs: tuple[BlockList | None, list] = (None, [])

    def check_inputs(self, listing: BlockList, inputs: list) -> None:
        """Check that a block takes each stream in the place where the block before returned it.

        Raises:
            UsageError: A stream comes from another place.
        """
        before, outputs = self.outputs
        if before is listing:
            for at, stream in enumerate(inputs):
                if any(stream is other for place, other in enumerate(outputs) if place != at and stream is not None):
                    raise self._refusal(listing)

    def check_outputs(self, listing: BlockList, inputs: list, result) -> None:
        """Check that a block returns its streams, each of the shape it had.

        Raises:
            UsageError: The block returns something else.
        """
        outputs = [result] if listing.bare else result
        if isinstance(outputs, torch.Tensor) or len(outputs) != len(listing.streams):
            raise self._refusal(listing)
        outputs = [x for x, name in zip(outputs, listing.streams) if name is not None]
        for x, stream in zip(outputs, inputs):
            if not (x is None or stream is None or (isinstance(x, torch.Tensor) and x.shape == stream.shape)):
                raise self._refusal(listing)
        self.outputs = listing, outputs

    def _refusal(self, listing: BlockList) -> UsageError:
        streams = ", ".join(listing.names)
        return UsageError(
            f"Got {self.model_class} whose {listing.name} do not hand on {streams}; this diffusers is not known yet."
        )
