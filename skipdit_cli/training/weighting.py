"""The weighting of timesteps in a flow matching loss."""

from __future__ import annotations

from dataclasses import dataclass

from skipdit_cli.errors import UsageError

WEIGHTINGS = ("none", "sigma_sqrt", "logit_normal", "mode", "cosmap")


@dataclass(frozen=True)
class Weighting:
    """The distribution of timesteps and their weights in a flow matching loss, as in diffusers' training scripts.

    Args:
        scheme: ``logit_normal`` and ``mode`` are distributions of timesteps; ``sigma_sqrt`` and ``cosmap`` are weights
            of timesteps drawn uniformly; ``none`` is neither.
    """

    scheme: str = "logit_normal"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29


def check_weighting(scheme: str | None, mean: float | None, std: float | None, scale: float | None) -> None:
    """Check the flags of a weighting; those that are not given are None.

    Raises:
        UsageError: A number is out of range, or belongs to another scheme.
    """
    if std is not None and not std > 0:
        raise UsageError(f"Got --logit-std {std} but expected a number above 0.")
    flags = (
        ("--logit-mean", mean, "logit_normal"),
        ("--logit-std", std, "logit_normal"),
        ("--mode-scale", scale, "mode"),
    )
    for flag, value, owner in flags:
        if value is not None and (scheme or Weighting.scheme) != owner:
            raise UsageError(f"Got {flag} {value} without --weighting-scheme {owner}.")
