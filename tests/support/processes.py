"""Run a command in several processes that work together over gloo, as ``accelerate launch`` would start them."""

import multiprocessing
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

PRELOADED = [
    "torch.distributed",
    "sklearn.datasets",
    "accelerate",
    "diffusers",
    "skipdit_cli.app",
    "skipdit_cli.training.run.complete",
    "skipdit_cli.sampling.generate",
    "skipdit_cli.planning.calibrate",
]
"""Imported once, in the process that all others are forked from: their start then takes no time."""


@dataclass(frozen=True)
class Ended:
    """How the command ended in one process."""

    code: int
    stdout: str
    stderr: str


def run_together(processes: int, *arguments, folder: Path, env: dict | None = None, timeout: int = 240) -> list[Ended]:
    """Run ``skipdit ARGUMENTS`` in so many processes at once and return how it ended in each, in the order of ranks.

    Args:
        folder: A folder for what the processes print, such as ``tmp_path / "logs"``.
        env: Further environment variables, such as those that accelerate's launcher sets.
        timeout: Seconds after which all processes are killed; their code is then negative.
    """
    started = start_together(processes, *arguments, folder=folder, env=env)
    for process in started:
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
    texts = [[printed(folder / f"{rank}.{name}") for name in ("out", "err")] for rank in range(processes)]
    return [Ended(process.exitcode, *streams) for process, streams in zip(started, texts)]


def printed(file: Path) -> str:
    """Return what a process printed, without what Gloo of torch 2.8 says to stderr when processes meet."""
    lines = file.read_text().splitlines(keepends=True)
    return "".join(line for line in lines if file.suffix == ".out" or not line.startswith("[Gloo] Rank "))


def start_together(processes: int, *arguments, folder: Path, env: dict | None = None) -> list:
    """Start ``skipdit ARGUMENTS`` in so many processes and return them, for tests that kill or interrupt them."""
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # as the command sets it, before the server imports torch
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    folder.mkdir(parents=True, exist_ok=True)
    port, started = free_port(), []
    for rank in range(processes):
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
        variables = {**(group | where if processes > 1 else {}), **(env or {})}
        words = [str(argument) for argument in arguments]
        process = context.Process(target=_run, args=(words, {k: str(v) for k, v in variables.items()}, folder, rank))
        process.start()
        started.append(process)
    return started


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _run(arguments: list[str], env: dict[str, str], folder: Path, rank: int) -> None:
    """Run the command in this process, which prints into files."""
    os.environ.update(env)
    for stream, name in ((1, "out"), (2, "err")):
        file = os.open(folder / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
        os.close(file)
    sys.argv = ["skipdit", *arguments]
    from skipdit_cli.app import main

    try:
        main()
    finally:
        import torch

        sys.stdout.flush()
        sys.stderr.flush()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
