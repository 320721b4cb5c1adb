"""What one forward of a trunk keeps while it runs: it belongs to that call, and so to its thread."""

from __future__ import annotations

import threading

import torch

from skipdit_cli.trunk.first_pass import FirstPass
from skipdit_cli.trunk.interpose import Interposed


class ForwardState:
    """What the units of one forward leave for those after them.

    Args:
        last: The unit that was entered last; -1 before the first.
        first_pass: The look at a declared trunk at work, in its first forward.
    """

    def __init__(self, last: int = -1, first_pass: FirstPass | None = None):
        self.first_pass = first_pass
        self.begin(last)

    def begin(self, last: int = -1) -> None:
        self.last = last
        self.tokens = 0  # of the stream that branches join, where it is alone
        self.sources: dict[int, torch.Tensor] = {}
        self.kept_at: dict[int, int] = {}  # the unit whose input a source is


class ForwardStates:
    """The forwards of one trunk that are under way: one a thread (one within another is put in front of it).

    ``torch.compile`` knows no threads while it traces a forward, and leaves nothing of what it traced behind: there it
    is ``traced`` that everything is noted on.
    """

    def __init__(self):
        self.traced = ForwardState()
        self.of_thread = threading.local()

    @property
    def current(self) -> ForwardState | None:
        return getattr(self.of_thread, "state", None)

    @current.setter
    def current(self, state: ForwardState | None) -> None:
        self.of_thread.state = state

    def at(self, index: int, opens_unit: bool, first_pass: FirstPass | None) -> ForwardState:
        """The state of the forward that a block of unit ``index`` is of."""
        if torch.compiler.is_dynamo_compiling():
            if index == 0 and opens_unit:
                self.traced.begin()
            return self.traced
        state = self.current
        if state is None or (opens_unit and index <= state.last):  # not called through the transformer's own forward
            state = self.current = ForwardState(index - 1, first_pass)
        return state


class TrunkForward(Interposed):
    """A transformer's forward, with a state of its own for each call, which ends with it however it ends."""

    def __init__(self, inner, trunk):
        super().__init__(inner)
        self.trunk = trunk

    def __call__(self, *args, **kwargs):
        states = self.trunk.states
        if not self.serving:
            return self.inner(*args, **kwargs)
        if torch.compiler.is_dynamo_compiling():
            states.traced.begin()
            return self.inner(*args, **kwargs)
        outer, states.current = states.current, ForwardState(first_pass=self.trunk.first_look())
        try:
            return self.inner(*args, **kwargs)
        finally:
            states.current = outer


class InPlace:
    """A transformer's forward pre-hook, which stays where offload hooks are taken off: what they took along of ours,
    and what came between since (compiled blocks), is set right before the forward runs."""

    def __init__(self, trunk):
        self.trunk = trunk

    def __call__(self, transformer, args) -> None:
        if not torch.compiler.is_compiling():
            self.trunk.settle(transformer)
