"""Checkpoints of a run: what is trained, and all that a resumed run needs to go on bit for bit."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from skipdit_cli import files
from skipdit_cli.errors import SkipditError, UsageError

WEIGHTS, AVERAGE, REST, RECORD = "weights.safetensors", "ema.safetensors", "optimizer.pt", "state.json"
CHECKPOINT = "checkpoint"
"""The kind of folder that a checkpoint is, see ``files``."""


@dataclass
class TrainingState:
    """A step, and everything that changed up to it.

    Args:
        weights: Trained parameters by name; the frozen ones are in the model the run began with.
        average: Their moving averages, empty without EMA.
        rest: State dicts of optimizer, schedule and gradient scaler, the EMA's step, random states by process.
        settings: What a resumed run must share, see ``TrainingSettings.recorded``.
    """

    step: int
    weights: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor]
    rest: dict
    settings: dict


class Checkpoints:
    """The folders ``checkpoint-N`` of one run."""

    def __init__(self, output: Path):
        self.output = output

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, in rising order."""
        if not self.output.is_dir():
            return []
        found = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in self.output.iterdir())
        return sorted(int(match[1]) for match in found if match and (self.folder(int(match[1])) / RECORD).is_file())

    def folder(self, step: int) -> Path:
        return self.output / f"checkpoint-{step}"

    def latest(self) -> Path | None:
        steps = self.steps()
        return self.folder(steps[-1]) if steps else None

    def find(self, wanted: str | None) -> Path | None:
        """The checkpoint that ``--resume-from-checkpoint`` asks for; None to begin anew.

        Raises:
            SkipditError: ``latest`` was asked for and there is none.
            UsageError: The folder given is no checkpoint.
        """
        if wanted is None or (wanted == "auto" and self.latest() is None):
            return None
        if wanted in ("latest", "auto"):
            if self.latest() is None:
                raise SkipditError(f"There is no checkpoint in {self.output} to resume from; 'auto' would begin anew.")
            return self.latest()
        if not (Path(wanted) / RECORD).is_file():
            there = ", ".join(f"checkpoint-{step}" for step in self.steps()) or "none"
            raise UsageError(
                f"Got --resume-from-checkpoint {wanted}, which is no checkpoint (it has no {RECORD}); "
                f"{self.output} has {there}."
            )
        return Path(wanted)

    def save(self, state: TrainingState, keep: int | None = None) -> Path:
        """Write ``checkpoint-N`` whole or not at all, then delete the oldest above ``keep``.

        Raises:
            SkipditError: It could not be written; those before it are untouched.
        """
        folder = self.folder(state.step)
        try:
            self.check_room(state.weights)
            files.note(self.output, f"{folder.name}/")
            with files.fill_folder(folder, CHECKPOINT) as part:
                save_file(state.weights, part / WEIGHTS)
                if state.average:
                    save_file(state.average, part / AVERAGE)
                torch.save(state.rest, part / REST)
                record = {"step": state.step, "settings": state.settings}
                (part / RECORD).write_text(json.dumps(record, indent=2, default=str))
        except (SkipditError, RuntimeError) as cause:  # RuntimeError: torch.save on a full disk
            last = self.latest()
            kept = f"{last.name} is whole, resume from it" if last else "there is no earlier one"
            raise SkipditError(f"{folder.name} could not be saved ({str(cause).rstrip('.')}): {kept}.") from cause
        files.note(self.output, state=files.RESUMABLE)
        for step in self.steps()[: -keep if keep else 0]:
            self.remove(step)
        return folder

    def remove(self, step: int) -> None:
        """Delete a checkpoint, and nothing that somebody else put into its folder."""
        for name in (RECORD, WEIGHTS, AVERAGE, REST):  # those of 0.1.0 have no manifest
            (self.folder(step) / name).unlink(missing_ok=True)
        files.remove_listed(self.folder(step))

    def check_room(self, weights: dict[str, torch.Tensor]) -> None:
        """Raise ``UsageError`` unless the disk has room for a checkpoint."""
        files.check_room(self.folder(0), state_bytes(weights))


def state_bytes(weights: dict[str, torch.Tensor]) -> int:
    """Size of a checkpoint: weights, their average, and AdamW's two moments."""
    return 4 * sum(tensor.numel() * tensor.element_size() for tensor in weights.values())


def load_state(folder: Path, settings: dict, force: bool = False) -> TrainingState:
    """Read a checkpoint.

    Raises:
        UsageError: It is damaged, or was made under other settings and ``force`` is off.
    """
    try:
        record = json.loads((folder / RECORD).read_text())
        step, then = int(record["step"]), dict(record["settings"])
        weights = load_file(folder / WEIGHTS)
        average = load_file(folder / AVERAGE) if (folder / AVERAGE).is_file() else {}
        rest = torch.load(folder / REST, map_location="cpu", weights_only=True)
    except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, SafetensorError) as cause:
        said = (str(cause).splitlines() or [type(cause).__name__])[0].rstrip(".")
        raise UsageError(f"Checkpoint {folder} cannot be read ({said}); resume from an earlier one.") from cause
    now = json.loads(json.dumps(settings, default=str))
    changed = [
        f"{key} {then.get(key)} then, {now.get(key)} now" for key in {**then, **now} if then.get(key) != now.get(key)
    ]
    if changed and not force:
        raise UsageError(
            f"Checkpoint {folder} was made with other settings ({'; '.join(changed)}); go on with --force-config."
        )
    return TrainingState(step, weights, average, rest, then)


def random_state() -> dict:
    """The random states of this process: Python, NumPy, torch, and its accelerators."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict) -> None:
    """Undo of ``random_state``."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
