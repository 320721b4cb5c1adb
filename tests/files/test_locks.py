"""Two runs in one output: the second is refused; what a killed run left is told from what a living one holds."""

import json
import os
import signal
import socket
from pathlib import Path

import psutil
import pytest

from skipdit_cli import files
from skipdit_cli.errors import UsageError
from skipdit_cli.files import lock
from skipdit_cli.files.lock import lock_file
from skipdit_cli.processes.writer import this_process
from tests.support.folders import SHORT, TRAIN, tree
from tests.support.other_process import add_together, holding

SWEEP = """
about: One model of 2 blocks.
model:
  class: DiTTransformer2DModel
  config: {num_attention_heads: 2, attention_head_dim: 8, in_channels: 1, sample_size: 8, patch_size: 2}
sweep: {depth: {a: {num_layers: 2}}}
"""


@pytest.fixture
def commands(converted, tmp_path):
    """The commands that write something over time: ``(output, words)``, of which the output is not there yet."""
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    model = ("-m", converted())
    return [
        ("converted", ("convert", "--preset", "digits", "-o")),
        ("train", ("train", "--preset", "digits", "--data", "digits", "-o")),
        ("finetune", ("finetune", *model, *TRAIN, "-o")),
        ("sweep", ("train", "--sweep", tmp_path / "sweep.yaml", "--data", "digits", "--max-train-steps", 1, "-o")),
        ("samples", ("sample", *model, *SHORT, "-o")),
        ("a.png", ("sample", *model, *SHORT, "-o")),
        ("a.npz", ("sample", *model, *SHORT, "-o", tmp_path / "more", "--npz")),
        ("bench", ("bench", *model, *SHORT, "--no-exact", "-o")),
        ("plan.yaml", ("calibrate", *model, "--cost", 3, "-o")),
        ("plans", ("calibrate", *model, "--cost", "3,4", "-o")),
        ("statistics.npz", ("evaluate", "digits", "--features", "digits", "--save-statistics")),
        ("kept", ("prepare", *model, "--data", "digits", "--cache-latents")),
        ("study", ("study", "efficiency", "-o")),
        ("demo", ("demo", "-o")),
    ]


def test_what_another_process_writes_is_refused_by_every_command(commands, skipdit, tmp_path):
    (tmp_path / "linked").symlink_to(tmp_path / "deep")
    with holding(*(tmp_path / "deep" / name for name, _ in commands)) as other:
        before = tree(tmp_path)
        for name, words in commands:
            refused = skipdit(*words, tmp_path / "linked" / name)
            place = f"process {other.pid} on {socket.gethostname()}, started 20"
            assert refused.code == 2 and refused.stderr.count("\n") == 1, (name, refused.stderr)
            assert f"is being written by another process: {place}" in refused.stderr, (name, refused.stderr)
            flag = "--output" if words[-1] == "-o" else words[-1]
            assert refused.stderr.endswith(f"wait until it ends, or give another {flag}.\n"), (name, refused.stderr)
        assert tree(tmp_path) == before


def test_the_lock_of_a_killed_run_is_taken_over_and_deleted_at_the_end(skipdit, tiny_pipeline, tmp_path):
    model, output = tiny_pipeline(), tmp_path / "new" / "a.png"
    run = ("sample", "-m", model, *SHORT, "-o", output)
    with holding(output) as other:
        assert skipdit(*run).code == 2
        os.kill(other.pid, signal.SIGKILL)
        other.join()
        assert lock_file(output).is_file()
        ended = skipdit(*run)
        assert ended.code == 0, ended.stderr
    assert [path.name for path in output.parent.iterdir()] == ["a.png"]
    assert skipdit(*run).code == 2 and [path.name for path in output.parent.iterdir()] == ["a.png"]


def test_a_refused_run_leaves_no_folder_for_its_lock(skipdit, tiny_pipeline, tmp_path):
    model = tiny_pipeline()
    before = tree(tmp_path)
    refused = skipdit("sample", "-m", model, "--scheduler", "none", "-o", tmp_path / "new" / "deep" / "out")
    assert refused.code == 2 and tree(tmp_path) == before


def write_lock(output: Path, **changes) -> None:
    """Write the lock of an output as another process would."""
    content = {**vars(this_process()), "pid": os.getppid(), **changes}
    lock_file(output).write_text(json.dumps(content))


