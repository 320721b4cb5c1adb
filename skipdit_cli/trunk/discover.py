"""Finding a trunk in one forward of a model: the lists of blocks it is made of, and the streams through them."""

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
    """The reason why a list of blocks, or a model, is no trunk."""


def discover(transformer, forward: Callable[[], object]) -> tuple[Backbone, object]:
    """Run one forward of a model and find its trunk in it.

    The blocks of a list run in order, each once. A stream is an output of a block that is an input of the next one;
    failing that, an input of the same shape that is another tensor at every block. One list follows another where all
    its streams come from the earlier list, as they are or concatenated.

    Args:
        transformer: The model.
        forward: Runs the model once.

    Returns:
        Where the trunk lies, and what ``forward`` returned.

    Raises:
        UsageError: No trunk is found; the message gives the reason.
    """
    name = type(transformer).__name__
    check_class(transformer)
    lists, order, result = watch(transformer, forward)
    try:
        return _backbone(lists, order), result
    except _NoTrunk as cause:
        raise UsageError(f"Got {name}, which has no transformer trunk that can be found: {cause}.") from cause


def check_class(transformer) -> None:
    """Check that a model has a list of blocks and is no UNet.

    Raises:
        UsageError: By its submodules alone it is no transformer with one trunk.
    """
    name = type(transformer).__name__
    children = dict(transformer.named_children())
    if "down_blocks" in children and "up_blocks" in children:
        raise UsageError(f"Got {name}, which has no transformer trunk: it is a UNet, whose blocks change the width.")
    if not any(type(module).__name__ == "ModuleList" for module in transformer.modules()):
        raise UsageError(f"Got {name}, which has no transformer trunk: it has no list of blocks.")


