"""What the arguments of one forward tell: what memory holds good for it, and which branch of guidance it is of."""

from __future__ import annotations

from collections.abc import Iterator

import torch

TIMES = ("timestep", "timesteps", "t", "vision_timesteps", "decoder_noise_time")
MORE_TIMES = ("r_timestep", "timestep_r", "target_timestep", "sigma", "sound_timesteps", "action_timesteps")
MORE_TIMES += ("audio_timestep", "audio_sigma")
MORE_INPUTS = ("audio_hidden_states", "vision_tokens", "sound_tokens", "action_tokens", "decoder_input_tokens")
CHANGING = (*TIMES, *MORE_TIMES, *MORE_INPUTS)
"""Arguments that change from step to step, besides the first, the input itself."""
CONDITIONS = ("input_ids", "encodings_and_masks")
"""First arguments that are no input but a text or alike (of Cosmos 3 and T5-FiLM)."""
CONTROL = "controlnet"
"""Part of the name of every argument that holds a ControlNet's residuals, which change as well."""


def timestep_of(arguments: dict):
    """The timestep of a call, None where it has none."""
    return next((arguments[name] for name in TIMES if name in arguments), None)


def signature_of(arguments: dict) -> tuple:
    """Shapes, dtypes and devices of all tensors, and every switch and size: memory is never used for another."""
    plain = {name: value for name, value in arguments.items() if name not in CHANGING or not isinstance(value, int)}
    return tuple(
        (path, value.shape, value.dtype, value.device) if isinstance(value, torch.Tensor) else (path, value)
        for path, value in _leaves(plain)
    )


def condition_of(arguments: dict, first: str) -> list[torch.Tensor]:
    """The tensors that stay the same from step to step within one branch of guidance.

    Args:
        first: Name of the first argument, mostly the input, which does not.
    """
    changing = CHANGING if first in CONDITIONS else (first, *CHANGING)
    kept = {name: value for name, value in arguments.items() if name not in changing and CONTROL not in name}
    return [value for _, value in _leaves(kept) if isinstance(value, torch.Tensor)]


def fills_other_cache(arguments: dict) -> bool:
    """Whether the call has every block write keys and values that later calls read: then none may be left out.

    Known to read only are ``kv_cache_mode="cached"`` (Flux.2, Wan-Animate-2) and ``is_cache_step`` False (AnyFlow).
    """
    given = {name for name, value in arguments.items() if name.startswith("kv_cache") and value is not None}
    if not given:
        return False
    flag = arguments.get("kv_cache_flag")
    reads = isinstance(flag, dict) and not flag.get("is_cache_step", True)
    return not (reads or arguments.get("kv_cache_mode") == "cached")


def _leaves(value, path: str = "") -> Iterator[tuple[str, object]]:
    """Tensors, and what else can be told apart at sight: switches, whole numbers, words. Not floats: scales move."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _leaves(each, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for at, each in enumerate(value):
            yield from _leaves(each, f"{path}.{at}")
    elif isinstance(value, (torch.Tensor, bool, int, str)):
        yield path, value
