"""The checkpoints of a run: trained weights, and all that a resumed run needs to go on bit for bit."""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from skipdit_cli import files
from skipdit_cli.errors import SkipditError, UsageError, reading
from skipdit_cli.files import checksum, digest
from skipdit_cli.formats import to_json
from skipdit_cli.models.weights import load_torch
from skipdit_cli.training.distributed.sharded_checkpoint import is_sharded
from skipdit_cli.training.observer import SILENT, Observer
from skipdit_cli.training.recorded_settings import check_settings

WEIGHTS, AVERAGE, REST, RECORD = "weights.safetensors", "ema.safetensors", "optimizer.pt", "state.json"
CHECKPOINT = "checkpoint"
"""The kind of a checkpoint's folder, see ``files``."""
METRICS, SAMPLES, ASIDE = "metrics.jsonl", "samples", "set-aside"


@dataclass
class TrainingState:
    """The state of a run at a step.

    Args:
        weights: The trained parameters by name; the frozen ones are in the model the run began with.
        average: Their moving averages; empty without EMA.
        rest: The state dicts of optimizer, schedule and gradient scaler, the steps averaged, and the random states of
            every process.
        settings: The settings that a resumed run must share, see ``TrainingSettings.recorded``.
    """

    step: int
    weights: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor]
    rest: dict
    settings: dict

    def write(self, folder: Path) -> dict[str, str]:
        """Write the weights and their averages into a folder, and return the checksums of the files by name."""
        tensors = {WEIGHTS: self.weights, AVERAGE: self.average}
        written = {name: each for name, each in tensors.items() if each or name == WEIGHTS}
        for name, each in written.items():
            save_file(each, folder / name)
        return {name: checksum(folder / name) for name in written}


class Checkpoints:
    """The folders ``checkpoint-N`` of one run.

    Args:
        observer: Receives a warning about every damaged checkpoint that ``find`` passes over.
        keep: The number of checkpoints to keep; None keeps all.
        every: The steps between two planned checkpoints. One between them, which an interruption left, is deleted
            before the planned ones.
    """

    def __init__(self, output: Path, observer: Observer = SILENT, keep: int | None = None, every: int = 1):
        self.output, self.observer, self.keep, self.every = output, observer, keep, every

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints that are whole, in ascending order."""
        return [step for step in self._all_steps() if (self.folder(step) / RECORD).is_file()]

    def _all_steps(self) -> list[int]:
        """Return the steps of all checkpoints, also of those that miss a file, in ascending order."""
        matches = (re.fullmatch(r"checkpoint-(\d+)", path.parent.name) for path in self.output.glob("checkpoint-*/*"))
        return sorted({int(match[1]) for match in matches if match})

    def folder(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step."""
        return self.output / f"checkpoint-{step}"

    def latest(self) -> Path | None:
        """Return the folder of the newest checkpoint, or None if there is none."""
        steps = self.steps()
        return self.folder(steps[-1]) if steps else None

    def find(self, name: str | None) -> Path | None:
        """Return the checkpoint that ``--resume-from-checkpoint`` names, or None to begin anew.

        ``latest`` and ``auto`` pass over damaged checkpoints.

        Raises:
            SkipditError: The name is ``latest`` and there is no checkpoint.
            UsageError: The folder is no checkpoint, or every checkpoint is damaged.
        """
        if name is None or (name == "auto" and not self._all_steps()):
            return None
        if name in ("latest", "auto"):
            if not self._all_steps():
                raise SkipditError(f"There is no checkpoint in {self.output} to resume from; 'auto' would begin anew.")
            return self._newest_undamaged()
        if not (Path(name) / RECORD).is_file():
            names = ", ".join(f"checkpoint-{step}" for step in self.steps()) or "none"
            raise UsageError(
                f"Got --resume-from-checkpoint {name}, which is no checkpoint (it has no {RECORD}); "
                f"{self.output} has {names}."
            )
        check_whole(Path(name))
        return Path(name)

    def _newest_undamaged(self) -> Path:
        for step in reversed(self._all_steps()):
            try:
                check_whole(self.folder(step))
                return self.folder(step)
            except UsageError as cause:
                self.observer.warn(f"{str(cause).split(';')[0]}; the one before it is looked at.")
        raise UsageError(f"Every checkpoint in {self.output} is damaged; begin anew in another -o.")

    def set_aside(self, after: int) -> Path | None:
        """Move the checkpoints and sample grids after a step, which the run makes anew, into ``set-aside-K``.

        A copy of the metrics goes with them. Nothing resumes from there, and nothing is lost.

        Returns:
            That folder, or None if there were no such checkpoints.
        """
        later = [self.folder(step) for step in self.steps() if step > after]
        if not later:
            return None
        names = {path.name for path in self.output.iterdir()}
        aside = self.output / next(f"{ASIDE}-{k}" for k in itertools.count(1) if f"{ASIDE}-{k}" not in names)
        grids = [path for path in (self.output / SAMPLES).glob("step-*.png") if _step_of_grid(path) > after]
        copied = [METRICS] if (self.output / METRICS).is_file() else []
        moved = [*(f"{path.name}/" for path in later), *(f"{SAMPLES}/{path.name}" for path in grids)]
        files.note(self.output, *(f"{aside.name}/{name}" for name in (*copied, *moved)))
        aside.mkdir()
        for name in copied:
            shutil.copyfile(self.output / name, aside / name)
        for name in moved:
            (aside / name).parent.mkdir(exist_ok=True)
            (self.output / name).rename(aside / name)
        files.forget(self.output, *moved)
        return aside

    def save(self, state: TrainingState, write: Callable[[Path], dict[str, str]] | None = None) -> Path:
        """Write a checkpoint whole or not at all, then delete the oldest ones.

        Args:
            write: Writes the tensors into a folder in another way than this one, and returns the checksums of its
                files by name.
        Raises:
            SkipditError: It could not be written; those before it are untouched.
        """
        folder = self.folder(state.step)
        try:
            self.check_room(state.weights)
            files.note(self.output, f"{folder.name}/")
            with files.fill_folder(folder, CHECKPOINT) as part:
                sums = (write or state.write)(part)
                torch.save(state.rest, part / REST)
                sums = {**sums, REST: checksum(part / REST)}
                record = {"step": state.step, "settings": state.settings, "files": sums}
                files.write_checked(part / RECORD, record, indent=2)
        except (SkipditError, RuntimeError) as cause:  # RuntimeError: torch.save on a full disk
            last = self.latest()
            kept = f"{last.name} is whole, resume from it" if last else "there is no earlier one"
            raise SkipditError(f"{folder.name} could not be saved ({str(cause).rstrip('.')}): {kept}.") from cause
        files.note(self.output, state=files.RESUMABLE)
        self.prune(state.step)
        return folder

    def prune(self, step: int) -> None:
        """Delete the oldest checkpoints, and what a killed run left of those that it was deleting.

        Args:
            step: The step of the run, whose checkpoint stays.
        """
        if not self.keep:
            return
        others = [each for each in self.steps() if each != step]
        others.sort(key=lambda each: (each % self.every == 0, each))
        for each in others[: max(len(others) + 1 - self.keep, 0)]:
            self.remove(each)
        for path in [*self.output.glob("checkpoint-*")]:
            match = re.fullmatch(r"checkpoint-(\d+)", path.name)
            if match and int(match[1]) < step and not (path / RECORD).exists():
                self.remove(int(match[1]))

    def remove(self, step: int) -> None:
        """Delete a checkpoint, but no file in its folder that skipdit did not write."""
        for name in (RECORD, WEIGHTS, AVERAGE, REST):  # those of 0.1.0 have no manifest
            (self.folder(step) / name).unlink(missing_ok=True)
        files.remove_listed(self.folder(step))

    def check_room(self, weights: dict[str, torch.Tensor]) -> None:
        """Check that the disk has room for a checkpoint.

        Raises:
            UsageError: It has not.
        """
        files.check_room(self.folder(0), state_bytes(weights))


