"""What one branch of guidance remembers: the boundary of its last full steps."""

from __future__ import annotations

import torch

from skipdit_cli.cache.course import Course
from skipdit_cli.cache.forecast import FORECASTS, weights


def each(function, *streams: list) -> list:
    """``function`` over the streams of several lists; None where there is no stream."""
    return [None if any(x is None for x in at) else function(*at) for at in zip(*streams)]


class Slot:
    """The memory of one call of each step (all of a merged guidance batch, or one of its branches).

    Args:
        forecast: Name of the forecast; sets how many full steps are remembered.
        condition: The tensors the call was made with besides its input and timestep; tells slots apart.
        signature: Shapes, dtypes, devices and switches (temporal attention, say) the memory holds good for.
        course: The steps it is called in: the generation's, or its own where no scheduler is followed.
    """

    def __init__(self, forecast: str, condition: list[torch.Tensor], signature: tuple, course: Course):
        self.forecast, self.condition, self.signature, self.course = forecast, condition, signature, course
        self.forget()

    def forget(self) -> None:
        """Remember no step."""
        self.times: list[float] = []
        self.values: list[list] = []
        self.boundary: list = []
        self.shallow: list | None = None

    def remember(self, t: float, boundary: list, shallow: list | None) -> None:
        """Keep a full step's boundary, and its shallow output where the residual over it is the target."""
        self.boundary, self.shallow = boundary, shallow
        keep = FORECASTS[self.forecast] - 1
        value = boundary if shallow is None or keep == 0 else each(torch.sub, boundary, shallow)
        if t in self.times:  # second-order schedulers visit a timestep twice: the later visit stands
            at = self.times.index(t)
            del self.times[at], self.values[at]
        self.times, self.values = [t, *self.times[:keep]], [value, *self.values[:keep]]

    def base(self, t: float) -> list:
        """The prediction at t for an unchanged shallow output: the last boundary plus the forecast's change.

        Written as a sum of differences, so that it is the last boundary to the bit where t has not moved.
        """
        base = list(self.boundary)
        older = weights(self.forecast, self.times, t)[1:]
        for weight, value in zip(older, self.values[1:]):
            base = each(lambda b, v, newest, w=weight: b + w * (v - newest), base, value, self.values[0])
        return base

    def holds(self, condition: list[torch.Tensor]) -> bool:
        """Whether a call is of this branch by its very tensors."""
        return len(condition) == len(self.condition) and all(a is b for a, b in zip(condition, self.condition))

    def matches(self, condition: list[torch.Tensor]) -> bool:
        """Whether a call is of this branch: the same tensors, or equal ones."""
        return len(condition) == len(self.condition) and all(
            a is b or (a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b))
            for a, b in zip(condition, self.condition)
        )

    def tensors(self):
        """Every tensor held, each once."""
        held = [*self.boundary, *(self.shallow or []), *(t for value in self.values for t in value)]
        return list({id(tensor): tensor for tensor in held if tensor is not None}.values())
