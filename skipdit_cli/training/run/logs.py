"""The logs of a run: ``metrics.jsonl``, a tracker if the settings ask for one, and sample grids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skipdit_cli import media
from skipdit_cli.cache import CachePolicy
from skipdit_cli.families.labels import null_label
from skipdit_cli.files import names_in, note, replacing
from skipdit_cli.formats import to_json
from skipdit_cli.planning.plan import Plan
from skipdit_cli.sampling.generate import generate
from skipdit_cli.sampling.pipelines.call_arguments import call_parameters
from skipdit_cli.training.data.samples import SampleSet
from skipdit_cli.training.objective.conditioning import captured_logs
from skipdit_cli.training.observer import SILENT, Observer
from skipdit_cli.training.run.state import METRICS
from skipdit_cli.training.training_settings import TrainingSettings

GRID_CLASSES, GRID_CAPTIONS, GRID_STEPS, GRID_GUIDANCE = 8, 4, 25, 1.5
GRID_POLICY = {"layers": 1, "interval": 2}


class Metrics:
    """The file ``metrics.jsonl``, with one line per optimizer step, each flushed at once.

    A resumed run drops the lines after its checkpoint, so that the file reads as if there had been no break. A number
    that is not finite (the norm of gradients that overflow in float16) is written as null.

    Args:
        step: The step that the run goes on from.
    """

    def __init__(self, path: Path, step: int):
        lines = path.read_text().splitlines() if step and path.exists() else []
        with replacing(path) as rewritten:
            rewritten.write_text("".join(f"{line}\n" for line in lines if _step_of(line) <= step), encoding="utf-8")
        self.file = path.open("a", encoding="utf-8")

    def write(self, row: dict) -> None:
        """Append a line."""
        self.file.write(to_json(row) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")  # the unfinished last line of a killed run


class RunLog:
    """The metrics and the tracker of a run, which its main process writes.

    Args:
        step: The step that the run goes on from.
    """

    def __init__(self, settings: TrainingSettings, accelerator, step: int):
        self.accelerator, self.metrics = accelerator, None
        if not accelerator.is_main_process:
            return
        self.metrics = Metrics(settings.output / METRICS, step)
        if settings.report_to != "none":
            folder = settings.output / "logs"
            former = {*names_in(folder)}
            accelerator.init_trackers("skipdit")
            note(settings.output, *(f"logs/{name}" for name in {*names_in(folder)} - former))

    def write(self, row: dict) -> None:
        """Log the numbers of a step."""
        if self.metrics is not None:
            self.metrics.write(row)
            self.accelerator.log({key: value for key, value in row.items() if key != "step"}, step=row["step"])

    def close(self) -> None:
        """Close the metrics and the tracker."""
        if self.metrics is not None:
            self.metrics.close()
        self.accelerator.end_training()


def grid_name(step: int) -> str:
    """Return the file name of the sample grid of a step."""
    return f"step-{step:06d}.png"


class SampleGrid:
    """The sample grids of a run: per class or caption a row, sampled without the cache (left) and with it (right).

    With a plan, the right column is the plan: its sampler, its steps and its cache. Both columns start from the same
    noise; of videos, each is a row of frames.

    Args:
        samples: The data, whose first classes or captions are sampled.
        pipe: The pipeline, with the transformer that is trained.
        num_frames: Frames of a video.
        size: Height and width that the model is trained at, which a pipeline may not round to one of its own.
        plan: The plan to sample with; by default every second step is full.

    Raises:
        UsageError: The plan was made for another model.
    """

    def __init__(self, samples: SampleSet, pipe, num_frames: int | None, size: tuple[int, int], plan: Plan | None):
        self.pipe, self.conditions, self.arguments = pipe, *_conditions(samples, pipe, num_frames, size)
        self.name, self.cached = "cached", {"policy": CachePolicy(**GRID_POLICY)}
        self.record: dict[str, Any] = {"cache": GRID_POLICY}
        if plan is not None:
            plan.check_run(pipe, plan.sampler, plan.steps)
            self.name = f"plan {plan.name}"
            self.cached = {"policy": plan.policy, "scheduler": plan.sampler, "num_inference_steps": plan.steps}
            self.record = {"plan": plan.candidate.flags()}
            if plan.made_for["guidance_scale"] is not None:
                self.arguments["guidance_scale"] = plan.made_for["guidance_scale"]

    def save(self, folder: Path, step: int, seed: int, observer: Observer = SILENT) -> None:
        """Save the grid of a step.

        A failure is a warning, because training goes on. Global random states stay as they are.
        """
        arguments = {"num_inference_steps": GRID_STEPS, "seed": seed, **self.arguments}
        try:
            with torch.random.fork_rng(), captured_logs():
                full = generate(self.pipe, self.conditions, **arguments).images
                cached = generate(self.pipe, self.conditions, **{**arguments, **self.cached}).images
            pairs = np.stack([full, cached], axis=1).reshape(-1, *full.shape[1:])
            folder.mkdir(exist_ok=True)
            scale = max(1, 64 // full.shape[-3])
            image = media.grid(pairs, columns=2, scale=scale) if full.ndim == 4 else media.contact_sheet(pairs, scale)
            history = {"step": step, "conditions": self.conditions, "columns": ["full", self.name], **self.record}
            media.save_png(image, folder / grid_name(step), {**history, **arguments})
        except Exception as cause:
            reason = f"{type(cause).__name__}: {cause}"
            observer.warn(f"the sample grid of step {step} failed ({reason}); training goes on.")


def _conditions(samples: SampleSet, pipe, num_frames: int | None, size: tuple[int, int]) -> tuple[list, dict]:
    """Return the first classes or captions of the data, or neither, and the arguments of ``generate`` for them."""
    if isinstance(samples.conditions[0], str):
        captions = list(dict.fromkeys(samples.conditions))[:GRID_CAPTIONS]
        binned = "use_resolution_binning" in call_parameters(pipe)
        exact = {"arguments": {"use_resolution_binning": False}} if binned else {}
        return captions, {"num_frames": num_frames, "height": size[0], "width": size[1], **exact}
    config = pipe.transformer.config
    classes, guided = config.num_embeds_ada_norm, null_label(config) is not None
    labels = [None] * GRID_CAPTIONS if classes is None else list(range(min(GRID_CLASSES, classes)))
    return labels, {"num_frames": num_frames, "guidance_scale": GRID_GUIDANCE if guided else 1.0}
