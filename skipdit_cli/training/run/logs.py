"""The logs of a run: ``metrics.jsonl``, a tracker if the settings ask for one, and sample grids."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from skipdit_cli import media
from skipdit_cli.cache import CachePolicy
from skipdit_cli.errors import SkipditError, first_line
from skipdit_cli.families.labels import null_label
from skipdit_cli.files import names_in, note, replacing
from skipdit_cli.formats import is_number, to_json
from skipdit_cli.planning.plan import Plan
from skipdit_cli.sampling.generate import generate
from skipdit_cli.sampling.pipelines.call_arguments import call_parameters
from skipdit_cli.training.data.metadata import Condition
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

    Attributes:
        last: The line of that step; empty without one.
    """

    def __init__(self, path: Path, step: int):
        text = path.read_text(encoding="utf-8", errors="replace") if step and path.exists() else ""
        kept = [line for line in text.splitlines() if _step_of(line) <= step]
        with replacing(path) as rewritten:
            rewritten.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.last: dict = json.loads(kept[-1]) if kept else {}
        self.file = path.open("a", encoding="utf-8")

    def write(self, row: dict) -> None:
        """Append a line."""
        self.file.write(to_json(row) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _step_of(line: str) -> float:
    """Return the step of a line; infinity for the unfinished last one of a killed run, or a damaged one."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return float("inf")
    is_whole = isinstance(row, dict) and is_number(row.get("step")) and is_number(row.get("loss", 0))
    return float(row["step"]) if is_whole else float("inf")


class RunLog:
    """The metrics and the tracker of a run, which its main process writes.

    Args:
        step: The step that the run goes on from.
    """

    def __init__(self, settings: TrainingSettings, accelerator, step: int):
        self.accelerator, self.settings, self.metrics = accelerator, settings, None
        if not accelerator.is_main_process:
            return
        self.metrics = Metrics(settings.output / METRICS, step)
        if settings.report_to != "none":
            folder = settings.output / "logs"
            folder.mkdir(parents=True, exist_ok=True)
            self.former = {*names_in(folder)}
            try:
                accelerator.init_trackers("skipdit", **_tracker_options(settings))
            except Exception as cause:  # of a server or an account: dozens of types
                hint = "; WANDB_MODE=offline needs no account" if settings.report_to == "wandb" else ""
                raise SkipditError(
                    f"The tracker {settings.report_to} cannot start: {first_line(cause)}{hint}."
                ) from cause
            self._note_files()

    @property
    def last(self) -> dict:
        """The metrics of the step that the run goes on from; empty where it begins, and in other processes."""
        return {} if self.metrics is None else self.metrics.last

    def write(self, row: dict) -> None:
        """Log the numbers of a step."""
        if self.metrics is not None:
            self.metrics.write(row)
            self.accelerator.log({key: value for key, value in row.items() if key != "step"}, step=row["step"])

    def write_grid(self, grid: Image.Image | None, step: int, captions: Sequence[str]) -> None:
        """Log the sample grid of a step as an image.

        Args:
            grid: The grid; None if it could not be made.
            captions: The titles of its rows.
        """
        for tracker in self.accelerator.trackers if grid is not None else ():
            if tracker.name == "tensorboard":
                tracker.log_images({"samples": np.asarray(grid)[None]}, step=step, dataformats="NHWC")
                tracker.writer.add_text("samples", ", ".join(captions), global_step=step)
            elif tracker.name == "wandb":
                import wandb

                tracker.log({"samples": [wandb.Image(grid, caption=", ".join(captions))]}, step=step)
            else:
                tracker.log_images({"samples": [np.asarray(grid)]}, step=step)

    def close(self) -> None:
        """Close the metrics and the tracker."""
        if self.metrics is not None:
            self.metrics.close()
        self.accelerator.end_training()
        if self.metrics is not None and self.settings.report_to != "none":
            _remove_links(self.settings.output / "logs" / "wandb")
            self._note_files()

    def _note_files(self) -> None:
        """List the files of the tracker among those of the run."""
        output = self.settings.output
        note(output, *(f"logs/{name}" for name in {*names_in(output / "logs")} - self.former))


def _remove_links(folder: Path) -> None:
    """Remove the links and the empty folders that wandb leaves, which no manifest can list."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_symlink():
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _tracker_options(settings: TrainingSettings) -> dict[str, Any]:
    """Return the arguments of ``init_trackers``: wandb gets the settings, and keeps its files in the run's folder."""
    if settings.report_to != "wandb":
        return {}
    values = {name: value for name, value in asdict(settings).items() if value is not None}
    config = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
    return {"config": config, "init_kwargs": {"wandb": {"dir": str(settings.output / "logs")}}}


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
        self.titles = _titles(self.conditions, {**(getattr(pipe, "labels", None) or {}), **samples.labels})
        self.name, self.cached = "cached", {"policy": CachePolicy(**GRID_POLICY)}
        self.record: dict[str, Any] = {"cache": GRID_POLICY}
        if plan is not None:
            plan.check_run(pipe, plan.sampler, plan.steps)
            self.name = f"plan {plan.name}"
            self.cached = {"policy": plan.policy, "scheduler": plan.sampler, "num_inference_steps": plan.steps}
            self.record = {"plan": plan.candidate.flags()}
            if plan.made_for["guidance_scale"] is not None:
                self.arguments["guidance_scale"] = plan.made_for["guidance_scale"]

    def draw(self, step: int, seed: int, observer: Observer = SILENT) -> dict[str, Any] | None:
        """Sample the grid of a step; the cached and the uncached samples are in its ``pairs``.

        A failure is a warning and returns None, because training goes on. Global random states stay as they are.
        """
        arguments = {"num_inference_steps": GRID_STEPS, "seed": seed, **self.arguments}
        with self._warned(step, observer), torch.random.fork_rng(), captured_logs():
            full = generate(self.pipe, self.conditions, **arguments).images
            cached = generate(self.pipe, self.conditions, **{**arguments, **self.cached}).images
            pairs = np.stack([full, cached], axis=1).reshape(-1, *full.shape[1:])
            return {"pairs": pairs, **arguments}
        return None

    def save(self, grid: dict[str, Any] | None, folder: Path, step: int, observer: Observer = SILENT):
        """Save the grid of a step and return the image, with titles; None if that fails, or if ``grid`` is None."""
        if grid is None:
            return None
        with self._warned(step, observer):
            pairs, arguments = grid["pairs"], {key: value for key, value in grid.items() if key != "pairs"}
            folder.mkdir(exist_ok=True)
            scale = max(1, 64 // pairs.shape[-3])
            image, offset = self._arrange(pairs, scale, step)
            history = {"step": step, "conditions": self.conditions, "columns": ["full", self.name], **self.record}
            media.save_png(image, folder / grid_name(step), {**history, "offset": offset, **arguments})
            return image
        return None

    @contextmanager
    def _warned(self, step: int, observer: Observer) -> Iterator[None]:
        """Turn a failure into a warning."""
        try:
            yield
        except Exception as cause:
            reason = f"{type(cause).__name__}: {cause}"
            observer.warn(f"the sample grid of step {step} failed ({reason}); training goes on.")

    def _arrange(self, pairs: np.ndarray, scale: int, step: int) -> tuple[Image.Image, tuple[int, int]]:
        """Return the grid with its titles, and where its pixels begin.

        Args:
            pairs: uint8 (2N, [F,] H, W, 3), uncached and cached samples in turn.
        """
        columns, title = ("uncached", self.name), f"step {step:,}"
        if pairs.ndim == 4:
            return media.add_titles(media.grid(pairs, columns=2, scale=scale), title, columns, self.titles)
        rows = [f"{text}, {column}" for text in self.titles for column in columns]
        return media.add_titles(media.contact_sheet(pairs, scale), title, (), rows)


def _titles(conditions: Sequence[Condition], labels: Mapping[str, int]) -> list[str]:
    """Return the titles of rows: captions, names of classes, or numbers."""
    names = {label: name for name, label in labels.items() if not name.isdecimal()}
    titles = []
    for number, condition in enumerate(conditions, 1):
        if isinstance(condition, str):
            titles.append(condition)
        else:
            titles.append(f"sample {number}" if condition is None else names.get(condition, f"class {condition}"))
    return titles


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
