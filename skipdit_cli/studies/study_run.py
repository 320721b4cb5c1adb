"""One run of a study: what it has done is kept, so that an interrupted run goes on."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

from skipdit_cli import files
from skipdit_cli.errors import SkipditError
from skipdit_cli.formats import to_json
from skipdit_cli.studies.launch import TRAINS, launch, run_together
from skipdit_cli.studies.study import Study
from skipdit_cli.training.observer import SILENT, Observer

WRITERS = ("bench", "calibrate", "convert", "sample", *TRAINS)
"""The commands that write a folder, ``--output``."""
RUN = "{run}"
"""What stands for the folder of the run in a command line."""
RESULTS, MEASURED, LOGS = "results", "measured", "logs"
"""The folders for the objects that commands print, for measurements, and for what processes print besides."""
MOST_BYTES = 1 << 28
"""The size that no kept result exceeds."""


@dataclass(frozen=True)
class StudyRun:
    """A run of a study in a folder.

    Args:
        study: The study.
        settings: Its settings.
        seeds: The training seeds.
        place: The folder, which exists and has a marker.
        device: The device of measurements.
        observer: Receives messages and progress.
        jobs: How many commands and measurements run at one time, each in a process of its own.
        num_processes: Processes of one training.
        execute: Runs a command line in this process and returns the object that it prints; for one job only.
    """

    study: Study
    settings: Any
    seeds: tuple[int, ...]
    place: Path
    device: str = "cpu"
    observer: Observer = SILENT
    jobs: int = 1
    num_processes: int = 1
    execute: Callable[[Sequence[str]], dict[str, Any]] | None = None
    lines: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lines", self.study.commands(self.settings, self.seeds))

    def folder(self, name: str) -> Path:
        """Return the output folder of a command."""
        return self.place / name

    def result(self, name: str) -> dict[str, Any]:
        """Return the object that a command printed under ``--json``."""
        file = self._kept_file(RESULTS, name)
        kept = _read_kept(file)
        if kept is None:
            raise SkipditError(f"Got {file}, which is gone or damaged; run the study again, which makes it anew.")
        return kept["value"]

    def words(self, name: str) -> list[str]:
        """Return the words of a command line after "skipdit", its output folder among them."""
        words = [word.replace(RUN, str(self.place)) for word in shlex.split(self.lines[name])]
        return [*words, "--output", str(self.folder(name))] if words[0] in WRITERS else words

    def run_commands(self) -> None:
        """Run every command that has not been run yet.

        Raises:
            SkipditError: One failed. What the others made is kept.
        """
        missing = [name for name in self.lines if self._kept(RESULTS, name, self.lines[name]) is None]
        written = [f"{name}/" for name in self.lines if self.words(name)[0] in WRITERS]
        files.note(self.place, *written, *(f"{LOGS}/{name}.log" for name in missing))
        if self.execute is not None:
            for name in missing:
                self._keep(RESULTS, name, self.lines[name], *_timed(self._run_command, {"name": name}))
            return
        (self.place / LOGS).mkdir(exist_ok=True)
        tasks = {name: partial(_timed, self._run_command, {"name": name}) for name in missing}
        after = {name: frozenset(re.findall(r"\{run\}/([\w.-]+)", self.lines[name])) - {name} for name in missing}
        with (
            self.observer.progress("commands", len(missing)) as advance,
            closing(run_together(tasks, after, self.jobs)) as results,
        ):
            for name, (result, seconds) in results:
                self._keep(RESULTS, name, self.lines[name], result, seconds)
                advance(note=name)

    def measured(self, name: str, function: Callable[..., Any], **arguments: Any) -> Any:
        """Return what a function gives, computed now or kept by an interrupted run.

        Args:
            name: The name of the measurement, one of its own in the study.
            function: A function of a module, whose arguments and whose value are JSON.
        """
        return self.measured_all(function, {name: arguments})[name]

    def measured_all(self, function: Callable[..., Any], calls: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Return what a function gives for each of several arguments; ``jobs`` calls run at one time.

        Args:
            function: As for ``measured``.
            calls: The arguments of each measurement by its name.
        """
        keys = {name: as_json({"function": function.__qualname__, **arguments}) for name, arguments in calls.items()}
        values = {name: kept for name in calls if (kept := self._kept(MEASURED, name, keys[name])) is not None}
        missing = {name: dict(arguments) for name, arguments in calls.items() if name not in values}
        with (
            self.observer.progress("measurements", len(missing)) as advance,
            closing(self._compute(function, missing)) as results,
        ):
            for name, value, seconds in results:
                self._keep(MEASURED, name, keys[name], value, seconds)
                values[name] = {"value": value}
                advance(note=name)
        return {name: values[name]["value"] for name in calls}

    def seconds(self) -> float:
        """Return the seconds that all commands and measurements took, one after the other."""
        kept = (self.place / part for part in (RESULTS, MEASURED))
        results = (_read_kept(file) for part in kept for file in part.glob("*"))
        return sum(result["seconds"] for result in results if result is not None)

    def _run_command(self, name: str) -> dict[str, Any]:
        """Run a command, or go on with it, and return the object that it prints."""
        words, folder = self.words(name), self.folder(name)
        marker = files.read_marker(folder) or {}
        if words[0] in TRAINS and folder.is_dir():
            words += ["--resume-from-checkpoint", "auto"]
        elif marker.get("state") == files.FINISHED and words[0] in WRITERS:
            words += ["--overwrite"]  # it ended, but its result was not kept any more
        if self.execute is not None:
            return self.execute(words)
        return launch(words, self.place / LOGS / f"{name}.log", self.num_processes, self._threads())

    def _compute(
        self, function: Callable[..., Any], calls: Mapping[str, dict]
    ) -> Generator[tuple[str, Any, float], None, None]:
        """Yield the name, the value and the seconds of each call when it is done."""
        if self.jobs == 1 or len(calls) < 2:
            for name, arguments in calls.items():
                yield (name, *_timed(function, arguments))
            return
        context = get_context("spawn")  # a forked process would share the threads of torch
        with ProcessPoolExecutor(self.jobs, context, _begin_worker, (self._threads(),)) as pool:
            futures = {pool.submit(_timed, function, arguments): name for name, arguments in calls.items()}
            try:
                for future in as_completed(futures):
                    yield (futures[future], *future.result())
            except (KeyboardInterrupt, GeneratorExit):
                for worker in active_children():
                    worker.terminate()
                raise
            finally:
                pool.shutdown(cancel_futures=True)

    def _threads(self) -> int | None:
        """Return the threads of each of several processes; None where there is one."""
        from skipdit_cli.bench.machine import count_cores

        return max(1, count_cores() // self.jobs) if self.jobs > 1 else None

    def _kept_file(self, part: str, name: str) -> Path:
        return self.place / part / f"{name}.json"

    def _kept(self, part: str, name: str, key: Any) -> dict[str, Any] | None:
        """Return what was kept under a name and the same key; None if there is nothing, or a damaged file."""
        kept = _read_kept(self._kept_file(part, name))
        return kept if kept is not None and self._portable(kept["key"]) == self._portable(key) else None

    def _portable(self, key: Any) -> Any:
        """Return a key without the place of the folder, which may be moved while the study is interrupted."""
        place = to_json(f"{self.place}{os.sep}")[1:-1]
        return json.loads(to_json(key).replace(place, f"{RUN}/"))

    def _keep(self, part: str, name: str, key: Any, value: Any, seconds: float) -> None:
        file = self._kept_file(part, name)
        file.parent.mkdir(exist_ok=True)
        files.note(self.place, f"{part}/{file.name}")
        kept = {"key": self._portable(key), "value": value, "seconds": round(seconds, 2)}
        files.write_checked(file, kept, indent=1)


def _read_kept(file: Path) -> dict[str, Any] | None:
    """Return what was kept in a file; None if there is nothing, or a damaged file."""
    return files.read_checked(file, MOST_BYTES, "it is made again")


def _timed(function: Callable[..., Any], arguments: Mapping[str, Any]) -> tuple[Any, float]:
    """Return the value of a call, as plain JSON, and its seconds."""
    start = time.monotonic()
    return as_json(function(**arguments)), time.monotonic() - start


def as_json(value: Any) -> Any:
    """Return a value as JSON gives it back, so that a kept one equals a new one."""
    return json.loads(to_json(value))


def _begin_worker(threads: int | None) -> None:
    """Leave Ctrl-C to the process that began this one, end with it if it is killed, and set the number of threads."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    if threads is not None:
        torch.set_num_threads(threads)


def _end_with_parent() -> None:
    """End this process as soon as the one that began it is dead: nobody would take its results."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