def _backbone(lists: dict[str, WatchedList], order: list[str]) -> Backbone:
    """The trunk among the lists that ran; ``order`` names the list of each call."""
    if not lists:
        raise _NoTrunk("no list of blocks ran in its forward")
    outermost = {name: each for name, each in lists.items() if "." not in name}
    listings, reasons = _block_lists(outermost)
    if not listings:
        listings, reasons = _block_lists(lists)
    if not listings:
        raise _NoTrunk("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
    main = max(listings, key=lambda name: (len(lists[name].calls), _num_parameters(lists[name]), order.index(name)))
    trunk = _alternating(main, listings, lists, order)
    interleaved = len(trunk) > 1
    if not interleaved:
        trunk = _consecutive(main, listings, lists, order)
    joined = _main_stream(trunk, lists)
    widths = {lists[listing.name].calls[0].inputs[_stream(listing, joined)][-1] for listing in trunk}
    if len(widths) > 1:
        raise _NoTrunk(f"its blocks have several widths, {sorted(widths)}")
    return Backbone(tuple(trunk), interleaved, joined, widths.pop())


def _block_lists(lists: dict[str, WatchedList]) -> tuple[dict[str, BlockList], dict[str, str]]:
    """The lists whose blocks hand streams on, and the reason for each other list."""
    listings, reasons = {}, {}
    for name, each in lists.items():
        try:
            listings[name] = _block_list(each)
        except _NoTrunk as cause:
            reasons[name] = str(cause)
    return listings, reasons


def _num_parameters(watched: WatchedList) -> int:
    return sum(parameter.numel() for parameter in watched.blocks.parameters())


def _block_list(watched: WatchedList) -> BlockList:
    """One list with its streams: each output is the argument that most of the calls speak for."""
    if not watched.in_order:
        raise _NoTrunk("its blocks do not run once each, in order")
    counts = [len(call.outputs) for call in watched.calls]
    if len(set(counts)) > 1 or len({call.bare for call in watched.calls}) > 1:
        raise _NoTrunk("its blocks return different numbers of tensors")
    streams: list[str | None] = []
    for votes in _votes(watched):
        names = [name for name, _ in votes.most_common() if name not in streams]
        streams.append(names[0] if names else None)
    wrapped = len(streams) == 1 and not watched.calls[0].bare
    listing = BlockList(watched.name, tuple(streams), wrapped=wrapped)
    if not listing.names:
        raise _NoTrunk("no output of a block is an input of the next")
    for name in listing.names:
        widths = {call.inputs[name][-1:] for call in watched.calls if name in call.inputs}
        if len(watched.calls[0].inputs.get(name, ())) < 2 or len(widths) > 1:
            raise _NoTrunk(f"the {name} of its blocks changes its width")
    return listing


def _votes(watched: WatchedList) -> list[Counter]:
    """For each output of a block, how strongly the calls speak for each argument of the next block."""
    votes: list[Counter[str]] = [Counter() for _ in watched.calls[0].outputs]
    for call in watched.calls:
        for place, name in call.same.items():
            votes[place][name] += 100
        taken = set(call.same.values())
        for place, names in call.alike.items():
            votes[place].update(name for name in names if place not in call.same and name not in taken)
    if len(watched.calls) == 1:  # no block follows it in its list: only shapes can be compared
        for place, shape in enumerate(watched.calls[0].outputs):
            votes[place].update(name for name, other in watched.calls[0].inputs.items() if other == shape)
            if len(votes[place]) > 1:
                raise _NoTrunk("which of its arguments a lone block hands on cannot be told")
    return votes


def _alternating(main: str, listings: dict[str, BlockList], lists: dict, order: list[str]) -> list[BlockList]:
    """The lists whose blocks alternate with those of the main list, in their order; the main list alone if none do."""
    calls = [name for name in order if name in listings]
    period = list(dict.fromkeys(calls))
    times = len(lists[main].calls)
    if main in period and times > 1 and calls == period * times:
        sizes = {_first_stream_size(lists[name], listings[name]) for name in period}
        if len(sizes) == 1:
            return [listings[name] for name in period]
    return [listings[main]]


def _first_stream_size(watched: WatchedList, listing: BlockList) -> int:
    """The number of elements of the first stream. Lists that alternate may each lay it out in their own way."""
    return math.prod(watched.calls[0].inputs[listing.names[0]])


def _consecutive(main: str, listings: dict[str, BlockList], lists: dict, order: list[str]) -> list[BlockList]:
    """The main list with those that run before and after it and hand their streams on."""
    runs = [name for name, _ in groupby(name for name in order if name in listings)]
    names = [name for name in runs if runs.count(name) == 1]  # lists that run as a whole
    trunk = [listings[main]]
    if main not in names:
        return trunk
    for name in reversed(names[: names.index(main)]):
        linked = _linked(listings[name], trunk[0], lists)
        if linked is None:
            break
        trunk[:1] = [listings[name], linked]
    for name in names[names.index(main) + 1 :]:
        linked = _linked(trunk[-1], listings[name], lists)
        if linked is None:
            break
        trunk.append(linked)
    return trunk


def _linked(earlier: BlockList, later: BlockList, lists: dict[str, WatchedList]) -> BlockList | None:
    """The later list, with the streams that are concatenated into its own, if all of them come from the earlier list;
    else None."""
    entry = lists[later.name].entry.get(earlier.name, {})
    origins = {name: [earlier.streams[place] for place in entry.get(name, ())] for name in later.names}
    joins = tuple(name for name in origins[later.names[0]] if name is not None)
    if len(later.names) == 1 and len(joins) > 1 and None not in origins[later.names[0]]:
        return replace(later, joins=joins)
    last, first = lists[earlier.name].calls[-1], lists[later.name].calls[0]
    if set(later.names) != set(earlier.names):
        return None
    for name in later.names:
        moved = origins[name] and origins[name] != [name]
        if moved or last.inputs[name] != first.inputs[name]:
            return None
    return later if any(origins.values()) else None


def _main_stream(trunk: list[BlockList], lists: dict[str, WatchedList]) -> str:
    """The stream of the image or video: by its name, else the longest."""
    first = next((listing for listing in trunk if not listing.joins), trunk[0])
    names = [name for name in first.names if not CONDITION & set(name.split("_"))] or list(first.names)
    shapes = lists[first.name].calls[0].inputs
    return max(names, key=lambda name: (name == "hidden_states", shapes[name][TOKENS]))


def _stream(listing: BlockList, joined: str) -> str:
    return listing.names[0] if listing.joins else joined
