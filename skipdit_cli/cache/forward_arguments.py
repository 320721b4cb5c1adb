"""The arguments of one forward: the shapes that memory is valid for, and the branch of guidance they belong to."""

from __future__ import annotations

from collections.abc import Iterator

import torch

TIMES = ("timestep", "timesteps", "t", "vision_timesteps", "decoder_noise_time")
"""Names of the timestep."""
MORE_TIMES = (
    "r_timestep", "timestep_r", "target_timestep", "sigma", "sound_timesteps", "action_timesteps", "audio_timestep",
    "audio_sigma",
)  # fmt: skip
MORE_INPUTS = ("audio_hidden_states", "vision_tokens", "sound_tokens", "action_tokens", "decoder_input_tokens")
CHANGING = frozenset((*TIMES, *MORE_TIMES, *MORE_INPUTS))
"""Arguments that change from step to step, besides the first, the latents themselves."""
CONDITIONS = ("input_ids", "encodings_and_masks")
"""First arguments that are a condition, such as a text, and not the latents (Cosmos 3, T5-FiLM)."""
CONTAINERS = (dict, list, tuple)
CONTROL = "controlnet"
"""Part of the name of every argument that holds a ControlNet's residuals, which change from step to step as well."""


def timestep_of(arguments: dict):
    """Return the timestep of a call, or None if it has none."""
    for name in TIMES:
        if name in arguments:
            return arguments[name]
    return None


def signature_and_condition(arguments: dict, first: str) -> tuple[list[tuple], list[torch.Tensor]]:
    """Return what tells two calls apart, from one pass over their arguments.

    Args:
        arguments: The arguments of the call, by name.
        first: Name of the first argument, which is mostly the latents, and then changes.

    Returns:
        The signature: the shapes, dtypes and devices of all tensors, and all switches and sizes. Memory is only used
        for a call of the same signature. And the condition: the tensors that stay the same from step to step within
        one branch of guidance.
    """
    signature: list[tuple] = []
    condition: list[torch.Tensor] = []
    for name, value in arguments.items():
        if value is None or (name in CHANGING and isinstance(value, int)):
            continue
        is_fixed = name not in CHANGING and (name != first or first in CONDITIONS) and CONTROL not in name
        for path, leaf in _leaves(value, name) if isinstance(value, CONTAINERS) else ((name, value),):
            if isinstance(leaf, torch.Tensor):
                signature.append((path, leaf.shape, leaf.dtype, leaf.device))
                if is_fixed:
                    condition.append(leaf)
            elif isinstance(leaf, (int, str)):  # a bool is an int; floats are left out, for scales change
                signature.append((path, leaf))
    return signature, condition


def fills_other_cache(arguments: dict) -> bool:
    """Return whether every block of the call writes keys and values that later calls read, so that none may be left
    out.

    Calls that only read are ``kv_cache_mode="cached"`` (Flux.2, Wan-Animate-2) and ``is_cache_step`` False (AnyFlow).
    """
    for name, value in arguments.items():
        if value is not None and name.startswith("kv_cache"):
            break
    else:
        return False
    flag = arguments.get("kv_cache_flag")
    only_reads = isinstance(flag, dict) and not flag.get("is_cache_step", True)
    return not (only_reads or arguments.get("kv_cache_mode") == "cached")


def _leaves(value, path: str) -> Iterator[tuple[str, object]]:
    """Path and value of each element of a container, of any depth."""
    if not isinstance(value, CONTAINERS):
        yield path, value
        return
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(each, f"{path}.{key}")
