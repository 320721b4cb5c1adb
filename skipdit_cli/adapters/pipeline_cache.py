"""Enabling Skip-Cache on a pipeline or a transformer, by a level, a policy or a plan."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, overload

import torch

from skipdit_cli import cache
from skipdit_cli.cache import CachePolicy, SkipCache
from skipdit_cli.cache.live_ends import check_policy
from skipdit_cli.cache.policy import LEVELS
from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.families.pipeline_parts import transformers_of
from skipdit_cli.planning.plan import Plan, load_plan
from skipdit_cli.sampling.schedulers import make_scheduler, policy_for
from skipdit_cli.skip.output_branch import disable_output_branch, enable_output_branch

logger = logging.getLogger(__name__)
PLAN_IN_USE = "_skipdit_plan"
"""The attribute of a pipeline that holds its ``PlanInUse``."""
DEFAULT_STEPS = 50
"""The number of denoising steps that a level stands for until the scheduler has timesteps."""


@dataclass(frozen=True)
class PlanInUse:
    """The scheduler that a plan has put on a pipeline, and the one that was there before."""

    plan: Plan
    scheduler: Any
    former: Any


@overload
def enable_skip_cache(
    transformer: torch.nn.Module,
    policy: CachePolicy | str,
    scheduler: Any = None,
    example_inputs: dict[str, Any] | None = None,
) -> SkipCache: ...
@overload
def enable_skip_cache(
    transformer: Any,
    policy: CachePolicy | Plan | str | Path,
    scheduler: Any = None,
    example_inputs: dict[str, Any] | None = None,
) -> SkipCache | Any: ...
def enable_skip_cache(
    transformer: Any,
    policy: CachePolicy | Plan | str | Path,
    scheduler: Any = None,
    example_inputs: dict[str, Any] | None = None,
) -> SkipCache | Any:
    """Cache the deep part of a pipeline's transformers, or of one transformer, with or without skip branches.

    A level follows the number of steps and the scheduler of each call: it is resolved after ``set_timesteps``, and
    keeps one live block under a scheduler that adds noise (a DDIM whose call gets an ``eta`` is not known to). A plan
    also puts its scheduler on the pipeline; the call then has to run the plan's number of steps.

    Args:
        transformer: A diffusers pipeline, or a transformer or its ``torch.compile`` wrapper.
        policy: ``fast``, ``balanced`` or ``quality``; a ``CachePolicy``; or a plan, or the path of its file.
        scheduler: The scheduler of the sampling loop; of a pipeline its own if not given. See ``cache.enable``.
        example_inputs: The arguments of one forward, for a class that is not declared.

    Returns:
        The cache, with ``.trace``, ``.report()`` and ``.reset()``; a list of two for a pipeline of two transformers.

    Raises:
        UsageError: The level is unknown, the plan or the policy does not fit the model, a transformer alone is given a
            plan with a scheduler of its own or a level without a scheduler, or ``cache.enable`` refuses.
    """
    pipe, transformers = split_model(transformer)
    plan = policy if isinstance(policy, Plan) else _read_plan(policy)
    if plan is not None:
        if pipe is None or scheduler is not None:
            raise UsageError("Got a plan, which brings a scheduler; give the whole pipeline, and no scheduler.")
        return use_plan(pipe, plan)
    level, in_use = _checked(policy), getattr(pipe, "__dict__", {}).get(PLAN_IN_USE)
    if scheduler is None:
        scheduler = getattr(pipe, "scheduler", None)
        if in_use is not None and scheduler is in_use.scheduler:  # which leaves with the plan
            scheduler = in_use.former
    choose, first = _choice(level, scheduler)
    for each in transformers:  # before anything is changed
        check_policy(each, first)
    if in_use is not None:
        disable_skip_cache(pipe)
    caches = [
        cache.enable_skip_cache(each, first, scheduler, example_inputs, policy_for=choose) for each in transformers
    ]
    return caches if len(caches) > 1 else caches[0]


def disable_skip_cache(transformer: Any) -> None:
    """Disable the cache of a pipeline or a transformer; every step is full again.

    The scheduler of a plan is replaced by the one before it, unless the pipeline has been given another since. Without
    a cache it does nothing.
    """
    pipe, transformers = split_model(transformer)
    for each in transformers:
        cache.disable_skip_cache(each)
    in_use = None if pipe is None else pipe.__dict__.pop(PLAN_IN_USE, None)
    if in_use is None:
        return
    disable_output_branch(transformers[0])
    if pipe.scheduler is in_use.scheduler:
        pipe.scheduler = in_use.former


def use_plan(pipe: Any, plan: Plan) -> SkipCache | Any:
    """Put the scheduler of a plan on a pipeline and enable its cache, until ``disable_skip_cache``.

    A pipeline with other weights or branches than the plan was measured with is warned of once.

    Returns:
        As ``enable_skip_cache``; an empty list for a plan without a cache.

    Raises:
        UsageError: The plan was made for another model.
    """
    check_plan(pipe, plan)
    disable_skip_cache(pipe)
    difference = plan.difference(pipe, plan.made_for["guidance_scale"])
    if difference is not None:
        logger.warning("%s", difference)
    scheduler, transformers = make_scheduler(plan.sampler, pipe), list(transformers_of(pipe).values())
    setattr(pipe, PLAN_IN_USE, PlanInUse(plan, scheduler, pipe.scheduler))
    pipe.scheduler = scheduler
    try:
        enable_output_branch(transformers[0], scheduler)
        policy = None if plan.policy is None else policy_for(plan.policy, scheduler)
        caches = [] if policy is None else [cache.enable_skip_cache(each, policy, scheduler) for each in transformers]
    except UsageError:
        disable_skip_cache(pipe)
        raise
    return caches[0] if len(caches) == 1 else caches


def check_plan(pipe: Any, plan: Plan) -> None:
    """Refuse a plan that was made for another model.

    Raises:
        UsageError: Its class, its number of blocks or its config is another one.
    """
    plan.check_run(pipe, plan.sampler, plan.steps)


def plan_in_use(pipe: Any) -> Plan | None:
    """Return the plan that a pipeline samples by, or None."""
    in_use = getattr(pipe, "__dict__", {}).get(PLAN_IN_USE)
    return None if in_use is None else in_use.plan


def split_model(model: Any) -> tuple[Any, list]:
    """Return the pipeline, or None, and the transformers of a pipeline or of a transformer."""
    if isinstance(model, torch.nn.Module) or not transformers_of(model):
        return None, [model]
    return model, list(transformers_of(model).values())


def _read_plan(policy: Any) -> Plan | None:
    """Return the plan of a file; None of anything else."""
    is_file = isinstance(policy, Path) or (isinstance(policy, str) and policy.endswith((".yaml", ".yml")))
    return load_plan(policy) if is_file else None


def _checked(policy: Any) -> CachePolicy | str:
    """Return the argument, and refuse what is neither a ``CachePolicy`` nor the name of a level."""
    if isinstance(policy, str) and policy not in LEVELS:
        raise UsageError(
            f"Got the cache '{policy}' but expected one of {', '.join(LEVELS)}, a CachePolicy, or the file of a plan "
            f"(.yaml).{nearest(policy, LEVELS)}"
        )
    if not isinstance(policy, (str, CachePolicy)):
        raise UsageError(f"Got a {type(policy).__name__} for the cache but expected a level, a CachePolicy or a plan.")
    return policy


def _choice(policy: CachePolicy | str, scheduler: Any) -> tuple[Callable[[Any], CachePolicy] | None, CachePolicy]:
    """Return the function that resolves a level for each generation, or None where one policy serves all, and the
    policy to begin with.

    Raises:
        UsageError: A level has no scheduler.
    """
    if isinstance(policy, CachePolicy):
        is_level = scheduler is not None and policy.with_live_block() != policy
        return partial(policy_for, policy) if is_level else None, policy
    if scheduler is None:
        raise UsageError(f"Got the cache level '{policy}' without a scheduler; give the pipeline, or its scheduler.")
    return partial(_resolve, policy), _resolve(policy, scheduler)


def _resolve(level: str, scheduler: Any) -> CachePolicy:
    """Return the policy of a level for the steps that a scheduler has been set to."""
    steps = getattr(scheduler, "num_inference_steps", None) or DEFAULT_STEPS
    return policy_for(CachePolicy.level(level, steps), scheduler)
