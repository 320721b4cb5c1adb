"""Explicit timesteps of a scheduler, in the place of those that it spaces itself."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import diffusers
import numpy as np
import torch

from skipdit_cli.errors import UsageError
from skipdit_cli.sampling.schedulers.fitted_scheduler import FittedScheduler
from skipdit_cli.trunk import Interposed, interpose

SIGMA_SCHEDULERS = (
    diffusers.DPMSolverMultistepScheduler,
    diffusers.UniPCMultistepScheduler,
    diffusers.DEISMultistepScheduler,
    diffusers.EulerDiscreteScheduler,
    diffusers.EulerAncestralDiscreteScheduler,
    diffusers.HeunDiscreteScheduler,
    diffusers.FlowMatchEulerDiscreteScheduler,
)
"""Schedulers that step from each of their ``sigmas`` to the next, and read nothing else of the schedule."""
ALMOST_NOISE = 1 - 1e-6
"""The largest noise level of a flow at which the log of the signal is finite, as in diffusers' UniPC."""


def set_explicit(scheduler: Any, timesteps: Sequence[float]) -> None:
    """Have every ``set_timesteps`` of a scheduler set these timesteps, however a pipeline calls it.

    Fractions of timesteps are allowed where the scheduler steps by noise level: the noise level of a fraction is
    interpolated, and the model sees the fraction. ``set_timesteps(timesteps=...)`` of diffusers would round it, and
    half of the classes have no such argument. Another class than ``SIGMA_SCHEDULERS`` gets its own argument.

    Args:
        timesteps: Strictly descending.

    Raises:
        UsageError: The noise schedule has no such timestep, or the scheduler takes no explicit timesteps.
    """
    _check_range(scheduler, timesteps)
    if hasattr(scheduler, "take_timesteps"):  # ours
        scheduler.take_timesteps(timesteps)
        return
    kind = type(scheduler).__name__
    by_sigma = isinstance(scheduler, SIGMA_SCHEDULERS)
    if scheduler.config.get("invert_sigmas"):
        raise UsageError(f"Got --timesteps, but the {kind} of this model runs from data to noise; leave the flag out.")
    if not by_sigma:
        if "timesteps" not in inspect.signature(scheduler.set_timesteps).parameters:
            raise UsageError(f"Got --timesteps, which a {kind} does not take; give --scheduler, such as dpm++.")
        if any(t != int(t) for t in timesteps):
            raise UsageError(f"Got --timesteps with fractions, but a {kind} takes whole timesteps.")
    setter = _ExplicitSigmas if by_sigma else _ExplicitArgument
    interpose(scheduler, "set_timesteps", partial(setter, scheduler=scheduler, timesteps=tuple(timesteps)), _Explicit)


def set_usual_timesteps(scheduler: Any, steps: int) -> None:
    """Have a scheduler space its timesteps outside of a pipeline, with about the shift that a pipeline asks for where
    it depends on the size of the image."""
    shifted = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    scheduler.set_timesteps(steps, **shifted)


def noise_to_signal(alphas_cumprod: torch.Tensor, timesteps: Sequence[float]) -> np.ndarray:
    """Return sigma / alpha of timesteps; that of a fraction is interpolated in its logarithm, as lu spacing does."""
    table = np.array(((1 - alphas_cumprod) / alphas_cumprod) ** 0.5)
    below = np.floor(timesteps).astype(np.int64)
    above = np.minimum(below + 1, len(table) - 1)
    share = np.asarray(timesteps, dtype=np.float64) - below
    return table[below].astype(np.float64) ** (1 - share) * table[above].astype(np.float64) ** share


def log_snr_timesteps(alphas_cumprod: torch.Tensor, count: int) -> list[float]:
    """Return timesteps, with fractions, evenly spaced in the log of the signal-to-noise ratio, from the last to 0.

    They are those of lu spacing (arXiv 2206.00927, section 3.3), which diffusers rounds.
    """
    log_levels = np.log(noise_to_signal(alphas_cumprod, range(len(alphas_cumprod))))
    spaced = np.linspace(log_levels[-1], log_levels[0], count)
    timesteps = np.interp(spaced, log_levels, np.arange(len(log_levels)))
    return [float(t) for t in timesteps]


def shifted_timesteps(num_train_timesteps: int, count: int, shift: float = 1.0) -> list[float]:
    """Return timesteps of a flow, with fractions, from noise on: even ones, shifted (arXiv 2403.03206, eq. 23)."""
    even = np.arange(count, 0, -1) / count
    return [float(t) for t in num_train_timesteps * shift * even / (1 + (shift - 1) * even)]


class _Explicit(Interposed):
    """A scheduler's ``set_timesteps`` that sets explicit timesteps."""

    def __init__(self, inner, scheduler, timesteps: tuple[float, ...]):
        super().__init__(inner)
        self.scheduler, self.timesteps = scheduler, timesteps


class _ExplicitSigmas(_Explicit):
    """Sets ``timesteps`` and ``sigmas`` after the scheduler has reset itself for as many steps."""

    def __call__(self, *args, **kwargs):
        scheduler = self.scheduler
        self.inner(*args, **kwargs)
        flow = _is_flow(scheduler)
        if flow:
            levels = np.asarray(self.timesteps, dtype=np.float64) / scheduler.config.num_train_timesteps
            if not isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
                levels = levels.clip(max=ALMOST_NOISE)
        else:
            levels = noise_to_signal(scheduler.alphas_cumprod, self.timesteps)
        whole = not flow and all(t == int(t) for t in self.timesteps)
        timesteps = torch.tensor(self.timesteps, dtype=scheduler.timesteps.dtype if whole else torch.float32)
        sigmas = torch.from_numpy(levels.astype(np.float32))
        if scheduler.order == 2:  # Heun evaluates the model twice at all noise levels but the first
            timesteps = torch.cat([timesteps[:1], timesteps[1:].repeat_interleave(2)])
            sigmas = torch.cat([sigmas[:1], sigmas[1:].repeat_interleave(2)])
        scheduler.timesteps = timesteps.to(scheduler.timesteps.device)
        last = scheduler.sigmas[-1:].cpu().minimum(sigmas[-1:])  # 0, or the least of the schedule
        scheduler.sigmas = torch.cat([sigmas, last]).to(scheduler.sigmas.device)
        scheduler.num_inference_steps = len(self.timesteps)


class _ExplicitArgument(_Explicit):
    """Passes ``timesteps`` in the place of a number of steps, for classes of diffusers with that argument."""

    def __call__(self, num_inference_steps=None, device=None, **kwargs):
        self.inner(device=device, **{**kwargs, "timesteps": [int(t) for t in self.timesteps]})


def _is_flow(scheduler) -> bool:
    return not hasattr(scheduler, "alphas_cumprod") or bool(scheduler.config.get("use_flow_sigmas"))


def _check_range(scheduler, timesteps: Sequence[float]) -> None:
    """Refuse timesteps outside of the noise schedule: 0 to ``num_train_timesteps - 1``; of a flow, above 0 to all."""
    flow = _is_flow(scheduler)
    most = scheduler.config.get("num_train_timesteps", 1000) - (not flow)
    if timesteps[0] > most:
        raise UsageError(f"Got --timesteps with {timesteps[0]:g}, but the model has timesteps up to {most}.")
    if flow and timesteps[-1] <= 0 and not isinstance(scheduler, FittedScheduler):
        raise UsageError("Got --timesteps with 0, but at timestep 0 a flow has arrived; leave it out.")
