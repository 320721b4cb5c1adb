"""Resuming: from an earlier checkpoint, from a damaged one, after a kill, beside another run, on other data."""

import json
import os
import shutil
import socket
from pathlib import Path

import psutil
import pytest
from PIL import Image

from skipdit_cli.files import MARKER
from skipdit_cli.training.run import state

RUN = ["--train-batch-size", 2, "--checkpointing-steps", 2, "--data", "digits"]


@pytest.fixture
def run(skipdit, converted, tmp_path):
    """``run(steps, *flags)``: ``finetune`` into one output folder, which it returns beside the outcome."""
    model = converted()

    def finetune(steps: int, *flags, output: Path = tmp_path / "run"):
        outcome = skipdit("finetune", "-m", model, "-o", output, *RUN, "--max-train-steps", steps, *flags)
        return outcome, output

    return finetune


def checkpoints(output: Path) -> list[str]:
    return sorted(path.name for path in output.glob("checkpoint-*"))


def flip(path: Path, at: float = 0.5) -> None:
    """One bit of a file."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)


def test_going_on_from_an_earlier_checkpoint_keeps_what_is_new_and_sets_the_later_aside(run):
    _, output = run(6)
    before = {step: (output / f"checkpoint-{step}" / state.WEIGHTS).read_bytes() for step in (4, 6)}
    outcome, _ = run(5, "--resume-from-checkpoint", output / "checkpoint-2", "--checkpoints-total-limit", 1,
                     "--learning-rate", 3e-3, "--force-config")  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    assert checkpoints(output) == ["checkpoint-5"]
    aside = output / "set-aside-1"
    assert "its later checkpoints were moved to" in outcome.stderr and "set-aside-1" in outcome.stderr
    for step, weights in before.items():
        assert (aside / f"checkpoint-{step}" / state.WEIGHTS).read_bytes() == weights
    assert len((aside / "metrics.jsonl").read_text().splitlines()) == 6
    steps = [json.loads(line)["step"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5]
    again, _ = run(6, "--resume-from-checkpoint", "latest", "--learning-rate", 3e-3)
    assert again.code == 0 and "checkpoint-5 at step 5" in again.stdout


def test_a_limit_never_takes_what_was_just_saved(run):
    _, output = run(8, "--checkpoints-total-limit", 2)
    assert checkpoints(output) == ["checkpoint-6", "checkpoint-8"]
    outcome, _ = run(7, "--resume-from-checkpoint", output / "checkpoint-6", "--checkpoints-total-limit", 2)
    assert outcome.code == 0 and checkpoints(output) == ["checkpoint-6", "checkpoint-7"]


@pytest.mark.parametrize("name", [state.WEIGHTS, state.AVERAGE, state.REST, state.RECORD])
@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(run, name, damage, tmp_path):
    _, whole = run(6, output=tmp_path / "whole")
    _, output = run(4)
    path = output / "checkpoint-4" / name
    flip(path) if damage == "flip" else path.unlink()
    outcome, _ = run(6, "--resume-from-checkpoint", "latest")
    assert outcome.code == 0, outcome.stderr
    assert "checkpoint-2 at step 2" in outcome.stdout
    if (damage, name) != ("remove", state.RECORD):  # without its record it is no checkpoint at all
        assert f"checkpoint-4 is damaged: {name}" in outcome.stderr
        assert (output / "set-aside-1" / "checkpoint-4").is_dir()
    for file in (state.WEIGHTS, state.AVERAGE):
        assert (output / "checkpoint-6" / file).read_bytes() == (whole / "checkpoint-6" / file).read_bytes()


@pytest.mark.parametrize("at", [0.01, 0.3, 0.6, 0.97])
@pytest.mark.parametrize("name", [state.WEIGHTS, state.AVERAGE, state.REST, state.RECORD])
def test_any_flipped_bit_is_found(run, name, at, finished, tmp_path):
    folder = shutil.copytree(finished / "checkpoint-2", tmp_path / "checkpoint-2")
    flip(folder / name, at)
    with pytest.raises(state.UsageError, match=f"is damaged: {name}"):
        state.check_whole(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run. Not to be changed."""
    from diffusers import DiTTransformer2DModel
    from typer.testing import CliRunner

    from skipdit_cli.app import app
    from tests.support.tiny_pipelines import write_pipeline

    folder = tmp_path_factory.mktemp("finished")
    model = DiTTransformer2DModel(2, 8, in_channels=1, out_channels=2, num_layers=4, sample_size=8, patch_size=2,
                                  num_embeds_ada_norm=10)  # fmt: skip
    write_pipeline(folder / "model", model)
    assert CliRunner().invoke(app, ["convert", str(folder / "model"), "-o", str(folder / "skip")]).exit_code == 0
    given = ["finetune", "-m", str(folder / "skip"), "-o", str(folder / "run"), *map(str, RUN)]
    result = CliRunner().invoke(app, [*given, "--max-train-steps", "2"])
    assert result.exit_code == 0, result.stderr
    return folder / "run"


