"""Trying out a trunk before it is trusted: the same numbers, to the bit, with our hands between the blocks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from skipdit_cli.errors import NotFiniteError, UsageError, first_line
from skipdit_cli.finite import first_broken, same_bits
from skipdit_cli.trunk.discover import check_class, discover
from skipdit_cli.trunk.keep import keep_trunk, known_trunk
from skipdit_cli.trunk.trunk import Trunk


class Replay:
    """What a trunk takes for a cache of N = 1: the boundary of one forward, put in on those after it."""

    layers = 1

    def __init__(self, boundary: int):
        self.boundary, self.held, self.reusing = boundary, [], False

    def leaves_out(self, index: int) -> bool:
        return self.reusing and self.layers <= index < self.boundary

    def cross(self, index: int, streams: list) -> list:
        if index != self.boundary:
            return streams
        if not self.reusing:
            self.held = list(streams)
        return self.held


class Trial:
    """A model's trunk, declared or found in one forward, and the means to try it out on that forward.

    Args:
        transformer: The model.
        arguments: Of one forward.
        forward: What is called with them instead of the model.

    Raises:
        UsageError: No trunk was found, or the arguments are not those of a forward.
    """

    def __init__(self, transformer, arguments: dict, forward: Callable | None = None):
        self.transformer = transformer = getattr(transformer, "_orig_mod", transformer)
        self.arguments, self.forward = arguments, forward or transformer
        trunk = known_trunk(transformer)
        if trunk is None:
            check_class(transformer)
        if forward is None:
            _check_arguments(transformer, arguments)
        if trunk is not None:
            self.trunk = trunk
            with _bare(trunk):
                self.expected = self._run()
        else:
            try:
                backbone, self.expected = discover(transformer, self._run)
            except UsageError:
                _check_weights(transformer)  # of what is no number, nothing can be told apart
                raise
            self.trunk = Trunk(transformer, backbone, declared=False, accepted=False)

    def accept(self, exact: bool = True) -> Trunk:
        """Run the forward full, then twice reused, with the branches that are attached; keep the trunk if all is well.

        Args:
            exact: The full forward must equal the model's own (not so with trained branches).
        Raises:
            UsageError: A step differs, or fails.
            NotFiniteError: There is nothing to compare, for the model's own forward makes no number.
        """
        trunk = self.trunk
        if not any(tensor.isfinite().any() for tensor in _tensors(self.expected)):
            _check_weights(self.transformer)
            raise NotFiniteError(f"Got {trunk.model_class}, whose own forward makes NaN or infinity alone.")
        if len(trunk) < 2:
            raise UsageError(f"Got {trunk.model_class} of {len(trunk)} block, too few for a skip branch or a cache.")
        attached, trunk.cache = trunk.cache, Replay(len(trunk) - 1)
        try:
            trunk.update()
            full = self._run()
            if exact and not _same(full, self.expected):
                raise UsageError(f"Got {trunk.model_class}, {self._lost}: a full step differs from the model's own.")
            trunk.cache.reusing = len(trunk) > 2
            if not all(_same(self._run(), full) for _ in range(2)):
                raise UsageError(f"Got {trunk.model_class}, {self._lost}: a reused step at the same input differs.")
        except UsageError:
            raise
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as cause:
            raise UsageError(f"Got {trunk.model_class}, {self._lost}: {first_line(cause)}") from cause
        finally:
            trunk.cache = attached
            trunk.update()
        trunk.accepted = True
        keep_trunk(self.transformer, trunk)
        return trunk

    @property
    def _lost(self) -> str:
        return "whose declared trunk does not fit it" if self.trunk.declared else "whose blocks cannot be left out"

    def _run(self):
        with _quietly(self.transformer):
            return self.forward(**_fresh(self.arguments))


def _check_weights(transformer) -> None:
    where = first_broken(transformer.state_dict().items())
    if where is not None:
        raise NotFiniteError(f"Got {type(transformer).__name__}, which holds {where}; get its weights again.")


def _check_arguments(transformer, arguments) -> None:
    if not isinstance(arguments, dict):
        kind = type(arguments).__name__
        raise UsageError(f"Got example_inputs of type {kind} but expected a dict, the arguments of one forward.")
    try:
        inspect.signature(type(transformer).forward).bind(transformer, **arguments)
    except TypeError as cause:
        name = type(transformer).__name__
        raise UsageError(f"Got example_inputs that are not the arguments of a forward of {name}: {cause}.") from cause


def _same(result, expected) -> bool:
    ours, theirs = list(_tensors(result)), list(_tensors(expected))
    return len(ours) == len(theirs) and all(same_bits(a, b) for a, b in zip(ours, theirs))


def _tensors(result) -> Iterator[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, (dict, list, tuple)):
        for value in result.values() if isinstance(result, dict) else result:
            yield from _tensors(value)


def _fresh(value):
    """Containers copied, tensors not: HunyuanDiT pops the residuals of a ControlNet off the list it is given."""
    if type(value) is dict:
        return {key: _fresh(each) for key, each in value.items()}
    return type(value)(_fresh(each) for each in value) if type(value) in (list, tuple) else value


@contextmanager
def _bare(trunk: Trunk) -> Iterator[None]:
    """The model alone, whatever is attached to it."""
    attached = trunk.branches, trunk.cache
    trunk.branches = trunk.cache = None
    try:
        yield
    finally:
        trunk.branches, trunk.cache = attached


@contextmanager
def _quietly(transformer) -> Iterator[None]:
    """Without gradients and dropout."""
    training = [module for module in transformer.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