def test_the_lock_of_another_machine_is_refused_with_what_to_delete(tmp_path):
    output = tmp_path / "out"
    write_lock(output, host="node7", boot="of node7")
    for take in (lambda: files.locked(output), lambda: files.replace_folder(output, files.CONVERT)):
        with pytest.raises(UsageError, match="on node7.*cannot be looked up") as refused, take():
            pass
        assert f"delete {lock_file(output)}" in str(refused.value)
    lock_file(output).unlink()
    with files.locked(output):
        assert json.loads(lock_file(output).read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes, is_held",
    [
        ({}, True),
        ({"pid": 2**30}, False),
        ({"started": 1.0}, False),  # the id belongs to a later process
        ({"boot": "an earlier one"}, False),
        ({"host": "renamed"}, True),  # a container, or a machine that took another name
        ({"namespace": "pid:[1]"}, True),  # another container
    ],
)
def test_without_locks_of_the_kernel_the_process_is_looked_up(changes, is_held, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    monkeypatch.setattr(lock, "PAUSE", 0.001)
    output = tmp_path / "out"
    write_lock(output, **{"started": psutil.Process(os.getppid()).create_time(), **changes})
    if is_held:
        with pytest.raises(UsageError, match=f"process {os.getppid()} on"), files.locked(output):
            pass
        assert lock_file(output).is_file()
        return
    with files.locked(output):
        assert json.loads(lock_file(output).read_text())["pid"] == os.getpid()
        with files.locked(output):  # again, by the same run
            pass
        assert lock_file(output).is_file()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff" * 5000, b'{"host": "a", "pid": true}'])
def test_a_lock_that_names_nobody_and_that_nobody_holds_is_taken_over(content, tmp_path):
    output = tmp_path / ("a" * 240)  # the name of its lock is shorter
    lock_file(output).write_bytes(content)
    with files.locked(output):
        pass
    assert not list(tmp_path.iterdir())


def test_of_several_at_once_one_gets_the_lock(tmp_path):
    add_together(3, 40, tmp_path / "number")
    assert (tmp_path / "number").read_text() == "120" and [path.name for path in tmp_path.iterdir()] == ["number"]


def test_the_processes_of_one_launch_are_one_run(tmp_path, monkeypatch):
    with holding(tmp_path / "out"):  # as rank 0: it has the environment of now
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "1")
        files.check_folder(tmp_path / "out", files.RUN)
        with files.locked(tmp_path / "out"):
            pass
        monkeypatch.setenv("RANK", "0")  # of another launch
        with pytest.raises(UsageError, match="by another process"):
            files.check_folder(tmp_path / "out", files.RUN)


def test_commands_that_only_read_take_no_lock(tiny_pipeline, skipdit, tmp_path, monkeypatch):
    def acquire(target, place):
        raise AssertionError(f"{target} is locked")

    monkeypatch.setattr(lock, "_acquire", acquire)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    model = tiny_pipeline()
    for words in (
        ("info", "-m", model),
        ("convert", model, "-o", tmp_path / "out", "--dry-run"),
        ("train", "--sweep", tmp_path / "sweep.yaml", "--data", "digits", "--max-train-steps", 1, "--dry-run"),
        ("presets", "list"),
        ("study", "efficiency", "--dry-run", "-o", tmp_path / "study"),
    ):
        ended = skipdit(*words)
        assert ended.code == 0, (words, ended.stderr, ended.exception)


def test_locks_that_killed_runs_left_in_a_folder_are_no_files_of_others(tmp_path):
    output = tmp_path / "study"
    with files.work_in(output, files.STUDY):
        files.note(output, "train-0/", "logs/a.log")
        (output / "logs").mkdir()
        for name in (".train-0.skipdit-lock", "logs/.a.log.skipdit-lock", ".skipdit-lock"):
            (output / name).write_text("{}")
        assert not list(files.unlisted_files(output))
        (output / ".mine.skipdit-lock").write_text("")
        assert [path.name for path in files.unlisted_files(output)] == [".mine.skipdit-lock"]
        (output / ".mine.skipdit-lock").unlink()
    assert files.remove_listed(output)


def test_a_folder_beside_which_nothing_can_be_written_has_its_lock_in_it(tmp_path, monkeypatch):
    output = tmp_path / "out"
    output.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == output)
    with files.locked(output):
        assert [path.name for path in tmp_path.rglob("*")] == ["out", ".skipdit-lock"]
        files.check_folder(output, files.RUN)
    assert not list(output.iterdir())