def test_a_damaged_checkpoint_given_by_name_is_refused(run):
    _, output = run(4)
    flip(output / "checkpoint-4" / state.WEIGHTS)
    outcome, _ = run(6, "--resume-from-checkpoint", output / "checkpoint-4")
    assert outcome.code == 2 and f"is damaged: {state.WEIGHTS}" in outcome.stderr
    assert checkpoints(output) == ["checkpoint-2", "checkpoint-4"]


def test_where_every_checkpoint_is_damaged_nothing_is_resumed(run):
    _, output = run(2)
    flip(output / "checkpoint-2" / state.REST)
    for wanted in ("latest", "auto"):
        outcome, _ = run(4, "--resume-from-checkpoint", wanted)
        assert outcome.code == 2 and "Every checkpoint" in outcome.stderr


def test_checkpoints_without_checksums_are_read(run):
    _, output = run(2)
    path = output / "checkpoint-2" / state.RECORD
    record = json.loads(path.read_text())
    del record["files"], record["sha256"], record["settings"]["files"], record["settings"]["labels"]
    path.write_text(json.dumps(record))
    outcome, _ = run(4, "--resume-from-checkpoint", "latest")
    assert outcome.code == 0 and "checkpoint-2 at step 2" in outcome.stdout
    (output / "checkpoint-2" / state.AVERAGE).unlink()
    shutil.rmtree(output / "checkpoint-4")
    refused, _ = run(4, "--resume-from-checkpoint", "latest")
    assert refused.code == 2 and f"it has no {state.AVERAGE}" in refused.stderr


def test_what_a_killed_run_left_half_written_is_swept(run):
    _, output = run(4)
    half = output / "checkpoint-6.tmp-999999"
    half.mkdir()
    writer = {"pid": 999999, "host": socket.gethostname()}
    (half / MARKER).write_text(json.dumps({"schema": 1, "kind": "checkpoint", "version": "0.2.0", "state": "begun",
                                           "files": [], "writer": writer}))  # fmt: skip
    (half / "weights.safetensors").write_bytes(b"half")
    (output / "checkpoint-8.tmp-999998").mkdir()  # killed as it wrote the marker of the folder
    (output / "checkpoint-8.tmp-999998" / f"{MARKER}.tmp-999998.json").write_text("half")
    (output / "metrics.jsonl.tmp-999999.jsonl").write_text("half")
    (output / "notes.tmp-999999.txt").write_text("of somebody else")
    outcome, _ = run(6, "--resume-from-checkpoint", "latest")
    assert sorted(path.name for path in output.glob("*.tmp-*")) == ["notes.tmp-999999.txt"]
    assert outcome.code == 0 and checkpoints(output) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


def test_a_finished_run_that_is_resumed_reports_its_last_loss(run):
    first, _ = run(2, "--json")
    again, _ = run(2, "--json", "--resume-from-checkpoint", "auto")
    assert again.code == 0 and again.json["loss"] == first.json["loss"] is not None


def written_by(output: Path, **writer) -> None:
    """The marker of a run's folder names a process that writes it."""
    marker = json.loads((output / MARKER).read_text())
    marker |= {"state": "resumable", "writer": {"host": socket.gethostname(), **writer}}
    (output / MARKER).write_text(json.dumps(marker))


def test_a_second_run_in_a_folder_is_refused(run):
    _, output = run(2)
    held, parent = sorted(output.rglob("*")), psutil.Process(os.getppid())
    written_by(output, pid=parent.pid, started=parent.create_time())
    for flags in (["--resume-from-checkpoint", "latest"], ["--overwrite"]):
        outcome, _ = run(4, *flags)
        assert outcome.code == 2 and "is being written by another process" in outcome.stderr
    assert sorted(output.rglob("*")) == held


def test_a_dead_run_whose_number_another_process_has_since_is_gone_on_with(run):
    _, output = run(2)
    written_by(output, pid=os.getppid(), started=1.0)
    outcome, _ = run(4, "--resume-from-checkpoint", "latest")
    assert outcome.code == 0, outcome.stderr


def test_other_labels_of_as_many_samples_are_refused(run, tmp_path):
    for label in ("0", "1"):
        (tmp_path / "data" / label).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "data" / label / f"{label}.png")
    data = ["--data", tmp_path / "data"]
    first, output = run(2, *data)
    assert first.code == 0, first.stderr
    (tmp_path / "data" / "1").rename(tmp_path / "data" / "2")
    resumed = [4, *data, "--resume-from-checkpoint", "latest"]
    outcome, _ = run(*resumed)
    assert (
        outcome.code == 2
        and "other files, labels or captions" in outcome.stderr
        and "--force-config" in outcome.stderr
    )
    outcome, _ = run(*resumed, "--force-config")
    assert outcome.code == 0, outcome.stderr
