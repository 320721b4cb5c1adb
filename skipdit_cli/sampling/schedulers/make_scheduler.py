"""Schedulers by name, each a diffusers scheduler made from the config of the pipeline's own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import diffusers

from skipdit_cli.errors import UsageError, nearest, reading
from skipdit_cli.families.protocols import Pipeline, Transformer
from skipdit_cli.sampling.pipelines.call_arguments import is_text_conditional
from skipdit_cli.sampling.schedulers.explicit_timesteps import set_explicit
from skipdit_cli.sampling.schedulers.fitted_scheduler import FittedScheduler
from skipdit_cli.sampling.schedulers.official_schedulers import EvenFlowScheduler, RespacedDDIMScheduler
from skipdit_cli.sampling.schedulers.sampler import SPACINGS, SWITCHES, Sampler, as_sampler, is_scheduler

SCHEDULERS: dict[str, tuple[type[Any], dict]] = {
    "ddim": (RespacedDDIMScheduler, {}),
    "ddpm": (diffusers.DDPMScheduler, {}),
    "dpm++": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "dpm++-sde": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "deis": (diffusers.DEISMultistepScheduler, {}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler-a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
}

FITTED = "fitted"
"""The name of the scheduler that a plan brings with its coefficients. It samples whatever they were fitted to."""
FLOWS = ("dpm++", "dpm++-sde", "unipc", "deis")
"""Names of ``SCHEDULERS`` that can sample a flow, if the config of the pipeline's own scheduler allows it (Wan)."""


def check_name(name: str | None) -> None:
    """Refuse an unknown scheduler.

    Raises:
        UsageError: The name is not in ``SCHEDULERS``, and not None.
    """
    if name is not None and name not in (*SCHEDULERS, FITTED):
        raise UsageError(
            f"Got --scheduler '{name}' but expected one of {', '.join(SCHEDULERS)}.{nearest(name, SCHEDULERS)}"
        )


def make_scheduler(sampler: Any, pipe: Pipeline) -> Any:
    """Return a new scheduler for one run.

    Args:
        sampler: The sampler, or the name of its scheduler; or a scheduler, which is returned. None stands for the
            class of the pipeline's own scheduler, and for DDIM and flow matching of class-conditional models for
            ours, which step like the official code.
    Raises:
        UsageError: The name is unknown; its scheduler cannot sample what the model was trained for; or the scheduler
            does not have the spacing, an argument or the timesteps.
    """
    if is_scheduler(sampler):
        return sampler
    sampler = as_sampler(sampler)
    kind, config, changes = choose_class(sampler, pipe)
    changes |= _spacing(sampler, kind, config) | _checked_arguments(kind, sampler.arguments)
    what = f"Got --scheduler {sampler.name}, but the scheduler's config of this model"
    if sampler.arguments:
        what = f"Got --scheduler-arg {', '.join(sampler.arguments)}, with which a {kind.__name__}"
    with reading(what, failed="cannot be made" if sampler.arguments else "does not fit it"):
        scheduler = kind.from_config(config, **changes)
    if sampler.timesteps is not None:
        set_explicit(scheduler, sampler.timesteps)
    return scheduler


@contextmanager
def scheduled(pipe, scheduler) -> Iterator[None]:
    """Give the pipeline another scheduler, and take its progress bar away, for a while."""
    original, progress_bar = pipe.scheduler, dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.scheduler = scheduler
    pipe.set_progress_bar_config(**{**progress_bar, "disable": True})
    try:
        yield
    finally:
        pipe.scheduler = original
        pipe.set_progress_bar_config(**progress_bar)


def choose_class(sampler: Sampler, pipe: Pipeline) -> tuple[type[Any], dict, dict[str, object]]:
    """Return the class of a sampler's scheduler, the config to make it of, and what its name changes in the config."""
    name, original = sampler.name, pipe.scheduler
    check_name(name)
    config = dict(original.config)
    if name == FITTED:
        return FittedScheduler, config, {"flow": follows_flow(original)}
    if name is not None and follows_flow(original) and ("beta_schedule" not in config or name not in FLOWS):
        allowed = f"takes {', '.join(FLOWS)}" if "beta_schedule" in config else "takes its own scheduler only"
        raise UsageError(f"Got --scheduler {name}, but this model's samples follow a flow, which {allowed}.")
    is_ddim = type(original) is diffusers.DDIMScheduler  # which steps wrongly between explicit timesteps
    if name is None and is_text_conditional(pipe) and not (is_ddim and sampler.timesteps is not None):
        return type(original), config, {}
    if type(original) is diffusers.FlowMatchEulerDiscreteScheduler:
        return EvenFlowScheduler, config, {}
    if name is None and is_ddim:
        name = "ddim"
    kind, changes = SCHEDULERS[name] if name else (type(original), {})
    if kind is diffusers.DDPMScheduler and "variance_type" not in config:
        changes = {"variance_type": "learned_range" if predicts_sigma(pipe.transformer) else "fixed_small"}
    if kind is not diffusers.DDPMScheduler:  # diffusers' DPM-Solver would keep three channels of a learned variance
        config.pop("variance_type", None)
    return kind, config, dict(changes)


def spacings_of(kind: type[Any], config: Mapping[str, object]) -> list[str]:
    """Return the names of ``SPACINGS`` that a class of schedulers has.

    Args:
        config: The config it is made of: the multistep solvers space a flow by its shift alone.
    """
    if config.get("use_flow_sigmas"):
        return []
    parameters = inspect.signature(kind.__init__).parameters
    return [name for name, values in SPACINGS.items() if values.keys() <= parameters.keys()]


def _spacing(sampler: Sampler, kind: type[Any], config: Mapping[str, object]) -> dict[str, object]:
    """Return the values of the config that a sampler's spacing sets; explicit timesteps switch all spacings off."""
    if sampler.spacing is None and sampler.timesteps is None:
        return {}
    parameters = inspect.signature(kind.__init__).parameters
    off: dict[str, object] = {name: False for name in SWITCHES if name in parameters}
    if sampler.spacing is None:
        return off
    choices = spacings_of(kind, config)
    if sampler.spacing not in choices:
        allowed = f"takes {', '.join(choices)}" if choices else "has none here; give --timesteps"
        raise UsageError(f"Got --scheduler-spacing {sampler.spacing}, but a {kind.__name__} {allowed}.")
    return {**off, **SPACINGS[sampler.spacing]}


def _checked_arguments(kind: type[Any], arguments: Mapping[str, object]) -> dict[str, object]:
    """Return arguments of a scheduler's constructor; raise ``UsageError`` for one that it does not take."""
    parameters = inspect.signature(kind.__init__).parameters
    names = [name for name in parameters if name not in ("self", "kwargs", "solver_p")]
    for name in arguments:
        if name not in names:
            hint = nearest(name, names) or f" It takes {', '.join(names)}."
            raise UsageError(f"Got --scheduler-arg {name}, which a {kind.__name__} does not take.{hint}")
    return dict(arguments)


def follows_flow(scheduler) -> bool:
    """Return whether a scheduler integrates a flow from noise to data (flow matching), by its config."""
    config = scheduler.config
    if "flow" in config:  # a fitted scheduler
        return bool(config["flow"])
    return "beta_schedule" not in config or config.get("prediction_type") == "flow_prediction"


def predicts_sigma(transformer: Transformer) -> bool:
    """Return whether the transformer predicts a variance beside the noise, in twice the channels of its input."""
    return transformer.config.out_channels == 2 * transformer.config.in_channels
