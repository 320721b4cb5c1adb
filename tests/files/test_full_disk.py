"""Disks that are full, and files that may not grow: one sentence, the old state intact, and a rerun that succeeds.

``pytest tests/files/test_full_disk.py --chaos 1`` tries every place where a command opens a file, and a limit below
the size of each of its files; without the flag, some of them.
"""

import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from skipdit_cli.app import _sentence
from skipdit_cli.files import MARKER
from skipdit_cli.training.run.state import RECORD
from tests.support.faults import FullDisk, file_limit
from tests.support.folders import CALIBRATE, SHORT, TRAIN, tree

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture
def commands(converted, tiny_pipeline):
    """Every command that writes over time, as its words without ``--output``."""
    model = converted()
    return {
        "convert": ("convert", tiny_pipeline(), "--no-verify"),
        "train": ("finetune", "-m", model, *TRAIN, "--max-train-steps", 3, "--checkpointing-steps", 2),
        "sample": ("sample", "-m", model, "--class-labels", "0,1", *SHORT),
        "bench": ("bench", "-m", model, *SHORT, "--rounds", 1, "--warmup", 0, "--cache-interval", 2, "--no-exact"),
        "calibrate": ("calibrate", "-m", model, *CALIBRATE, "--cost", "2,3"),
    }


def lasting(output: Path) -> dict:
    """What a run leaves that is the same each time: no durations and dates."""
    held = {name: content for name, content in tree(output).items() if Path(name).name not in (MARKER, RECORD)}
    for name in [name for name in held if name.startswith("bench.")]:  # durations
        held[name] = b""
    if "metrics.jsonl" in held:
        rows = [json.loads(line) for line in held["metrics.jsonl"].splitlines()]
        held["metrics.jsonl"] = [(row["step"], row["loss"], row["grad_norm"]) for row in rows]
    for name in [name for name in held if name.endswith((".yaml", ".md"))]:
        held[name] = re.sub(rb"(?m)^.*(skipdit |\d{4}-\d\d-\d\d).*$", b"", held[name])
    return held


def shares(number: int, most: int) -> list[int]:
    """Return so many whole numbers at most, evenly from 0 to below a number."""
    return sorted({at * number // most for at in range(most)}) if number > most else list(range(number))


PLACES = {"convert": 3, "train": 5, "sample": 6, "bench": 1, "calibrate": 0}
"""How many of the places where each command opens a file are tried in the short form."""


def pytest_generate_tests(metafunc):
    if "kind" in metafunc.fixturenames:
        is_long = metafunc.config.getoption("--chaos") > 0
        metafunc.parametrize("kind", [kind for kind, places in PLACES.items() if is_long or places])


def test_a_full_disk_ends_a_run_in_a_sentence_and_costs_nothing(kind, commands, skipdit, tmp_path, chaos):
    disk = tmp_path / "disk"
    output, words = disk / "out", commands[kind]
    disk.mkdir()
    with FullDisk(disk) as full:
        assert skipdit(*words, "-o", output).code == 0
    whole = lasting(output)
    sizes = sorted({path.stat().st_size for path in output.rglob("*") if path.is_file()}, reverse=True)
    assert full.count > 5
    faults = [("room", room) for room in (range(full.count) if chaos else shares(full.count, PLACES[kind]))]
    faults += [("size", size * 7 // 8) for size in (sizes if chaos else sizes[:1])]
    former = shutil.copytree(output, tmp_path / "former")
    for fault, number in faults:
        shutil.rmtree(output)
        shutil.copytree(former, output)
        before = tree(output)
        with FullDisk(disk, number) if fault == "room" else file_limit(number):
            ended = skipdit(*words, "-o", output, "--overwrite")
        assert ended.exception is None, (fault, number, ended.exception)
        assert ended.code == 1 and "Traceback" not in ended.stderr, (fault, number, ended.stderr)
        errors = [line for line in ended.stderr.splitlines() if line.startswith("Error: ")]
        assert len(errors) == 1 and "--debug" not in errors[0], (fault, number, ended.stderr)
        asides = [path for path in disk.iterdir() if "skipdit-old" in path.name]
        assert tree(output) == before or [tree(path) for path in asides] == [before], (fault, number, ended.stderr)
        is_resumed = kind == "train" and asides
        if not (asides or chaos or number == faults[-1][1]):
            continue
        rerun = skipdit(
            *words, "-o", output, *(("--resume-from-checkpoint", "auto") if is_resumed else ["--overwrite"])
        )
        assert rerun.code == 0, (fault, number, rerun.stderr)
        assert lasting(output) == whole, (fault, number)
        assert [path.name for path in disk.iterdir()] == ["out"], (fault, number)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO])
def test_each_failure_of_a_disk_has_a_sentence(number):
    text = os.strerror(number)
    for cause in (OSError(number, text), RuntimeError(f"Error while serializing: {text} (os error {number})")):
        sentence = _sentence(cause, "runs/a")
        assert (
            " at runs/a; " in sentence and sentence.endswith("choose another --output.") and "--debug" not in sentence
        )
    assert "at /data/x;" in _sentence(OSError(number, text, "/data/x"), "runs/a")
