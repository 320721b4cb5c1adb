"""The settings of Skip-Cache for one run."""

from __future__ import annotations

from dataclasses import dataclass

from skipdit_cli.settings import CACHE, setting


@dataclass(frozen=True)
class CacheSettings:
    """The settings of Skip-Cache for one run, as they are typed; ``commands/parsing.py`` makes a policy of them."""

    cache: str | None = setting(
        None,
        "Cache by a level, in the place of the flags below: fast, balanced or quality. Of 50 steps 12, 16 or 24 are "
        "full.",
        CACHE,
        metavar="LEVEL",
        recorded=True,
    )
    cache_layers: str | None = setting(
        None,
        "N: blocks at each end of the trunk that run on a reused step; F:B: the first F and the last B. "
        "Turns the cache on.",
        CACHE,
        metavar="N|F:B",
        recorded=True,
    )
    cache_interval: int | None = setting(
        None, "K: every K-th step is full (the paper's n). [default: 2]", CACHE, metavar="K", recorded=True
    )
    cache_window: str | None = setting(
        None,
        "Timesteps between which steps are reused, such as 700:50. [default: all]",
        CACHE,
        metavar="START:END",
        recorded=True,
    )
    full_steps: str | None = setting(
        None,
        "In place of K: M full steps, denser towards the end; or a list of steps, such as 0,5,9.",
        CACHE,
        metavar="M|LIST",
        recorded=True,
    )
    cache_threshold: float | None = setting(
        None,
        "In place of K: a step is full once the output of the first blocks has changed so much since the last full "
        "one, as a sum over steps, such as 1 (0.1 with reuse). For few steps; of 50 of DDIM --full-steps is better.",
        CACHE,
        metavar="TAU",
        recorded=True,
    )
    target_speedup: float | None = setting(
        None,
        "In place of K: the --cache-threshold that gives this speedup, counted in FLOPs, found in a short run first.",
        CACHE,
        metavar="S",
    )
    forecast: str = setting(
        "taylor2",
        "How a reused step predicts the cached tensor: reuse (the paper's way), linear or taylor2.",
        CACHE,
        recorded=True,
    )
    cache_target: str | None = setting(
        None,
        "What is predicted: the boundary tensor, or its residual over the output of the first blocks. "
        "[default: boundary for reuse, else residual]",
        CACHE,
        recorded=True,
    )
    forecast_axis: str = setting(
        "timestep",
        "Axis of the forecast: timestep, or sqrt, its square root, where the noise itself is smoother.",
        CACHE,
        recorded=True,
    )
    forecast_damping: float = setting(
        1.0,
        "Factor per order of the forecast's differences: 1 is the plain polynomial, 0 is reuse.",
        CACHE,
        recorded=True,
    )
