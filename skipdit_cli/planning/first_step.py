"""The calls of a transformer in the first denoising step of a run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skipdit_cli.cache.forward_arguments import timestep_of
from skipdit_cli.cache.generation.steps import generation_timesteps, timesteps_of
from skipdit_cli.cache.noise_levels import noise_levels
from skipdit_cli.families.pipeline_parts import transformers_of
from skipdit_cli.sampling.generate import generate


@dataclass(frozen=True)
class FirstStep:
    """The first denoising step of a run.

    Args:
        calls: The arguments by name of each call of a transformer (guidance may take two calls), for the whole batch,
            on the device.
        timesteps: The timesteps of the whole run.
        levels: log(alpha / sigma) at each of them; None where the scheduler has no levels that are known.
    """

    calls: Sequence[Mapping[str, object]]
    timesteps: Sequence[float]
    levels: Sequence[float] | None = None


class _FirstStepDone(Exception):
    """Ends a run after its first step."""


def first_step(pipe, conditions: Sequence[int | str | None], **arguments) -> FirstStep:
    """Run ``generate`` up to the end of its first denoising step, and return that step.

    Args:
        pipe, conditions, arguments: As for ``generate``.

    Raises:
        UsageError: As for ``generate``.
    """
    calls: list[dict] = []
    timesteps: list = []
    levels: list = []

    def record_call(transformer, args: tuple, kwargs: dict) -> None:
        names = list(inspect.signature(type(transformer).forward).parameters)[1:]
        calls.append({**dict(zip(names, args)), **kwargs})

    def stop() -> None:
        timesteps[:] = generation_timesteps(pipe.scheduler, timestep_of(calls[-1]))
        known = noise_levels(pipe.scheduler, timesteps_of(pipe.scheduler))
        levels[:] = [] if known is None else known[len(known) - len(timesteps) :]
        raise _FirstStepDone

    transformers = transformers_of(pipe).values()
    hooks = [transformer.register_forward_pre_hook(record_call, with_kwargs=True) for transformer in transformers]
    try:
        generate(pipe, conditions, **arguments, advance=stop)
    except _FirstStepDone:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return FirstStep(calls, timesteps, levels or None)
