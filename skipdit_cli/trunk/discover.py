"""A trunk found by watching one forward: which lists of blocks it is made of, and which streams run through them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby

from skipdit_cli.errors import UsageError
from skipdit_cli.families.declarations import Backbone, BlockList
from skipdit_cli.trunk.watch import TOKENS, WatchedList, watch

CONDITION = {"encoder", "context", "text", "txt", "audio", "und", "cond", "ref"}
"""Words in the names of streams that are not the image or video."""


class _NoTrunk(Exception):
    """Why something is no trunk."""


def discover(transformer, forward: Callable[[], object]) -> tuple[Backbone, object]:
    """Watch one forward, and say where the trunk lies.

    Blocks run in the order of their list, each once. A stream is an output that is an input of the next block, or
    else one of its shape that is not the same tensor at every block. Lists follow one another where all the streams
    of the later come from the earlier, as they are or laid end to end.

    Returns:
        What was found, and what ``forward`` returned.
    Raises:
        UsageError: No trunk was found, with the reason.
    """
    name = type(transformer).__name__
    check_class(transformer)
    found, order, result = watch(transformer, forward)
    try:
        return _backbone(found, order), result
    except _NoTrunk as cause:
        raise UsageError(f"Got {name}, which has no transformer trunk that can be found: {cause}.") from cause


def check_class(transformer) -> None:
    """
    Raises:
        UsageError: By its parts alone it is no transformer of one trunk.
    """
    name = type(transformer).__name__
    children = dict(transformer.named_children())
    if "down_blocks" in children and "up_blocks" in children:
        raise UsageError(f"Got {name}, which has no transformer trunk: it is a UNet, whose blocks change the width.")
    if not any(type(module).__name__ == "ModuleList" for module in transformer.modules()):
        raise UsageError(f"Got {name}, which has no transformer trunk: it has no list of blocks.")


def _backbone(found: dict[str, WatchedList], order: list[str]) -> Backbone:
    if not found:
        raise _NoTrunk("no list of blocks ran in its forward")
    direct = {name: each for name, each in found.items() if "." not in name}
    chains, reasons = _chains(direct)
    if not chains:
        chains, reasons = _chains(found)
    if not chains:
        raise _NoTrunk("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
    main = max(chains, key=lambda name: (len(found[name].calls), _weight(found[name]), order.index(name)))
    lists = _turns(main, chains, found, order)
    interleaved = len(lists) > 1
    if not interleaved:
        lists = _sequence(main, chains, found, order)
    joined = _joined(lists, found)
    width = {found[listing.name].calls[0].inputs[_stream(listing, joined)][-1] for listing in lists}
    if len(width) > 1:
        raise _NoTrunk(f"its blocks have several widths, {sorted(width)}")
    return Backbone(tuple(lists), interleaved, joined, width.pop())


def _chains(found: dict[str, WatchedList]) -> tuple[dict[str, BlockList], dict[str, str]]:
    """The lists whose blocks hand streams on, and why the others are none."""
    chains, reasons = {}, {}
    for name, each in found.items():
        try:
            chains[name] = _chain(each)
        except _NoTrunk as cause:
            reasons[name] = str(cause)
    return chains, reasons


def _weight(found: WatchedList) -> int:
    return sum(parameter.numel() for parameter in found.blocks.parameters())


def _chain(found: WatchedList) -> BlockList:
    """The streams of one list."""
    if not found.in_turn:
        raise _NoTrunk("its blocks do not run once each, in order")
    returned = [len(call.outputs) for call in found.calls]
    if len(set(returned)) > 1 or len({call.bare for call in found.calls}) > 1:
        raise _NoTrunk("its blocks return different numbers of tensors")
    votes = {place: Counter() for place in range(returned[0])}
    for call in found.calls:
        for place, name in call.same.items():
            votes[place][name] += 100
        taken = set(call.same.values())
        for place, names in call.alike.items():
            votes[place].update(name for name in names if place not in call.same and name not in taken)
    if len(found.calls) == 1:  # nothing follows it in its list: by shape alone
        for place, shape in enumerate(found.calls[0].outputs):
            votes[place].update(name for name, own in found.calls[0].inputs.items() if own == shape)
            if len(votes[place]) > 1:
                raise _NoTrunk("which of its arguments a lone block hands on cannot be told")
    streams: list[str | None] = []
    for place in range(returned[0]):
        best = [name for name, _ in votes[place].most_common() if name not in streams]
        streams.append(best[0] if best else None)
    wrapped = len(streams) == 1 and not found.calls[0].bare
    listing = BlockList(found.name, tuple(streams), wrapped=wrapped)
    if not listing.names:
        raise _NoTrunk("no output of a block is an input of the next")
    for name in listing.names:
        shapes = {call.inputs[name][-1:] for call in found.calls if name in call.inputs}
        if len(found.calls[0].inputs.get(name, ())) < 2 or len(shapes) > 1:
            raise _NoTrunk(f"the {name} of its blocks changes its width")
    return listing


def _turns(main: str, chains: dict[str, BlockList], found: dict, order: list[str]) -> list[BlockList]:
    """The lists whose blocks alternate with the main one's, in their order."""
    among = [name for name in order if name in chains]
    period = list(dict.fromkeys(among))
    times = len(found[main].calls)
    if main in period and times > 1 and among == period * times:
        elements = [_elements(found[name], chains[name]) for name in period]
        if len(set(elements)) == 1:
            return [chains[name] for name in period]
    return [chains[main]]


