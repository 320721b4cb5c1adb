"""The moving average of trained parameters (EMA)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from diffusers.training_utils import EMAModel

from skipdit_cli.training.distributed.sharding import local_tensor


class MovingAverage:
    """The moving average of parameters by name; those of sharded parameters are sharded alike.

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
            self._copy_to_parameters(map(local_tensor, self.ema.shadow_params))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the parameters hold their averages for a while."""
        if not self.ema:
            yield
            return
        former = [local_tensor(parameter).cpu().clone() for parameter in self.parameters]
        self.apply()
        try:
            yield
        finally:
            self._copy_to_parameters(former)

    def _copy_to_parameters(self, tensors: Iterable[torch.Tensor]) -> None:
        for parameter, tensor in zip(self.parameters, tensors):
            local_tensor(parameter).copy_(tensor)

    @property
    def steps(self) -> int:
        """The number of steps averaged."""
        return self.ema.optimization_step if self.ema else 0

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the averages by name; empty without an average."""
        return dict(zip(self.names, self.ema.shadow_params)) if self.ema else {}

    def set_steps(self, steps: int) -> None:
        """Go on as after so many steps."""
        if self.ema:
            self.ema.optimization_step = steps
