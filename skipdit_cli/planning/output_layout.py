"""The layout of a transformer's output: its last Linear, and the place of each number in what that returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from skipdit_cli.errors import UsageError

BASE = 128
"""Whole numbers up to this one are exact in every precision, so that an index is sent in digits."""


@dataclass(frozen=True)
class OutputLayout:
    """The last Linear of a transformer, and the layout of its output.

    Args:
        module: Its name.
        linear: The Linear.
        rows: Rows (first dimension) of its input for each sample of the batch.
        places: Of the shape of one sample's output (C, ...): the index in the Linear's output for that sample, all its
            rows flattened.
    """

    module: str
    linear: nn.Linear
    rows: int
    places: torch.Tensor


def find_layout(transformer: nn.Module, forward: Callable[..., Any]) -> OutputLayout:
    """Return the layout of a transformer's output.

    Args:
        forward: Runs the transformer on one batch and returns its output; it is called a few times.

    Raises:
        UsageError: The output is no permutation of what the last Linear returns.
    """
    last: list[tuple[nn.Linear, torch.Tensor]] = []

    def note(module, inputs, output) -> None:
        last[:] = [(module, output)]

    linears = {module: name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    with _hooks(linears, note):
        output = forward()
    refused = UsageError(
        f"Got --output-branch for a {type(transformer).__name__}, whose output is not a permutation of what its last "
        "Linear returns; leave the flag out."
    )
    if not last or not isinstance(output, torch.Tensor) or output.ndim < 2:
        raise refused
    linear, flat = last[0]
    index = torch.arange(flat.numel(), device=flat.device).reshape(flat.shape)
    places, scale = torch.zeros(output.shape, dtype=torch.int64, device=output.device), 1
    while scale < flat.numel():
        digits = index // scale % BASE
        with _hooks([linear], lambda module, inputs, out, digits=digits: digits.to(out.dtype)):
            places += forward().round().long() * scale
        scale *= BASE
    batch = len(output)
    per_sample, uneven = divmod(flat.numel(), batch)
    inside = bool((places >= 0).all() and (places < flat.numel()).all())
    if uneven or len(flat) % batch or not inside or not torch.equal(flat.flatten()[places], output):
        raise refused
    places = places - per_sample * torch.arange(batch, device=places.device).view(-1, *[1] * (places.ndim - 1))
    if bool((places != places[:1]).any()) or len(places[0].unique()) != places[0].numel():
        raise refused
    return OutputLayout(linears[linear], linear, len(flat) // batch, places[0])


@contextmanager
def _hooks(modules, hook: Callable[..., Any]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
