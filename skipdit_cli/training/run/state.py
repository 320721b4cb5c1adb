"""Checkpoints of a run: what is trained, and all that a resumed run needs to go on bit for bit."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from skipdit_cli import console, files
from skipdit_cli.errors import SkipditError, UsageError, reading
from skipdit_cli.files import checksum

WEIGHTS, AVERAGE, REST, RECORD = "weights.safetensors", "ema.safetensors", "optimizer.pt", "state.json"
CHECKPOINT = "checkpoint"
"""The kind of folder that a checkpoint is, see ``files``."""
FILES = "files"
"""The setting that holds a hash of the names of all samples and of what each comes with."""
SINCE_CHECKSUMS = ("labels", FILES)
"""Settings of the data that checkpoints of version 0.1.0 do not hold."""
METRICS, SAMPLES, ASIDE = "metrics.jsonl", "samples", "set-aside"


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

        ``latest`` and ``auto`` pass over damaged ones, with a warning for each.

        Raises:
            SkipditError: ``latest`` was asked for and there is none.
            UsageError: The folder given is no checkpoint, or every checkpoint is damaged.
        """
        if wanted is None or (wanted == "auto" and self.latest() is None):
            return None
        if wanted in ("latest", "auto"):
            if self.latest() is None:
                raise SkipditError(f"There is no checkpoint in {self.output} to resume from; 'auto' would begin anew.")
            return self._newest_whole()
        if not (Path(wanted) / RECORD).is_file():
            there = ", ".join(f"checkpoint-{step}" for step in self.steps()) or "none"
            raise UsageError(
                f"Got --resume-from-checkpoint {wanted}, which is no checkpoint (it has no {RECORD}); "
                f"{self.output} has {there}."
            )
        check_whole(Path(wanted))
        return Path(wanted)

    def _newest_whole(self) -> Path:
        for step in reversed(self.steps()):
            try:
                check_whole(self.folder(step))
                return self.folder(step)
            except UsageError as cause:
                console.warn(f"{str(cause).split(';')[0]}; the one before it is looked at.")
        raise UsageError(f"Every checkpoint in {self.output} is damaged; begin anew in another -o.")

    def set_aside(self, after: int) -> Path | None:
        """Move the checkpoints and sample grids of later steps, which a run that goes on from step ``after`` makes
        anew, into ``set-aside-K``, with a copy of the metrics: nothing resumes from there, and nothing is lost.

        Returns:
            That folder; None where there were no such checkpoints.
        """
        later = [self.folder(step) for step in self.steps() if step > after]
        if not later:
            return None
        taken = {path.name for path in self.output.iterdir()}
        aside = self.output / next(f"{ASIDE}-{k}" for k in itertools.count(1) if f"{ASIDE}-{k}" not in taken)
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

    def save(self, state: TrainingState, keep: int | None = None) -> Path:
        """Write ``checkpoint-N`` whole or not at all, then delete the oldest of the others above ``keep`` in all.

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
                sums = {name: checksum(part / name) for name in (AVERAGE, REST, WEIGHTS) if (part / name).is_file()}
                record = {"step": state.step, "settings": state.settings, "files": sums}
                record = json.loads(console.to_json(record))
                (part / RECORD).write_text(console.to_json({**record, "sha256": _digest(record)}, indent=2))
        except (SkipditError, RuntimeError) as cause:  # RuntimeError: torch.save on a full disk
            last = self.latest()
            kept = f"{last.name} is whole, resume from it" if last else "there is no earlier one"
            raise SkipditError(f"{folder.name} could not be saved ({str(cause).rstrip('.')}): {kept}.") from cause
        files.note(self.output, state=files.RESUMABLE)
        others = [step for step in self.steps() if step != state.step]
        for step in others[: max(len(others) + 1 - keep, 0)] if keep else ():
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


def _step_of_grid(path: Path) -> int:
    found = re.fullmatch(r"step-(\d+)", path.stem)
    return int(found[1]) if found else -1


def state_bytes(weights: dict[str, torch.Tensor]) -> int:
    """Size of a checkpoint: weights, their average, and AdamW's two moments."""
    return 4 * sum(tensor.numel() * tensor.element_size() for tensor in weights.values())


def check_whole(folder: Path) -> None:
    """Compare a checkpoint's files with the checksums that were recorded when it was saved.

    One that version 0.1.0 saved has no checksums, and is taken for whole if its files are there.

    Raises:
        UsageError: A file is missing or has changed; the sentence names it.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        expected = record.pop("sha256", None)
        sums = dict(record.get("files", {}))
        damaged = [RECORD] if expected != (_digest(record) if sums else None) else []
    except (OSError, ValueError, TypeError, AttributeError):
        sums, damaged = {}, [RECORD]
    for name in sorted(sums) if not damaged else ():
        path = folder / Path(name).name
        if not path.is_file() or checksum(path) != sums[name]:
            damaged.append(name)
    if damaged:
        raise UsageError(
            f"Checkpoint {folder} is damaged: {damaged[0]} is not as it was saved; resume from an earlier one."
        )


def _digest(record: dict) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def load_state(folder: Path, settings: dict, force: bool = False) -> TrainingState:
    """Read a checkpoint.

    Raises:
        UsageError: It is damaged, or was made under other settings and ``force`` is off.
    """
    with reading(f"Checkpoint {folder}", "resume from an earlier one"):
        record = json.loads((folder / RECORD).read_text())
        step, then = int(record["step"]), dict(record["settings"])
        weights = load_file(folder / WEIGHTS)
        average = load_file(folder / AVERAGE) if (folder / AVERAGE).is_file() else {}
        rest = torch.load(folder / REST, map_location="cpu", weights_only=True)
        if then.get("use_ema") and not average:
            raise UsageError(f"Checkpoint {folder} cannot be read (it has no {AVERAGE}); resume from an earlier one.")
    now = json.loads(console.to_json(settings))
    changed = [
        _change(key, then.get(key), now.get(key))
        for key in {**then, **now}
        if then.get(key) != now.get(key) and key != FILES and (key in then or key not in SINCE_CHECKSUMS)
    ]
    if FILES in then and then[FILES] != now.get(FILES):
        changed.append("other files, labels or captions in --data now")
    if changed and not force:
        raise UsageError(
            f"Checkpoint {folder} was made with other settings ({'; '.join(changed)}); go on with --force-config."
        )
    return TrainingState(step, weights, average, rest, then)


def _change(key: str, then, now) -> str:
    """A setting that differs; of many classes, the first that does."""
    if isinstance(then, dict) and isinstance(now, dict):
        name = next(name for name in {**then, **now} if then.get(name) != now.get(name))
        key, then, now = f"{key}: {name}", then.get(name), now.get(name)
    return f"{key} {then} then, {now} now"


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
