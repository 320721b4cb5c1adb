"""Verifying a trunk: with wrappers between its blocks, the model must return the same numbers bit for bit."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from skipdit_cli.errors import NotFiniteError, UsageError, first_line
from skipdit_cli.families.pipeline_parts import unwrap_compiled
from skipdit_cli.finite import first_broken, same_bits
from skipdit_cli.trunk.discover import check_class, discover
from skipdit_cli.trunk.keep import known_trunk, update_wrappers, wrap_blocks
from skipdit_cli.trunk.trunk import Trunk


class Replay:
    """A cache of N = 1 for a trunk: it takes the boundary of one forward, and puts it in on those after it."""

    front = 1

    def __init__(self, boundary: int):
        self.boundary, self.reusing = boundary, False
        self.streams: list = []

    @property
    def ends(self) -> Replay:
        """The live ends, which are attributes of its own."""
        return self

    def leaves_out(self, index: int) -> bool:
        """Return whether unit ``index`` does not run in this forward."""
        return self.reusing and self.front <= index < self.boundary

    def cross(self, index: int, streams: list) -> list:
        """Return the streams at the input of unit ``index``: at the boundary, those of the last full forward."""
        if index != self.boundary:
            return streams
        if not self.reusing:
            self.streams = list(streams)
        return self.streams


class Trial:
    """A model's trunk, known or found in one forward, and that forward to verify it with.

    Args:
        transformer: The model.
        arguments: The arguments of the forward, by name.
        forward: What is called with them in the place of the model.

    Raises:
        UsageError: No trunk is found, or the arguments are not those of a forward.
        NotFiniteError: No trunk is found, and a weight is NaN or infinite.
    """

    def __init__(self, transformer, arguments: dict, forward: Callable | None = None):
        self.transformer = transformer = unwrap_compiled(transformer)
        self.arguments, self.forward = arguments, forward or transformer
        trunk = known_trunk(transformer)
        if trunk is None:
            check_class(transformer)
        if forward is None:
            _check_arguments(transformer, arguments)
        if trunk is not None:
            self.trunk = trunk
            with _detached(trunk):
                self.expected = self._run()
        else:
            try:
                backbone, self.expected = discover(transformer, self._run)
            except UsageError:
                _check_weights(transformer)  # streams of NaN cannot be told apart
                raise
            self.trunk = Trunk(transformer, backbone, declared=False, verified=False)

    def accept(self, exact: bool = True) -> Trunk:
        """Run the forward full, then twice reused, with the branches that are attached; remember the trunk if the
        outputs agree.

        Args:
            exact: Whether the full forward must equal the model's own (it does not with trained branches).

        Returns:
            The trunk, verified.

        Raises:
            UsageError: The outputs differ, or a forward fails.
            NotFiniteError: The model's own output is NaN or infinite throughout, so that nothing can be compared.
        """
        trunk = self.trunk
        if not any(tensor.isfinite().any() for tensor in _tensors(self.expected)):
            _check_weights(self.transformer)
            raise NotFiniteError(f"Got {trunk.model_class}, whose own forward returns NaN or infinity alone.")
        if len(trunk) < 2:
            raise UsageError(f"Got {trunk.model_class} of {len(trunk)} block, too few for a skip branch or a cache.")
        cache, trunk.cache = trunk.cache, Replay(len(trunk) - 1)
        try:
            wrap_blocks(trunk)
            full = self._run()
            if exact and not _same(full, self.expected):
                raise UsageError(f"Got {trunk.model_class}, {self._reason}: a full step differs from the model's own.")
            trunk.cache.reusing = len(trunk) > 2
            if not all(_same(self._run(), full) for _ in range(2)):
                raise UsageError(f"Got {trunk.model_class}, {self._reason}: a reused step at the same input differs.")
        except UsageError:
            raise
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as cause:
            raise UsageError(f"Got {trunk.model_class}, {self._reason}: {first_line(cause)}") from cause
        finally:
            trunk.cache = cache
            wrap_blocks(trunk)
        trunk.verified = True
        update_wrappers(self.transformer, trunk)
        return trunk

    @property
    def _reason(self) -> str:
        return "whose declared trunk does not fit it" if self.trunk.declared else "whose blocks cannot be left out"

    def _run(self):
        with _evaluating(self.transformer):
            return self.forward(**_copied(self.arguments))


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
    outputs, others = list(_tensors(result)), list(_tensors(expected))
    return len(outputs) == len(others) and all(same_bits(a, b) for a, b in zip(outputs, others))


def _tensors(result) -> Iterator[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, (dict, list, tuple)):
        for value in result.values() if isinstance(result, dict) else result:
            yield from _tensors(value)


def _copied(value):
    """Containers copied, tensors not: HunyuanDiT pops the residuals of a ControlNet off the list it is given."""
    if type(value) is dict:
        return {key: _copied(each) for key, each in value.items()}
    return type(value)(_copied(each) for each in value) if type(value) in (list, tuple) else value


@contextmanager
def _detached(trunk: Trunk) -> Iterator[None]:
    """The model without what is attached to its trunk."""
    attached = trunk.merge, trunk.cache
    trunk.merge = trunk.cache = None
    try:
        yield
    finally:
        trunk.merge, trunk.cache = attached


@contextmanager
def _evaluating(transformer) -> Iterator[None]:
    """The model in evaluation mode, without gradients."""
    training = [module for module in transformer.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
