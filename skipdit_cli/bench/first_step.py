"""What a run calls its transformer with: the calls of its first step."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skipdit_cli.cache.course import steps_ahead
from skipdit_cli.cache.forward_arguments import timestep_of
from skipdit_cli.families.pipeline_parts import transformers_of
from skipdit_cli.sampling.generate import generate


@dataclass(frozen=True)
class FirstStep:
    """
    Args:
        calls: The arguments by name of each call of a transformer in that step (guidance may take two); on the device,
            of the whole batch.
        timesteps: Those that the run would visit.
    """

    calls: Sequence[Mapping[str, object]]
    timesteps: Sequence[float]


class _Enough(Exception):
    """Ends a run whose first step has been seen."""


def first_step(pipe, conditions: Sequence[int | str | None], **settings) -> FirstStep:
    """Run the first step of what ``generate`` would, and no more.

    Args:
        conditions, settings: As for ``generate``.
    Raises:
        UsageError: As ``generate``.
    """
    calls, timesteps = [], []

    def see(transformer, args: tuple, kwargs: dict) -> None:
        names = list(inspect.signature(type(transformer).forward).parameters)[1:]
        calls.append({**dict(zip(names, args)), **kwargs})

    def enough() -> None:
        timesteps[:] = steps_ahead(pipe.scheduler, timestep_of(calls[-1]))
        raise _Enough

    hooks = [
        transformer.register_forward_pre_hook(see, with_kwargs=True) for transformer in transformers_of(pipe).values()
    ]
    try:
        generate(pipe, conditions, **settings, advance=enough)
    except _Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return FirstStep(calls, timesteps)
