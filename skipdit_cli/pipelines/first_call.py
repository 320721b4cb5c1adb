"""What a run calls its transformer with, found out without running a block."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skipdit_cli.pipelines.device import transformers_of
from skipdit_cli.pipelines.generation import generate


@dataclass(frozen=True)
class FirstCall:
    """What a run calls a transformer with.

    Args:
        arguments: Of the first call, by name; on the device, of the whole batch.
        timesteps: Those that the run would visit.
    """

    arguments: Mapping[str, object]
    timesteps: list[float]


class _Enough(Exception):
    """Ends a run whose first call has been seen."""


def first_call(pipe, conditions: Sequence[int | str | None], **settings) -> FirstCall:
    """What the run of these settings calls a transformer with at first. It ends there: no block is run.

    Args:
        conditions, settings: As for ``generate``.
    Raises:
        UsageError: As ``generate``.
    """
    seen: list[FirstCall] = []

    def see(transformer, args: tuple, kwargs: dict) -> None:
        names = list(inspect.signature(type(transformer).forward).parameters)[1:]
        scheduler = pipe.scheduler
        timesteps = scheduler.timesteps[getattr(scheduler, "begin_index", None) or 0 :].tolist()
        seen.append(FirstCall({**dict(zip(names, args)), **kwargs}, timesteps))
        raise _Enough

    hooks = [
        transformer.register_forward_pre_hook(see, with_kwargs=True) for transformer in transformers_of(pipe).values()
    ]
    try:
        generate(pipe, conditions, **settings)
    except _Enough:
        return seen[0]
    finally:
        for hook in hooks:
            hook.remove()
