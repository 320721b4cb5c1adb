"""Kill runs at random moments, start them again until they succeed, and compare what they leave."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from skipdit_cli.files import FINISHED, read_marker
from tests.support.processes import start_together

POLLED = 0.002
"""Seconds between two looks at the folder of a run."""


def survive(
    words: Sequence[object],
    output: Path,
    kills: int,
    seed: int,
    contents: Callable[[Path], object],
    check: Callable[[Path], None] = lambda output: None,
    saves: int = 8,
) -> dict[str, int]:
    """Run a command undisturbed, then again under random kills until there were so many, and compare the results.

    Half of the kills are at a uniformly random moment of the run, and half when a file or folder under a temporary
    name appears: as something is saved.

    Args:
        words: The command line with its output, the same for the first run and for those that go on.
        output: What it writes.
        kills: How many kills.
        seed: Of the moments.
        contents: Returns what a finished run leaves, to be compared.
        check: Checks what a killed run leaves.
        saves: About how many temporary names a run makes.

    Returns:
        The counts: processes "started", "killed", of those "saving", and runs "finished".
    """
    logs, rng = output.with_name("logs"), random.Random(seed)
    counts = {"started": 0, "killed": 0, "saving": 0, "finished": 0}

    def start():
        counts["started"] += 1
        return start_together(1, *words, folder=logs / str(counts["started"]))[0]

    def ended(process) -> str:
        return (logs / str(counts["started"]) / "0.err").read_text()

    process = start()  # which first starts the server that forks all others
    began = time.monotonic()
    process.join()
    seconds = time.monotonic() - began
    assert process.exitcode == 0, ended(process)
    whole = contents(output)
    remove(output)
    while True:
        process = start()
        if counts["killed"] < kills:
            is_saving = rng.random() < 0.5
            if is_saving:
                wait_for_saving(process, output, rng.randint(1, saves), rng.uniform(0, 0.003))
            else:
                process.join(rng.uniform(0, seconds))
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode == -signal.SIGKILL:
            counts["killed"] += 1
            counts["saving"] += is_saving
            (logs / "counts.json").write_text(json.dumps(counts))
            check(output)
            continue
        was_finished = process.exitcode == 2 and is_finished(output)  # killed at its very end
        assert process.exitcode == 0 or was_finished, (counts, process.exitcode, ended(process))
        assert_equal(contents(output), whole)
        counts["finished"] += 1
        remove(output)
        if counts["killed"] >= kills:
            return counts


def assert_equal(held: object, whole: object) -> None:
    """Assert that two runs left the same, and name the files that differ."""
    if isinstance(held, dict) and isinstance(whole, dict):
        differing = sorted(name for name in {**held, **whole} if held.get(name) != whole.get(name))
        assert not differing, differing
    assert held == whole


def wait_for_saving(process, output: Path, number: int, delay: float) -> None:
    """Wait until so many temporary names have appeared in a folder, or beside it, and a moment more."""
    names: set[str] = set()
    while process.is_alive() and len(names) < number:
        names |= {name for name in names_below(output.parent) if ".tmp-" in name}
        time.sleep(POLLED)
    time.sleep(delay)


def names_below(folder: Path) -> list[str]:
    """Return the names of what is in a folder and its folders, while another process changes them."""
    return [os.path.join(place, name) for place, below, files in os.walk(folder) for name in (*below, *files)]


def is_finished(output: Path) -> bool:
    """Return whether an output is complete."""
    return output.is_file() or (read_marker(output) or {}).get("state") == FINISHED


def remove(output: Path) -> None:
    """Delete what a run left at an output and beside it, but for what the processes printed."""
    for path in output.parent.iterdir():
        if path.name != "logs":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
