"""What a run leaves besides weights: ``metrics.jsonl``, a tracker on request, and the sample grids."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from skipdit_cli import console, media
from skipdit_cli.cache import CachePolicy
from skipdit_cli.families.labels import null_label
from skipdit_cli.files import replacing
from skipdit_cli.sampling.generate import generate
from skipdit_cli.sampling.pipelines.call_arguments import call_parameters
from skipdit_cli.training.data.samples import SampleSet
from skipdit_cli.training.objective.conditioning import told_in_logs

GRID_CLASSES, GRID_TEXTS, GRID_STEPS, GRID_GUIDANCE = 8, 4, 25, 1.5
GRID_POLICY = {"layers": 1, "interval": 2}


class Metrics:
    """``metrics.jsonl``: one line an optimizer step, each written at once. A resumed run drops the lines after its
    checkpoint, so that the file reads as if there had been no break. What is not finite (the norm of gradients that
    overflow in float16) is null."""

    def __init__(self, path: Path, step: int):
        lines = path.read_text().splitlines() if step and path.exists() else []
        with replacing(path) as rewritten:
            rewritten.write_text("".join(f"{line}\n" for line in lines if _step_of(line) <= step), encoding="utf-8")
        self.file = path.open("a", encoding="utf-8")

    def write(self, row: dict) -> None:
        self.file.write(console.to_json(row) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")  # the half line of a killed run


def grid_run(samples: SampleSet, pipe, num_frames: int | None, size: tuple[int, int]) -> dict:
    """What the grids of a run show, as arguments of ``generate``: the first classes or captions, or neither. At the
    size that is trained, not at the one of a pipeline's own that is nearest to it."""
    if isinstance(samples.conditions[0], str):
        texts = list(dict.fromkeys(samples.conditions))[:GRID_TEXTS]
        binning = "use_resolution_binning" in call_parameters(pipe)
        free = {"arguments": {"use_resolution_binning": False}} if binning else {}
        return {"conditions": texts, "num_frames": num_frames, "height": size[0], "width": size[1], **free}
    config = pipe.transformer.config
    classes, guided = config.num_embeds_ada_norm, null_label(config) is not None
    shown = [None] * GRID_TEXTS if classes is None else list(range(min(GRID_CLASSES, classes)))
    return {"conditions": shown, "num_frames": num_frames, "guidance_scale": GRID_GUIDANCE if guided else 1.0}


def grid_name(step: int) -> str:
    return f"step-{step:06d}.png"


def save_grid(pipe, run: dict, folder: Path, step: int, seed: int) -> None:
    """``step-000500.png``: a row a class or caption, left sampled in full, right with the cache, from the same noise;
    of videos one row of frames for each of the two. A failure is a warning: training goes on. Global random states are
    as before."""
    run = {"num_inference_steps": GRID_STEPS, "seed": seed, **run}
    conditions = run.pop("conditions")
    try:
        with torch.random.fork_rng(), told_in_logs():
            full = generate(pipe, conditions, **run).images
            cached = generate(pipe, conditions, policy=CachePolicy(**GRID_POLICY), **run).images
        pairs = np.stack([full, cached], axis=1).reshape(-1, *full.shape[1:])
        folder.mkdir(exist_ok=True)
        scale = max(1, 64 // full.shape[-3])
        picture = media.grid(pairs, columns=2, scale=scale) if full.ndim == 4 else media.contact_sheet(pairs, scale)
        made = {"step": step, "conditions": conditions, "columns": ["full", "cached"], "cache": GRID_POLICY, **run}
        media.save_png(picture, folder / grid_name(step), made)
    except Exception as cause:
        console.warn(f"the sample grid of step {step} failed ({type(cause).__name__}: {cause}); training goes on.")
