"""The sources that skip branches keep in one forward of a trunk, and their merge into the inputs of target units."""

from __future__ import annotations

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from skipdit_cli.errors import UsageError
from skipdit_cli.skip.branches import SkipBranches
from skipdit_cli.trunk import Trunk
from skipdit_cli.trunk.forward_state import ForwardState
from skipdit_cli.trunk.watch import TOKENS


class Sources:
    """The outputs of the source units of one forward.

    Attributes:
        tensors: Pair i to the output of unit i, of the stream that branches join: (batch, tokens, D) or alike.
        units: Pair i to the unit whose input that output is.
        tokens: The length of that stream where it is not concatenated; 0 in a model that concatenates no streams.
    """

    def __init__(self):
        self.tensors: dict[int, torch.Tensor] = {}
        self.units: dict[int, int] = {}
        self.tokens = 0


class SkipMerge:
    """The skip branches of one trunk at work: each source is kept by index, and joined at its target.

    Args:
        branches: The branches.
        trunk: The trunk they are attached to.
        former_time_embedding: The kind of time embedding that the model had before; None for a family with only one.
    """

    def __init__(self, branches: SkipBranches, trunk: Trunk, former_time_embedding: str | None):
        self.branches, self.trunk, self.former_time_embedding = branches, trunk, former_time_embedding
        self._start()

    def _start(self) -> None:
        # Input of a unit to its index and the source that joined it, for gradient checkpointing in backward.
        self.joined = WeakTensorKeyDictionary()

    def __getstate__(self) -> dict:
        """A copy starts without the tensors of a forward under way."""
        return {key: value for key, value in self.__dict__.items() if key != "joined"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._start()

    @property
    def needs_sources(self) -> bool:
        """Whether a target cannot run without its source, which its input is made of."""
        return self.branches.config.merge == "replace"

    def keep(self, state: ForwardState, passed: int, index: int, streams: list) -> None:
        """Keep the input of unit ``index`` as the output of unit ``passed - 1``, if that is a source.

        Args:
            state: The state of this forward.
            passed: ``index``, or a unit before it that the model itself left out.
            index: 0 to L-1.
            streams: The streams at the input of unit ``index``, in the declared order.
        """
        sources, x = _sources(state), streams[self.trunk.joined_position(index)]
        if self.trunk.tells_tokens(index):
            sources.tokens = x.shape[TOKENS]
        if 1 <= passed <= self.branches.num_pairs:
            sources.tensors[passed - 1] = self.trunk.joined_part(index, x, sources.tokens)
            sources.units[passed - 1] = index

    def join(self, state: ForwardState, index: int, streams: list) -> list:
        """Return the streams at the input of unit ``index``, with its source joined if it is a target.

        Raises:
            UsageError: The unit is a target, and ran without the units before it.
        """
        sources, x, pair = _sources(state), streams[self.trunk.joined_position(index)], self._pair(index)
        source = None
        if pair is not None:
            source = sources.tensors.pop(pair, None)
            if source is None:
                raise UsageError(
                    f"Block {index} of {self.trunk.model_class} ran without block {pair}, whose skip branch joins it: "
                    "run the whole transformer, and gradient checkpointing with use_reentrant=False."
                )
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # A source is kept as long as the input of its target lives. Of a source that is this input, or a part of
            # it, only the number of tokens is kept: the tensor would keep the input, and so itself, alive for good.
            is_input = pair is not None and sources.units[pair] == index
            self.joined.setdefault(_held(x), {})[index] = (None, sources.tokens) if is_input else (source,)
        return streams if source is None else self._merged(index, streams, source)

    def recompute(self, index: int, streams: list) -> list | None:
        """Return what ``join`` returned for these very streams while gradients were enabled, or None if it was not
        called with them. So gradient checkpointing joins the same source again in backward."""
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        x = streams[self.trunk.joined_position(index)]
        record = self.joined.get(x, {}).get(index)
        if record is None and x._base is not None:
            record = self.joined.get(x._base, {}).get(index)
        if record is None:
            return None
        source = record[0] if len(record) == 1 else self.trunk.joined_part(index, x, record[1])
        return streams if source is None else self._merged(index, streams, source)

    def _pair(self, index: int) -> int | None:
        """The i of the pair (i, L-1-i) that unit ``index`` is the target of; None if it is the target of none."""
        pair = len(self.trunk) - 1 - index
        return pair if pair < min(index, self.branches.num_pairs) else None

    def _merged(self, index: int, streams: list, source: torch.Tensor) -> list:
        """The streams with the source joined to its tokens in them."""
        position, tokens = self.trunk.joined_position(index), source.shape[TOKENS]
        x = streams[position]
        start = self.trunk.first_token(index, x, tokens)
        part = x if tokens == x.shape[TOKENS] else x.narrow(TOKENS, start, tokens)
        streams = list(streams)
        streams[position] = _replace_tokens(x, self.branches(part, source, self._pair(index)), start)
        return streams


def _held(x: torch.Tensor) -> torch.Tensor:
    """The tensor that gradient checkpointing holds for a block's input: FSDP2 gives the block a view of it."""
    is_view = type(x.grad_fn).__name__ == "RegisterPostBackwardFunctionBackward"
    return x._base if is_view and x._base is not None else x


def _sources(state: ForwardState) -> Sources:
    if state.sources is None:
        state.sources = Sources()
    return state.sources


def _replace_tokens(x: torch.Tensor, part: torch.Tensor, start: int) -> torch.Tensor:
    """x with the tokens from ``start`` on replaced by ``part``."""
    end = start + part.shape[TOKENS]
    rest = x.shape[TOKENS] - end
    before = [x.narrow(TOKENS, 0, start)] if start else []
    after = [x.narrow(TOKENS, end, rest)] if rest else []
    return torch.cat([*before, part, *after], dim=TOKENS) if before or after else part
