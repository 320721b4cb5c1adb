"""What sampling the released models needs: files, samples, disk space and GPU hours."""

from __future__ import annotations

import time
from pathlib import Path

from skipdit_cli.console import count, size_text
from skipdit_cli.errors import UsageError
from skipdit_cli.studies.released_weights.released_models import (
    COMPANIONS,
    PROMPTS,
    Released,
    cases_of,
    count_reused,
    model_named,
    sampling_flags,
)

LONGEST_NAME = 240
"""Bytes of a prompt that names a file, with the number of the video and the suffix."""


def needed_files(settings) -> dict[Path, str]:
    """Return the files and folders that a run reads, each with the address where it is got."""
    folder, needed = Path(settings.weights), {}
    for model in map(model_named, settings.models):
        needed[folder / model.file] = model.address
        needed |= {folder / name: COMPANIONS[name] for name in model.companions}
        if model.kind == PROMPTS:
            needed[Path(prompts_file(settings, model))] = "yours: a text file with one prompt a line"
    return needed


def prompts_file(settings, model: Released) -> str:
    """Return the file with the prompts of a text-conditional model."""
    return settings.video_prompts if model.is_video else settings.image_prompts


def read_prompts(path: str) -> list[str]:
    """Return the prompts of a file.

    Raises:
        UsageError: It cannot be read, or a prompt cannot name a file, as VBench has it.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as cause:
        raise UsageError(f"Got the prompts {path}, which cannot be read; give a text file in UTF-8.") from cause
    prompts = [line for line in lines if line]
    for prompt in prompts:
        if "/" in prompt or len(prompt.encode()) > LONGEST_NAME:
            raise UsageError(
                f"Got the prompt '{prompt[:60]}' in {path}, which cannot name a file as VBench expects; leave out "
                f"slashes, and more than {LONGEST_NAME} bytes."
            )
    return prompts


def sample_count(settings, model: Released) -> int | None:
    """Return the samples of each way to sample a model; None where its prompts are missing."""
    if model.kind != PROMPTS:
        return settings.video_samples if model.is_video else settings.image_samples
    path = prompts_file(settings, model)
    if not Path(path).is_file():
        return None
    return len(read_prompts(path)) * (settings.videos_per_prompt if model.is_video else 1)


def check(settings) -> None:
    """Refuse a run whose files are missing.

    Raises:
        UsageError: Files are missing; the message lists them with their addresses.
    """
    missing = {path: address for path, address in needed_files(settings).items() if not path.exists()}
    if missing:
        listed = ", ".join(f"{path} ({address})" for path, address in missing.items())
        raise UsageError(
            f"Got {count(len(missing), 'missing file')} for the models {', '.join(settings.models)}: {listed}; get "
            "what is missing, or give a --preset with the models whose files are there as 'experiment: models'.",
            whole=True,
        )
    for model in map(model_named, settings.models):
        sample_count(settings, model)


def describe(settings, seeds: tuple[int, ...]) -> list[str]:
    """Return what a run needs, one sentence each: its files, present or missing, samples, disk space and GPU hours."""
    lines = [
        f"{'present' if path.exists() else 'MISSING'}: {path} ({address})"
        for path, address in needed_files(settings).items()
    ]
    throughput = settings.tflops or measured_tflops()
    rate = throughput * 1e12 * settings.utilisation
    disk = hours = 0.0
    for name in settings.models:
        model = model_named(name)
        samples, cases = sample_count(settings, model), cases_of(model, settings.intervals)
        if samples is None:
            lines.append(f"{name}: as many samples as its prompts say; not in the sums below.")
            continue
        model_hours = samples * flops_per_sample(settings, model) / rate / 3600
        space = model.weight_bytes + len(cases) * samples * model.sample_bytes * 2
        lines.append(
            f"{name}: {count(samples, 'sample')} in each of {count(len(cases), 'way')} ({', '.join(cases)}), "
            f"{model_hours:,.1f} hours, up to {size_text(space)}."
        )
        disk, hours = disk + space, hours + model_hours
    lines.append(f"Disk space: up to {size_text(disk)}, for converted weights, samples and arrays of them.")
    source = "the preset's tflops" if settings.tflops else "measured here, in a product of matrices"
    lines.append(
        f"Time: {hours:,.1f} hours of this device, from the FLOPs of the official models at "
        f"{settings.utilisation:.0%} of {throughput:,.2f} TFLOPS ({source}); decoding and text encoders come on top."
    )
    return [*lines, "Nothing is trained, so the number of --seeds changes nothing."]


def flops_per_sample(settings, model: Released) -> float:
    """Return the FLOPs of one sample, in all ways to sample it together."""
    flags = sampling_flags(model)
    steps = settings.num_inference_steps or int(flags["num-inference-steps"])
    forwards = 1 if float(flags["guidance-scale"]) == 1 else 2
    total = 0.0
    for preset in cases_of(model, settings.intervals).values():
        reused = 0 if preset is None else count_reused(preset, steps, model.last_timestep)
        total += (steps - reused) * model.full_macs + reused * model.reused_macs
    return 2 * forwards * total


def measured_tflops() -> float:
    """Return the throughput of the device in products of matrices: bfloat16 on CUDA, float32 elsewhere."""
    import torch

    from skipdit_cli.sampling.device import select_device

    device, dtype = select_device()
    size = 8192 if device.type == "cuda" else 1024
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    fastest = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for the device
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest / 1e12