def _elements(found: WatchedList, listing: BlockList) -> int:
    """Of the first stream: lists that alternate may each lay it out in their own way."""
    return math.prod(found.calls[0].inputs[listing.names[0]])


def _sequence(main: str, chains: dict[str, BlockList], found: dict, order: list[str]) -> list[BlockList]:
    """The main list with those that run before and after it and hand it their streams."""
    runs = [name for name, _ in groupby(name for name in order if name in chains)]
    names = [name for name in runs if runs.count(name) == 1]  # lists that run as a whole
    lists = [chains[main]]
    if main not in names:
        return lists
    for name in reversed(names[: names.index(main)]):
        linked = _linked(chains[name], lists[0], found)
        if linked is None:
            break
        lists[:1] = [chains[name], linked]
    for name in names[names.index(main) + 1 :]:
        linked = _linked(lists[-1], chains[name], found)
        if linked is None:
            break
        lists.append(linked)
    return lists


def _linked(earlier: BlockList, later: BlockList, found: dict[str, WatchedList]) -> BlockList | None:
    """The later list, with what its stream joins, if all its streams come from the earlier one; else None."""
    entry = found[later.name].entry.get(earlier.name, {})
    made = {name: [earlier.streams[place] for place in entry.get(name, ())] for name in later.names}
    if len(later.names) == 1 and len(made[later.names[0]]) > 1 and None not in made[later.names[0]]:
        return replace(later, joins=tuple(made[later.names[0]]))
    last, first = found[earlier.name].calls[-1], found[later.name].calls[0]
    if set(later.names) != set(earlier.names):
        return None
    for name in later.names:
        moved = made[name] and made[name] != [name]
        if moved or last.inputs[name] != first.inputs[name]:
            return None
    return later if any(made.values()) else None


def _joined(lists: list[BlockList], found: dict[str, WatchedList]) -> str:
    """The stream of the image or video: by its name, else the longest."""
    first = next((listing for listing in lists if not listing.joins), lists[0])
    plain = [name for name in first.names if not CONDITION & set(name.split("_"))] or list(first.names)
    shapes = found[first.name].calls[0].inputs
    return max(plain, key=lambda name: (name == "hidden_states", shapes[name][TOKENS]))


def _stream(listing: BlockList, joined: str) -> str:
    return listing.names[0] if listing.joins else joined
