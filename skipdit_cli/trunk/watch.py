"""Watching one forward of a model: the lists of blocks that run, and the tensors they hand to each other."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import permutations

import torch
from torch import nn

TOKENS = -2
"""The axis of tokens, before the width."""


@dataclass
class BlockCall:
    """One call of one block.

    Args:
        at: The block's place in its list.
        inputs: Shapes of its tensor arguments, by name.
        outputs: Shapes of what it returned, None for anything but a tensor. A bare tensor is one output.
        bare: Whether it returned a tensor and not a tuple.
        same: Place of an output of the list's block before, to the argument that it *is*.
        alike: Place of such an output, to the arguments of its shape that are other tensors than at the block before.
    """

    at: int
    inputs: dict[str, tuple[int, ...]]
    same: dict[int, str] = field(default_factory=dict)
    alike: dict[int, list[str]] = field(default_factory=dict)
    outputs: list[tuple[int, ...] | None] = field(default_factory=list)
    bare: bool = True


@dataclass
class WatchedList:
    """One ``ModuleList``, with the calls of its blocks in order.

    Args:
        name: Its attribute path in the model.
        blocks: The list itself.
        calls: The calls of its blocks.
        entry: Name of each list that ran before, to what the first block got of the last outputs there: argument name
            to the places of the outputs that it is, or that it concatenates. Other arguments are absent.
    """

    name: str
    blocks: nn.ModuleList
    calls: list[BlockCall] = field(default_factory=list)
    entry: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict)

    @property
    def in_order(self) -> bool:
        """Whether every block ran once, in order."""
        return [call.at for call in self.calls] == list(range(len(self.blocks)))


def watch(transformer, forward: Callable[[], object]) -> tuple[dict[str, WatchedList], list[str], object]:
    """Run ``forward`` and record what the lists of blocks of a model do in it.

    The tensors of one block per list are held while it runs.

    Returns:
        The lists that ran, by name; the name of the list of each call, in order; what ``forward`` returned.
    """
    lists = {name: WatchedList(name, module) for name, module in _outermost_lists(transformer).items()}
    order: list[str] = []
    last_calls: dict[str, tuple[dict, list]] = {}  # the inputs and outputs of each list's last call
    handles = []
    for watched in lists.values():
        for at, block in enumerate(watched.blocks):
            handles.append(block.register_forward_pre_hook(_before(watched, at, order, last_calls), with_kwargs=True))
            handles.append(block.register_forward_hook(_after(watched, last_calls)))
    try:
        result = forward()
    finally:
        for handle in handles:
            handle.remove()
    return {name: watched for name, watched in lists.items() if watched.calls}, order, result


def _outermost_lists(transformer) -> dict[str, nn.ModuleList]:
    """Every list of modules that does not lie in another."""
    lists: dict[str, nn.ModuleList] = {}
    for name, module in transformer.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in lists):
            lists[name] = module
    return lists


def _before(watched: WatchedList, at: int, order: list[str], last_calls: dict):
    """A pre-hook of a block that records its inputs."""

    def hook(block, args, kwargs):
        inputs = _named_tensors(block, args, kwargs)
        call = BlockCall(at, {name: tuple(x.shape) for name, x in inputs.items()})
        if watched.name in last_calls:
            _compare(call, inputs, *last_calls[watched.name])
        else:
            watched.entry = {other: _origins(inputs, outputs) for other, (_, outputs) in last_calls.items()}
        watched.calls.append(call)
        order.append(watched.name)
        last_calls[watched.name] = (inputs, [])

    return hook


def _after(watched: WatchedList, last_calls: dict):
    """A hook of a block that records its outputs."""

    def hook(block, args, result):
        call, bare = watched.calls[-1], not isinstance(result, (tuple, list))
        outputs = [result] if bare else list(result)
        outputs = [each if isinstance(each, torch.Tensor) else None for each in outputs]
        call.bare, call.outputs = bare, [None if each is None else tuple(each.shape) for each in outputs]
        last_calls[watched.name] = (last_calls[watched.name][0], outputs)

    return hook


def _named_tensors(block, args: tuple, kwargs: dict) -> dict[str, torch.Tensor]:
    """The floating-point tensors among the arguments of a block's forward, by name."""
    try:
        named = inspect.signature(block.forward).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return {}
    return {name: x for name, x in named.items() if isinstance(x, torch.Tensor) and x.is_floating_point()}


def _compare(call: BlockCall, inputs: dict, earlier: dict, outputs: list) -> None:
    """Note which inputs of a call are outputs of the block before, or have their shape."""
    for place, output in enumerate(outputs):
        if output is None:
            continue
        for name, x in inputs.items():
            if x is output and x is not earlier.get(name):
                call.same[place] = name
            elif x.shape == output.shape and x is not earlier.get(name):
                call.alike.setdefault(place, []).append(name)


def _origins(inputs: dict, outputs: list) -> dict[str, tuple[int, ...]]:
    """Name of each input that is one of the outputs, or concatenates some, to the places of these outputs."""
    tensors = {place: x for place, x in enumerate(outputs) if x is not None and x.ndim >= 2}
    origins = {}
    for name, x in inputs.items():
        for count in range(1, len(tensors) + 1):
            for places in permutations(tensors, count):
                if name not in origins and _is_concatenation(x, [tensors[place] for place in places]):
                    origins[name] = places
    return origins


def _is_concatenation(x: torch.Tensor, parts: list[torch.Tensor]) -> bool:
    """Whether x is the one part, or concatenates several along the tokens: their lengths add up, and at least one
    begins with its own first token (HiDream and Bria-Fibo replace some of the text tokens)."""
    if len(parts) == 1:
        return x is parts[0] or _equal(x, parts[0])
    fits = all(x.ndim == part.ndim and x.shape[-1] == part.shape[-1] for part in parts)
    if not fits or x.shape[TOKENS] != sum(part.shape[TOKENS] for part in parts):
        return False
    starts = [sum(part.shape[TOKENS] for part in parts[:at]) for at in range(len(parts))]
    return any(_equal(x.narrow(TOKENS, at, 1), part.narrow(TOKENS, 0, 1)) for at, part in zip(starts, parts))


def _equal(x: torch.Tensor, other: torch.Tensor) -> bool:
    return x.shape == other.shape and x.device == other.device and not x.is_meta and torch.equal(x, other)
