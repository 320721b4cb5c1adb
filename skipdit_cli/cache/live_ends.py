"""The live ends of a trunk: the blocks that run in every step, and the boundary behind those that a reused step leaves
out."""

from __future__ import annotations

from skipdit_cli.cache.generation.call import Call
from skipdit_cli.cache.generation.slot import map_streams
from skipdit_cli.cache.policy import CachePolicy, both_ends, check_depth
from skipdit_cli.cache.trigger import check_not_compiled
from skipdit_cli.errors import UsageError
from skipdit_cli.families.pipeline_parts import unwrap_compiled
from skipdit_cli.families.protocols import Transformer
from skipdit_cli.trunk import Trunk, check_class, known_trunk


class LiveEnds:
    """The first ``front`` and the last ``back`` blocks of one trunk.

    Args:
        policy: Says how many they are, and what is forecast.
        trunk: The trunk; None until it is found.

    Attributes:
        boundary: The unit at whose input the boundary lies; L if it is the output of the last one.
        has_residual: Whether the residual over the shallow output is forecast, and not the boundary itself.
        left_out: The number of units that a reused step leaves out.
    """

    def __init__(self, policy: CachePolicy, trunk: Trunk | None = None):
        self.policy = policy
        self.front, self.back = both_ends(policy.layers)
        self.has_residual = policy.target_or_default == "residual"
        self.trunk: Trunk = None  # type: ignore[assignment]  # None until it is found, which no block runs before
        self.boundary = self.left_out = 0
        if trunk is not None:
            self.set_trunk(trunk)

    def set_trunk(self, trunk: Trunk) -> None:
        """Take the ends of this trunk.

        Raises:
            UsageError: It has too few blocks for the policy, or its branches need another end.
        """
        check_depth(self.policy.layers, len(trunk), trunk.needs_sources)
        self.trunk, self.boundary = trunk, len(trunk) - self.back
        self.left_out = self.boundary - self.front

    def cross(self, call: Call, index: int, streams: list) -> list:
        """Return the streams at the input of unit ``index``: at the boundary of a reused step, the forecast. Unit L is
        what comes after the last one."""
        if index == self.front:
            if self.has_residual:
                call.shallow = list(streams)
            if call.trigger is not None:
                call.trigger.decide(call, streams[self.trunk.joined_position(index)])
        if index != self.boundary or self.policy.forecasts_output:
            return streams
        call.crossed = True
        if not call.is_reused:
            call.boundary, call.last_shallow = list(streams), self._shallow(call, streams)
            return streams
        if not self.has_residual:
            return call.predicted
        shallow = self.trunk.change_layout(call.shallow, self.front, index, call.predicted)
        return map_streams(lambda base, x, last: base + (x - last), call.predicted, shallow, call.last_shallow)

    def _shallow(self, call: Call, streams: list) -> list | None:
        """Return the shallow output of a full forward in the layout of ``streams``, those at the boundary; None if the
        boundary itself is forecast, as it is by default where the model changes its streams on the way.

        Raises:
            UsageError: The residual target was chosen, and the model changes its streams.
        """
        if not self.has_residual:
            return None
        try:
            shallow = self.trunk.change_layout(call.shallow, self.front, self.boundary, streams)
            if not any(map_streams(lambda x, s: x.shape != s.shape, streams, shallow)):
                return shallow
            name = self.trunk.model_class
            raise UsageError(f"Got --cache-target residual, but the streams of {name} change; take 'boundary'.")
        except UsageError:
            if self.policy.target is not None:
                raise
        self.has_residual = False
        return None


def check_policy(transformer: Transformer, policy: CachePolicy) -> Trunk | None:
    """Refuse a policy that does not fit a transformer, and return its trunk if that is known."""
    if policy.threshold is not None:
        check_not_compiled(transformer)
    trunk = known_trunk(transformer)
    if trunk is None:
        check_class(unwrap_compiled(transformer))
    else:
        check_depth(policy.layers, len(trunk), trunk.needs_sources)
    return trunk
