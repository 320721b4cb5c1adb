"""The first look at a declared trunk at work, so that a diffusers it was not declared for is noticed."""

from __future__ import annotations

import torch

from skipdit_cli.errors import UsageError
from skipdit_cli.families.declarations import BlockList


class FirstPass:
    """The first forward of a declared trunk: whether its blocks take and return what is known of them.

    Not looked at where ``torch.compile`` traces.
    """

    def __init__(self, model_class: str):
        self.model_class = model_class
        self.returned: tuple[BlockList | None, list] = (None, [])

    def entered(self, listing: BlockList, given: list) -> None:
        """
        Raises:
            UsageError: A stream is another one of those that the block before returned.
        """
        before, returned = self.returned
        if before is listing:
            for at, stream in enumerate(given):
                if any(stream is other for place, other in enumerate(returned) if place != at and stream is not None):
                    raise self._refusal(listing)

    def left(self, listing: BlockList, given: list, result) -> None:
        """
        Raises:
            UsageError: The block returned other than its streams.
        """
        returned = [result] if listing.bare else result
        if isinstance(returned, torch.Tensor) or len(returned) != len(listing.streams):
            raise self._refusal(listing)
        returned = [x for x, name in zip(returned, listing.streams) if name is not None]
        for x, stream in zip(returned, given):
            if not (x is None or stream is None or (isinstance(x, torch.Tensor) and x.shape == stream.shape)):
                raise self._refusal(listing)
        self.returned = listing, returned

    def _refusal(self, listing: BlockList) -> UsageError:
        streams = ", ".join(listing.names)
        return UsageError(
            f"Got {self.model_class} whose {listing.name} do not hand on {streams}; this diffusers is not known yet."
        )
