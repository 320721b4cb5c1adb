"""``skipdit sample`` in several processes: the files of one, shared out by whole batches."""

import json
import os
import signal
import time

import numpy as np
import pytest

from tests.support.folders import tree
from tests.support.processes import run_together, start_together

QUICK = ("--steps", 2, "--guidance-scale", 1.5, "--batch-size", 2)


def errors_in(log) -> list[str]:
    """The errors that a process printed, between lines of progress."""
    return [line for line in log.read_text().splitlines() if line.startswith("Error: ")]


@pytest.fixture
def run(tmp_path):
    """``run(processes, *arguments)`` runs the command in several processes, and returns how it ended in each."""
    numbers = iter(range(100))
    return lambda processes, *arguments, **more: run_together(
        processes, *arguments, folder=tmp_path / "logs" / str(next(numbers)), **more
    )


def test_the_files_are_those_of_one_process_whatever_the_number(skipdit, tiny_pipeline, tmp_path, run):
    """Under a threshold, which decides by the largest change in a batch, as well as without a cache."""
    cached = ("--cache-threshold", 3, "--cache-layers", 1)
    command = ("sample", "-m", tiny_pipeline(), "--class-labels", "1,2,3", "--num-images", 9, *QUICK, *cached)
    whole = tmp_path / "1" / "out"
    ran = skipdit(*command, "--steps", 6, "-o", whole, "--npz", whole / "all.npz", "--json")
    assert ran.code == 0, ran.stderr
    assert np.load(whole / "all.npz")["arr_0"].shape == (9, 8, 8, 3)
    for number in (2, 3):
        out = tmp_path / str(number) / "out"
        ended = run(number, *command, "--steps", 6, "-o", out, "--npz", out / "all.npz", "--json")
        assert [each.code for each in ended] == [0] * number, ended
        assert tree(out) == tree(whole)
        assert [each.stdout for each in ended[1:]] == [""] * (number - 1)
        report = json.loads(ended[0].stdout)
        assert report["processes"] == number and report["cache"] == ran.json["cache"]
        assert [name.split("/")[-1] for name in report["files"]] == [n.split("/")[-1] for n in ran.json["files"]]


def test_one_file_of_all_samples_is_the_same(skipdit, tiny_pipeline, tmp_path, run):
    command = ("sample", "-m", tiny_pipeline(), "--num-images", 5, *QUICK)
    assert skipdit(*command, "-o", tmp_path / "1.png").code == 0
    ended = run(4, *command, "-o", tmp_path / "4.png")  # the fourth has nothing to do
    assert [each.code for each in ended] == [0] * 4, ended
    assert "5 images in" in ended[0].stdout and "by 4 processes" in ended[0].stdout
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "4.png").read_bytes()


@pytest.mark.parametrize("killed", [0, 1])
def test_a_run_of_which_a_process_is_killed_is_resumed_by_another_number(
    skipdit, tiny_pipeline, tmp_path, run, killed
):
    command = ("sample", "-m", tiny_pipeline(), "--num-images", 40, "--steps", 4, "--batch-size", 1)
    whole, out = tmp_path / "whole" / "out", tmp_path / "parts" / "out"
    assert skipdit(*command, "-o", whole, "--npz", whole / "all.npz").code == 0
    command = (*command, "-o", out, "--npz", out / "all.npz")
    started = start_together(2, *command, folder=tmp_path / "killed")
    while not (out / "0003.png").exists() and started[0].is_alive():
        time.sleep(0.005)
    os.kill(started[killed].pid, signal.SIGKILL)
    for process in started:
        process.join(60)
    codes = [process.exitcode for process in started]
    assert codes[killed] == -signal.SIGKILL and codes[1 - killed] == 1
    errors = (tmp_path / "killed" / "0.err").read_text(), (tmp_path / "killed" / "1.err").read_text()
    sentences = [f"Process 1 of 2 (process {started[1].pid} on ", "Another process of this run has ended"]
    assert any(each in errors[1 - killed] for each in (sentences if killed else ["The main process of this run has"]))
    pictures = {path.name: path.stat().st_mtime_ns for path in out.glob("0???.png")}
    assert 1 < len(pictures) < 40

    ended = run(3, *command, "--json") if killed else [skipdit(*command, "--json")]
    assert [each.code for each in ended] == [0] * len(ended), ended
    assert tree(out) == tree(whole)
    remade = [name for name, written in pictures.items() if (out / name).stat().st_mtime_ns != written]
    assert len(remade) <= 1, "a picture of which there was a checksum was made twice"
    assert not list(out.glob("*.tmp-*"))


def test_a_failing_process_ends_the_others_and_what_was_made_is_kept(skipdit, tiny_pipeline, tmp_path, run):
    """Of the fourth batch, that of process 1, the folder for one picture is taken by another folder."""
    command = ("sample", "-m", tiny_pipeline(), "--num-images", 8, *QUICK, "-o", tmp_path / "out")
    started = start_together(2, *command, folder=tmp_path / "logs")
    while not (tmp_path / "out" / ".skipdit.json").exists() and started[0].is_alive():
        time.sleep(0.001)
    (tmp_path / "out" / "0007.png").mkdir(parents=True)
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [1, 1]
    (main,), (other,) = errors_in(tmp_path / "logs" / "0.err"), errors_in(tmp_path / "logs" / "1.err")
    assert "Is a directory; what was made is kept, and the same command goes on" in other
    assert main.startswith("Error: Process 1 of 2 failed: Writing "), main
    (tmp_path / "out" / "0007.png").rmdir()
    assert skipdit(*command).code == 0


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_the_end_of_one_process_ends_the_other_after_its_step(end, tiny_pipeline, tmp_path):
    command = ("sample", "-m", tiny_pipeline(num_layers=2), "--num-images", 400, "--steps", 40, "--batch-size", 1)
    started = start_together(2, *command, "-o", tmp_path / "out", folder=tmp_path / "logs")
    while not (tmp_path / "out" / "0003.png").exists() and started[0].is_alive():
        time.sleep(0.005)
    os.kill(started[1].pid, end)
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [1, 130 if end == signal.SIGINT else -end]
    (main,) = errors_in(tmp_path / "logs" / "0.err")
    said = "failed: interrupted." if end == signal.SIGINT else f"(process {started[1].pid} on "
    assert main.startswith(f"Error: Process 1 of 2 {said}"), main
    assert len(list((tmp_path / "out").glob("0???.png"))) < 200, "the main process went on to the end of its share"


def test_bad_input_is_refused_once(tiny_pipeline, tmp_path, run):
    model, out = tiny_pipeline(), tmp_path / "out"
    command = ("sample", "-m", model, *QUICK, "-o", out)
    for flags, sentence in {
        ("--class-labels", "99"): "Got --class-labels 99 but the model has classes 0..9",
        ("--device", "cuda:0"): "with 2 processes, each of which takes a device of its own",
        ("--no-such-flag",): "No such option",
    }.items():
        first, second = run(2, *command, *flags)
        assert (first.code, second.code) == (2, 2), first
        assert sentence in first.stderr and second.stderr == "" and not out.exists()
    first, second = run(2, "bench", "-m", model)
    assert (first.code, second.code) == (2, 2)
    assert "Got 2 processes, but 'skipdit bench' runs in one" in first.stderr and second.stderr == ""
