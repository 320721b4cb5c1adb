"""The latency of a model with and without its official caches, and the PSNR of their samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skipdit_cli.studies.released_weights.released_models import UNCACHED, policy_of


def latency(
    model: str,
    cases: Mapping[str, str | None],
    conditions: Sequence[Any],
    flags: Mapping[str, Any],
    rounds: int,
    device: str,
) -> dict[str, dict[str, list[float | None]]]:
    """Return the seconds of denoising of each case in each round, and the PSNR to the uncached samples in dB.

    The cases run in turn, so that a slow minute is slow for all of them; the round before the first is not timed.

    Args:
        model: The pipeline folder.
        cases: The presets of the caches by name; None without a cache, which is the first.
        conditions: One condition for each sample of a batch.
        flags: The flags of ``sample`` that are not of the cache.
        rounds: Timed rounds, each from other seeds.
        device: The device.
    """
    from skipdit_cli.models import load_pipeline
    from skipdit_cli.sampling.device import select_device
    from skipdit_cli.sampling.generate import generate

    torch_device, dtype = select_device(device)
    pipe = load_pipeline(Path(model), dtype=dtype).to(torch_device)
    settings = {
        "num_inference_steps": int(flags["num-inference-steps"]),
        "guidance_scale": float(flags["guidance-scale"]),
        "scheduler": flags["scheduler"],
        "cfg_channels": flags.get("cfg-channels", "all"),
    }
    policies = {name: None if preset is None else policy_of(preset) for name, preset in cases.items()}
    table: dict[str, dict[str, list]] = {name: {"seconds": [], "psnr": []} for name in cases}
    for number in range(rounds + 1):
        uncached = None
        for name, policy in policies.items():
            generated = generate(pipe, list(conditions), policy=policy, seed=number * len(conditions), **settings)
            uncached = generated.images if name == UNCACHED else uncached
            if number:
                table[name]["seconds"].append(generated.denoise_seconds)
                table[name]["psnr"].append(None if name == UNCACHED else _psnr(uncached, generated.images))
    return table


def _psnr(one, other) -> float | None:
    """Return the PSNR of arrays of 8 bits in dB; None where they are equal."""
    import torch

    from skipdit_cli.planning.accuracy import psnr

    first, second = (torch.from_numpy(each).float() for each in (one, other))
    value = psnr(first, second)
    return None if value == float("inf") else value
