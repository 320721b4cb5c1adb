"""Runs that are killed (SIGKILL) at random moments, saving included, lose nothing: what they leave in the end equals
that of an undisturbed run, bit for bit.

``pytest tests/files/test_chaos.py --chaos 50`` kills each kind of run 50 times; without the flag, twice.
"""

import json
import re

from skipdit_cli.files import MARKER
from skipdit_cli.training.run.state import METRICS, RECORD, Checkpoints, check_whole
from tests.support.folders import tree
from tests.support.kills import survive

TRAIN = (
    "--data",
    "digits",
    "--train",
    "all",
    "--train-batch-size",
    2,
    "--max-train-steps",
    8,
    "--validation-steps",
    4,
)
TRAIN += ("--checkpointing-steps", 2, "--checkpoints-total-limit", 2, "--resume-from-checkpoint", "auto")
SAMPLE = ("--class-labels", "0,1,2", "--num-images", 12, "--batch-size", 2, "--steps", 4)
CALIBRATE = ("--num-samples", 2, "--num-held-out", 2, "--steps", 4, "--time-limit", 0, "--seed", 1, "--cost", 2)


def of_training(output) -> dict:
    """What a training leaves, but for the manifest, and for durations."""
    held = {
        name: content for name, content in tree(output).items() if not name.endswith((MARKER, RECORD, "README.md"))
    }
    rows = [json.loads(line) for line in held.pop(METRICS).splitlines()]
    return held | {METRICS: [(row["step"], row["loss"], row["grad_norm"]) for row in rows]}


def of_calibration(plan) -> str:
    """The plan of a calibration, but for the command and the date."""
    return re.sub(r"(?m)^#.*$|\d{4}-\d\d-\d\d.*$", "", plan.read_text())


def checkpoints_are_whole(output) -> None:
    for step in Checkpoints(output).steps():
        check_whole(Checkpoints(output).folder(step))


def test_a_killed_training_loses_nothing(converted, tmp_path, chaos):
    output = tmp_path / "place" / "out"
    words = ("finetune", "-m", converted(), *TRAIN, "-o", output)
    print(survive(words, output, chaos or 2, 0, of_training, checkpoints_are_whole))


def test_killed_samples_are_neither_lost_nor_made_twice(converted, tmp_path, chaos):
    output = tmp_path / "place" / "out"
    words = ("sample", "-m", converted(), *SAMPLE, "--npz", output / "all.npz", "-o", output)
    print(survive(words, output, chaos or 2, 1, tree))


def test_a_killed_calibration_finds_the_same_plan(converted, tmp_path, chaos):
    output = tmp_path / "place" / "plan.yaml"
    words = ("calibrate", "-m", converted(), *CALIBRATE, "-o", output)
    print(
        survive(
            words, output, chaos or 2, 2, lambda plan: re.sub(r"(?m)^#.*$|\d{4}-\d\d-\d\d.*$", "", plan.read_text())
        )
    )