def _step_of_grid(path: Path) -> int:
    match = re.fullmatch(r"step-(\d+)", path.stem)
    return int(match[1]) if match else -1


def state_bytes(weights: dict[str, torch.Tensor]) -> int:
    """Return the size of a checkpoint: weights, their average, and AdamW's two moments."""
    return 4 * sum(tensor.numel() * tensor.element_size() for tensor in weights.values())


def check_whole(folder: Path) -> None:
    """Compare a checkpoint's files with the checksums that were recorded when it was saved.

    A checkpoint of version 0.1.0 has no checksums and passes if its files exist.

    Raises:
        UsageError: A file is missing or has changed.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        expected = record.pop("sha256", None)
        sums = dict(record.get("files", {}))
        damaged = [RECORD] if expected != (digest(record) if sums else None) else []
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        sums, damaged = {}, [RECORD]
    for name in sorted(sums) if not damaged else ():
        path = folder / Path(name).name
        if not path.is_file() or checksum(path) != sums[name]:
            damaged.append(name)
    if damaged:
        raise UsageError(
            f"Checkpoint {folder} is damaged: {damaged[0]} is not as it was saved; resume from an earlier one."
        )


def load_state(folder: Path, settings: dict, force: bool = False) -> TrainingState:
    """Read a checkpoint; of one in shards, all but the tensors.

    Args:
        settings: The recorded settings of the run.
        force: Whether to accept a checkpoint that was made under other settings.
    Raises:
        UsageError: It is damaged, or was made under other settings.
    """
    with reading(f"Checkpoint {folder}", "resume from an earlier one"):
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        step, then = int(record["step"]), dict(record["settings"])
        weights = {} if is_sharded(folder) else load_file(folder / WEIGHTS)
        average = load_file(folder / AVERAGE) if (folder / AVERAGE).is_file() else {}
        rest = load_torch(folder / REST)
        if then.get("use_ema") and weights and not average:
            raise UsageError(f"Checkpoint {folder} cannot be read (it has no {AVERAGE}); resume from an earlier one.")
    check_settings(folder, then, json.loads(to_json(settings)), force)
    return TrainingState(step, weights, average, rest, then)


def random_state() -> dict:
    """Return the random states of this process: Python, NumPy, torch, and its accelerators."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict) -> None:
    """Go back to the random states that ``random_state`` returned."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
