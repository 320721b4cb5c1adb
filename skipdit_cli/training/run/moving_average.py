"""The moving average of trained parameters (EMA)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from diffusers.training_utils import EMAModel


class MovingAverage:
    """The moving average of parameters by name.

    Args:
        decay: None keeps no average: every method then leaves the parameters as they are.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], decay: float | None):
        self.names, self.parameters = list(parameters), list(parameters.values())
        self.ema = None if decay is None else EMAModel(self.parameters, decay=decay, foreach=True)

    def update(self) -> None:
        """Average in the parameters of a new step."""
        if self.ema:
            self.ema.step(self.parameters)

    def apply(self) -> None:
        """Copy the averages into the parameters."""
        if self.ema:
            self.ema.copy_to(self.parameters)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the parameters hold their averages for a while."""
        if not self.ema:
            yield
            return
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self.ema.restore(self.parameters)

    @property
    def steps(self) -> int:
        """The number of steps averaged."""
        return self.ema.optimization_step if self.ema else 0

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the averages by name; empty without an average."""
        return dict(zip(self.names, self.ema.shadow_params)) if self.ema else {}

    def load(self, averages: Mapping[str, torch.Tensor], steps: int) -> None:
        """Go back to the averages of a checkpoint."""
        for name, average in self.state_dict().items():
            average.copy_(averages[name])
        if self.ema:
            self.ema.optimization_step = steps
