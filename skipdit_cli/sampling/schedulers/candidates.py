"""The deterministic samplers that a pipeline can take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import diffusers
import torch

from skipdit_cli.cache import CachePolicy
from skipdit_cli.errors import UsageError
from skipdit_cli.families.protocols import Pipeline
from skipdit_cli.sampling.schedulers.fitted_scheduler import FittedScheduler
from skipdit_cli.sampling.schedulers.make_scheduler import choose_class, follows_flow, make_scheduler, spacings_of
from skipdit_cli.sampling.schedulers.sampler import Sampler, as_sampler

DETERMINISTIC = (
    diffusers.DDIMScheduler,
    diffusers.DPMSolverMultistepScheduler,
    diffusers.DPMSolverSinglestepScheduler,
    diffusers.UniPCMultistepScheduler,
    diffusers.DEISMultistepScheduler,
    diffusers.EulerDiscreteScheduler,
    diffusers.HeunDiscreteScheduler,
    diffusers.KDPM2DiscreteScheduler,
    diffusers.LMSDiscreteScheduler,
    diffusers.PNDMScheduler,
    diffusers.EDMEulerScheduler,
    diffusers.EDMDPMSolverMultistepScheduler,
    diffusers.FlowMatchEulerDiscreteScheduler,
    diffusers.FlowMatchHeunDiscreteScheduler,
    diffusers.CogVideoXDDIMScheduler,
    FittedScheduler,
)
"""Schedulers that add no noise, unless their config or an ``eta`` says so."""
ORDERS = {"ddim": (None,), "dpm++": (2, 3), "unipc": (2, 3), "deis": (2, 3)}
"""The solver orders to try of each scheduler to try; None where there is one only."""
SHIFTS = (1.0, 2.0, 3.0, 5.0)
"""The shifts of a flow's timesteps to try: s = shift t / (1 + (shift - 1) t) (arXiv 2403.03206, eq. 23)."""


def is_deterministic(scheduler, arguments: Mapping[str, object] | None = None) -> bool:
    """Return whether equal noise gives equal samples: whether a scheduler adds no noise of its own.

    Args:
        scheduler: A scheduler, as ``make_scheduler`` makes it.
        arguments: The arguments of the pipeline's call; an ``eta`` above 0 turns DDIM stochastic.
    """
    config, eta = getattr(scheduler, "config", {}), (arguments or {}).get("eta") or 0
    stochastic = str(config.get("algorithm_type")).startswith("sde") or config.get("stochastic_sampling")
    return isinstance(scheduler, DETERMINISTIC) and not stochastic and eta == 0


def policy_for(policy: CachePolicy, scheduler, arguments: Mapping[str, object] | None = None) -> CachePolicy:
    """Return the cache that a run gets: a level keeps a live block under a scheduler that adds noise.

    Args:
        policy: The cache that was asked for.
        scheduler, arguments: As for ``is_deterministic``.
    """
    return policy if is_deterministic(scheduler, arguments) else policy.with_live_block()


def check_deterministic(scheduler, arguments: Mapping[str, object] | None = None) -> None:
    """Refuse a scheduler that adds noise of its own.

    Args:
        scheduler, arguments: As for ``is_deterministic``.

    Raises:
        UsageError: It does.
    """
    if is_deterministic(scheduler, arguments):
        return
    if is_deterministic(scheduler):
        raise UsageError(
            "Got --pipeline-arg eta above 0, which adds noise at each step; expected a deterministic run."
        )
    raise UsageError(
        f"A {type(scheduler).__name__} adds noise at each step, or is not known to add none; expected a deterministic "
        f"scheduler: give --scheduler {', '.join(ORDERS)} or euler."
    )


def check_single_forwards(scheduler) -> None:
    """Refuse a scheduler that evaluates the model more than once a step, as Heun's does and those of PNDM.

    Args:
        scheduler: A scheduler, as ``make_scheduler`` makes it.

    Raises:
        UsageError: It does.
    """
    if getattr(scheduler, "order", 1) > 1 or isinstance(scheduler, diffusers.PNDMScheduler):
        raise UsageError(
            f"A {type(scheduler).__name__} evaluates the model more than once a step, but a budget counts one forward "
            f"a step; give --scheduler {', '.join(ORDERS)} or euler."
        )


def keeps_noise_schedule(scheduler, pipe: Pipeline) -> bool:
    """Return whether a scheduler has the signal level of the pipeline's own at each timestep.

    One made from the config of a class with a schedule of its own (``snr_shift_scale`` of CogVideoX) may not.
    """
    levels, expected = (getattr(each, "alphas_cumprod", None) for each in (scheduler, pipe.scheduler))
    if levels is None or expected is None:
        return True
    return torch.allclose(levels.double().cpu(), expected.double().cpu(), atol=1e-5)


def candidates(pipe: Pipeline) -> list[Sampler]:
    """Return the deterministic samplers that a pipeline can take, each with every spacing that it has.

    No two of them make schedulers of the same class and config.
    """
    return usable_samplers(_proposals(pipe), pipe)


def full_run_sampler(pipe: Pipeline, sampler: Sampler | str | None) -> Sampler:
    """Return the sampler of a full run that plans are compared with: a given one, the pipeline's own if None, and DDIM
    where that adds noise (DDPM of HunyuanDiT, Euler Ancestral of Allegro)."""
    chosen = as_sampler(sampler)
    adds_noise = chosen == Sampler() and not is_deterministic(make_scheduler(chosen, pipe))
    return Sampler("ddim") if adds_noise and not follows_flow(pipe.scheduler) else chosen


def usable_samplers(proposals: Iterable[Sampler], pipe: Pipeline) -> list[Sampler]:
    """Return those of some samplers that are deterministic and that a pipeline can take. No two of them make
    schedulers of the same class and config with the same explicit timesteps."""
    samplers: list[Sampler] = []
    known: set[tuple] = set()
    for sampler in proposals:
        try:
            scheduler = make_scheduler(sampler, pipe)
        except UsageError:  # a scheduler that does not fit the model, or a package that is missing
            continue
        config = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
        key = type(scheduler), repr(sorted(config.items())), sampler.timesteps
        if is_deterministic(scheduler) and keeps_noise_schedule(scheduler, pipe) and key not in known:
            known.add(key)
            samplers.append(sampler)
    return samplers


def _proposals(pipe: Pipeline) -> list[Sampler]:
    """Return samplers to try, some of which the pipeline may not take."""
    flow, own = follows_flow(pipe.scheduler), Sampler()
    proposals = [own, *_spaced(own, pipe)]
    if flow:
        shift = "flow_shift" if "flow_shift" in pipe.scheduler.config else "shift"
        proposals += [Sampler(arguments={shift: value}) for value in SHIFTS]
    for name, orders in ORDERS.items():
        for order in orders:
            sampler = Sampler(name, arguments={} if order is None else {"solver_order": order})
            shifts = [Sampler(name, arguments={**sampler.arguments, "flow_shift": s}) for s in SHIFTS if flow]
            proposals += [sampler, *shifts, *_spaced(sampler, pipe)]
    return proposals


def _spaced(sampler: Sampler, pipe: Pipeline) -> list[Sampler]:
    """Return a sampler with each spacing that it has and that needs no further package."""
    try:
        kind, config, _ = choose_class(sampler, pipe)
    except UsageError:
        return []
    spacings = [name for name in spacings_of(kind, config) if name != "beta"]
    return [Sampler(sampler.name, name, sampler.arguments) for name in spacings]
