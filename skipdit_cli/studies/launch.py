"""Run command lines of skipdit in processes of their own, several at a time."""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from skipdit_cli.errors import SkipditError
from skipdit_cli.settings import flag_name

TRAINS = ("train", "finetune")
"""The commands that run in several processes of one training."""
PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux' prctl."""

begun: set[subprocess.Popen[bytes]] = set()
"""The programs that run now."""


def flags(**values: Any) -> str:
    """Return the flags of a command line, in the order of the arguments: ``--max-train-steps 10`` of
    ``max_train_steps=10``, ``--skip-branches`` and ``--no-skip-branches`` of True and False, nothing of None."""
    words: list[str] = []
    for name, value in values.items():
        if isinstance(value, bool):
            words.append(flag_name(name if value else f"no_{name}"))
        elif value is not None:
            words += [flag_name(name), str(value)]
    return shlex.join(words)


def launch(words: Sequence[str], log: Path, num_processes: int = 1, num_threads: int | None = None) -> dict[str, Any]:
    """Run a command line in a process of its own, and return the object that it prints.

    Args:
        words: The command line after "skipdit", without ``--json``.
        log: The file for all else that it prints.
        num_processes: Processes of a training, which ``accelerate launch`` starts.
        num_threads: Threads of each process; None for torch's choice.

    Raises:
        SkipditError: It failed.
    """
    program = [sys.executable, "-m", "skipdit_cli"]
    if num_processes > 1 and words[0] in TRAINS:
        launcher = ["accelerate.commands.launch", "--num_processes", str(num_processes)]
        program = [sys.executable, "-m", *launcher, "-m", "skipdit_cli"]
    environment = dict(os.environ)
    if num_threads is not None:
        environment["OMP_NUM_THREADS"] = str(num_threads)
    code, printed = run_program([*program, *words, "--json"], log, environment)
    try:
        result = json.loads(printed)
    except ValueError:
        result = {"error": "it printed no result"}
    if code or "error" in result:
        reason = result.get("error", f"it ended with code {code}")
        raise SkipditError(f"'skipdit {shlex.join(words)}' failed: {reason} Its messages are in {log}.")
    return result


def run_program(program: Sequence[str], log: Path, environment: Mapping[str, str]) -> tuple[int, bytes]:
    """Run a program, which ``run_together`` interrupts, and return its exit code and what it prints.

    Args:
        program: The program and its arguments.
        log: The file for what it prints on stderr.
        environment: Its environment variables.
    """
    with log.open("wb") as file:
        process = subprocess.Popen(
            program,
            stdout=subprocess.PIPE,
            stderr=file,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches it once, from run_together: a second one would end it at once
            preexec_fn=_end_with_parent() if sys.platform == "linux" else None,
        )
        begun.add(process)
        try:
            printed, _ = process.communicate()
        finally:
            begun.discard(process)
    return process.returncode, printed


def _end_with_parent() -> Callable[[], None]:
    """Return what a new process runs before its program, so that it is ended when this one is killed.

    Without it a killed study would leave trainings for which nobody waits, and whose folders the next run may not
    write. A process in the background may ignore SIGINT, so the signal is SIGTERM.
    """
    call, parent = ctypes.CDLL(None).prctl, os.getpid()

    def prepare() -> None:
        call(PARENT_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent:  # it was killed before the call
            os._exit(1)

    return prepare


def run_together(
    tasks: Mapping[str, Callable[[], Any]], after: Mapping[str, frozenset[str]], jobs: int
) -> Generator[tuple[str, Any], None, None]:
    """Run tasks in threads, and yield the name and result of each when it is done.

    Args:
        tasks: Each task by its name, in the order in which to begin them.
        after: For each task, those that must be done before it begins. Names without a task count as done.
        jobs: The number of tasks at one time.

    Raises:
        Exception: The first failure of a task; no further one is begun, and those that run are waited for.
        KeyboardInterrupt: This process was interrupted; so were the programs that tasks had begun, as they are when
            the iterator is closed.
    """
    waiting, done = dict(tasks), {name for names in after.values() for name in names if name not in tasks}
    running: dict[Future[Any], str] = {}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or running:
                ready = [name for name in waiting if after.get(name, frozenset()) <= done]
                for name in ready[: max(jobs - len(running), 0)]:
                    running[pool.submit(waiting.pop(name))] = name
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    name = running.pop(future)
                    done.add(name)
                    yield name, future.result()
        except (KeyboardInterrupt, GeneratorExit):
            _interrupt(running)
            raise


def _interrupt(tasks: Iterable[Future[Any]]) -> None:
    """Interrupt each program of some tasks once, those that are just beginning too, and wait for the tasks."""
    left: set[Future[Any]] = {*tasks}
    interrupted: set[subprocess.Popen[bytes]] = set()
    while left:
        for process in {*begun} - interrupted:
            process.send_signal(signal.SIGINT)
            interrupted.add(process)
        _, left = wait(left, timeout=0.1)
