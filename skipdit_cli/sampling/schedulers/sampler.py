"""A sampler: a scheduler by name, how its timesteps are spaced, and the arguments of its constructor."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from skipdit_cli.errors import UsageError, nearest

SPACINGS: dict[str, dict[str, object]] = {
    "lu": {"use_lu_lambdas": True},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "leading": {"timestep_spacing": "leading"},
    "linspace": {"timestep_spacing": "linspace"},
    "trailing": {"timestep_spacing": "trailing"},
}
"""The spacings of timesteps, each with the value in a scheduler's config that selects it."""
SWITCHES = ("use_lu_lambdas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
"""The booleans in a scheduler's config that replace its ``timestep_spacing``; at most one is true."""


@dataclass(frozen=True)
class Sampler:
    """The scheduler of a run, as flags describe it; ``make_scheduler`` makes it for a pipeline.

    Args:
        name: One of ``SCHEDULERS``, or ``fitted``; the pipeline's own scheduler if None.
        spacing: One of ``SPACINGS``; that of the scheduler's config if None.
        arguments: Arguments of the scheduler's constructor, which replace those of its config.
        timesteps: Explicit timesteps, strictly descending, one for each denoising step; those of the spacing if None.

    Raises:
        UsageError: The spacing is unknown, stands beside explicit timesteps, or these are no descending list.
    """

    name: str | None = None
    spacing: str | None = None
    arguments: Mapping[str, object] = field(default_factory=dict)
    timesteps: Sequence[float] | None = None

    def __post_init__(self):
        if self.spacing is not None and self.spacing not in SPACINGS:
            hint = nearest(self.spacing, SPACINGS)
            raise UsageError(
                f"Got --scheduler-spacing '{self.spacing}' but expected one of {', '.join(SPACINGS)}.{hint}"
            )
        if self.timesteps is not None:
            if self.spacing is not None:
                raise UsageError(f"Got --scheduler-spacing {self.spacing} and --timesteps; give one of the two.")
            object.__setattr__(self, "timesteps", tuple(self.timesteps))
            check_descending(self.timesteps)

    def __hash__(self) -> int:
        return hash((self.name, self.spacing, repr(sorted(self.arguments.items())), self.timesteps))

    def describe(self) -> str:
        """Return a short name: "dpm++ lu", "unipc karras order 3", "ddim at 9 timesteps"."""
        parts = [self.name or "own scheduler", self.spacing or ""]
        for name, value in self.arguments.items():
            if name in ("coefficients", "output_branch_sha256"):  # of a fitted scheduler: many numbers
                continue
            if name == "output_branch":
                parts.append("with an output branch")
                continue
            parts.append(f"order {value}" if name == "solver_order" else f"{name} {value}")
        if self.timesteps is not None:
            parts.append(f"at {len(self.timesteps)} timesteps")
        return " ".join(part for part in parts if part)

    def flags(self) -> dict[str, str | list[str]]:
        """Return the flags of ``sample`` and ``bench`` that select the sampler, without dashes, as in a preset."""
        from skipdit_cli.formats import to_json  # JSON is YAML, on one line

        flags: dict[str, str | list[str]] = {}
        if self.name is not None:
            flags["scheduler"] = self.name
        if self.spacing is not None:
            flags["scheduler-spacing"] = self.spacing
        if self.arguments:
            flags["scheduler-arg"] = [f"{name}={to_json(value)}" for name, value in self.arguments.items()]
        if self.timesteps is not None:
            flags["timesteps"] = ",".join(f"{t:.9g}" for t in self.timesteps)
        return flags

    def spaced(self) -> Sampler:
        """Return the sampler without explicit timesteps, which can take any number of steps."""
        return replace(self, timesteps=None)

    def at_any_steps(self) -> Sampler:
        """Return the sampler for another number of steps: spaced, or the pipeline's own in place of a fitted one."""
        return Sampler() if self.is_fitted else self.spaced()

    @property
    def is_fitted(self) -> bool:
        """Whether its coefficients are fitted to one model, at one list of timesteps."""
        return "coefficients" in self.arguments


def as_sampler(scheduler: Any) -> Sampler:
    """Return a sampler from itself, or from the name of its scheduler; of a scheduler, the timesteps are not known."""
    return scheduler if isinstance(scheduler, Sampler) else Sampler(None if is_scheduler(scheduler) else scheduler)


def is_scheduler(scheduler: Any) -> bool:
    """Return whether this is a scheduler itself, not the description of one."""
    return hasattr(scheduler, "set_timesteps")


def check_descending(timesteps: Sequence[float]) -> None:
    """Refuse explicit timesteps that no run can take, whatever the noise schedule.

    Raises:
        UsageError: There is none, one is not finite or is below 0, or they do not descend.
    """
    if not timesteps:
        raise UsageError("Got an empty --timesteps but expected one or more, such as 999,750,500,250.")
    for t in timesteps:
        if not math.isfinite(t) or t < 0:
            raise UsageError(f"Got --timesteps with {t:g} but expected finite numbers of 0 or more.")
    for before, after in itertools.pairwise(timesteps):
        if after >= before:
            raise UsageError(f"Got --timesteps with {before:g},{after:g} but expected each below the one before it.")
