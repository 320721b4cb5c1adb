"""One forward of a model, watched: which lists of blocks it runs, and what passes from block to block."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import permutations

import torch
from torch import nn

TOKENS = -2  # the axis of tokens, in front of the width


@dataclass
class Call:
    """One call of one block.

    Args:
        at: The block's place in its list.
        inputs: Shapes of its tensor arguments, by name.
        outputs: Shapes of what it returned; None for what is no tensor. A bare tensor is one output.
        bare: Whether it returned a tensor alone.
        same: Which output of the list's block before *is* an argument: place to name.
        alike: Names of the arguments of the shape of an output of the block before, which were other tensors there.
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
        entry: Of each list that ran before: what of its last outputs the first block got. A dict of argument name to
            the outputs (places) it is, or is made of end to end along the tokens; arguments made otherwise are absent.
    """

    name: str
    blocks: nn.ModuleList
    calls: list[Call] = field(default_factory=list)
    entry: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict)

    @property
    def in_turn(self) -> bool:
        """Every block ran once, in order."""
        return [call.at for call in self.calls] == list(range(len(self.blocks)))


def watch(transformer, forward: Callable[[], object]) -> tuple[dict[str, WatchedList], list[str], object]:
    """Run ``forward`` and look at what the lists of blocks of a model do in it. Holds one block's tensors a list.

    Returns:
        The lists that ran, by name; the names of the lists in the order of all calls; what ``forward`` returned.
    """
    lists = {name: WatchedList(name, module) for name, module in _outermost_lists(transformer).items()}
    order: list[str] = []
    before: dict[str, tuple[dict, list]] = {}  # the inputs and outputs of each list's last call
    handles = []
    for found in lists.values():
        for at, block in enumerate(found.blocks):
            handles.append(block.register_forward_pre_hook(_entered(found, at, order, before), with_kwargs=True))
            handles.append(block.register_forward_hook(_left(found, before)))
    try:
        result = forward()
    finally:
        for handle in handles:
            handle.remove()
    return {name: found for name, found in lists.items() if found.calls}, order, result


def _outermost_lists(transformer) -> dict[str, nn.ModuleList]:
    """Every list of modules that does not lie in another."""
    found: dict[str, nn.ModuleList] = {}
    for name, module in transformer.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


def _entered(found: WatchedList, at: int, order: list[str], before: dict):
    def hook(block, args, kwargs):
        inputs = _named_tensors(block, args, kwargs)
        call = Call(at, {name: tuple(x.shape) for name, x in inputs.items()})
        if found.name in before:
            earlier, outputs = before[found.name]
            _compare(call, inputs, earlier, outputs)
        else:
            found.entry = {other: _made_of(inputs, outputs) for other, (_, outputs) in before.items()}
        found.calls.append(call)
        order.append(found.name)
        before[found.name] = (inputs, [])

    return hook


def _left(found: WatchedList, before: dict):
    def hook(block, args, result):
        call, bare = found.calls[-1], not isinstance(result, (tuple, list))
        outputs = [result] if bare else list(result)
        outputs = [each if isinstance(each, torch.Tensor) else None for each in outputs]
        call.bare, call.outputs = bare, [None if each is None else tuple(each.shape) for each in outputs]
        before[found.name] = (before[found.name][0], outputs)

    return hook


def _named_tensors(block, args: tuple, kwargs: dict) -> dict[str, torch.Tensor]:
    try:
        named = inspect.signature(block.forward).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return {}
    return {name: x for name, x in named.items() if isinstance(x, torch.Tensor) and x.is_floating_point()}


def _compare(call: Call, inputs: dict, earlier: dict, outputs: list) -> None:
    for place, output in enumerate(outputs):
        if output is None:
            continue
        for name, x in inputs.items():
            if x is output and x is not earlier.get(name):
                call.same[place] = name
            elif x.shape == output.shape and x is not earlier.get(name):
                call.alike.setdefault(place, []).append(name)


def _made_of(inputs: dict, outputs: list) -> dict[str, tuple[int, ...]]:
    tensors = {place: x for place, x in enumerate(outputs) if x is not None and x.ndim >= 2}
    made = {}
    for name, x in inputs.items():
        for count in range(1, len(tensors) + 1):
            for places in permutations(tensors, count):
                if name not in made and _end_to_end(x, [tensors[place] for place in places]):
                    made[name] = places
    return made


def _end_to_end(x: torch.Tensor, parts: list[torch.Tensor]) -> bool:
    """Whether x is one part, or several laid end to end along the tokens: their lengths add up, and one at least
    begins with its own first token. HiDream and Bria-Fibo replace some of the text on the way."""
    if len(parts) == 1:
        return x is parts[0] or _equal(x, parts[0])
    fits = all(x.ndim == part.ndim and x.shape[-1] == part.shape[-1] for part in parts)
    if not fits or x.shape[TOKENS] != sum(part.shape[TOKENS] for part in parts):
        return False
    starts = [sum(part.shape[TOKENS] for part in parts[:at]) for at in range(len(parts))]
    return any(_equal(x.narrow(TOKENS, at, 1), part.narrow(TOKENS, 0, 1)) for at, part in zip(starts, parts))


def _equal(x: torch.Tensor, other: torch.Tensor) -> bool:
    return x.shape == other.shape and x.device == other.device and not x.is_meta and torch.equal(x, other)
