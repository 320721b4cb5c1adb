"""A run of a study: it is one command, it goes on where it was interrupted, and leaves one report."""

import json
import os
import shutil
import signal
import time
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest

from skipdit_cli.errors import UsageError
from skipdit_cli.studies import STUDIES
from skipdit_cli.studies.launch import begun, run_program, run_together
from skipdit_cli.studies.spread import half_width, sign_beyond_spread, spread
from skipdit_cli.studies.study import read_settings
from tests.support import toy_study


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """Make the toy study known, and return the words of its command."""
    monkeypatch.setitem(STUDIES, "toy", "tests.support.toy_study")
    model, preset = tmp_path / "model.yaml", tmp_path / "toy.yaml"
    model.write_text(toy_study.MODEL)
    preset.write_text(f"about: A toy.\nsource: tests.\nexperiment: {{study: toy, preset: {model.name}, steps: 2}}\n")
    return ["study", "toy", "--preset", preset, "--seeds", 2, "-o", tmp_path / "run", "--json"]


def test_a_study_leaves_a_report_with_its_numbers_and_commands(skipdit, toy, tmp_path):
    ended = skipdit(*toy)
    assert ended.code == 0, ended.stderr
    found, run = ended.json, tmp_path / "run"
    assert found["numbers"]["sizes"]["vanilla-0"] == found["numbers"]["sizes"]["skip-0"] > 0
    assert len(found["numbers"]["losses"]) == 2 and found["numbers"]["scaled"] == found["numbers"]["losses"][0]
    assert found["commands"][-1] == f"skipdit convert -m {run}/vanilla-0 --output {run}/skip-0"
    assert json.loads((run / "study.json").read_text())["numbers"] == found["numbers"]
    page = (run / "report.html").read_text()
    assert found["lead"] in page and "Toys are light." in page and "2 training seeds" in page
    refused = skipdit(*toy)
    assert refused.code == 2 and "exists and is not empty" in refused.stderr
    assert skipdit(*toy, "--overwrite").code == 0


def test_an_interrupted_study_goes_on_where_it_was_moved_to_and_ends_the_same(skipdit, toy, tmp_path, monkeypatch):
    undisturbed = skipdit(*toy).json
    shutil.rmtree(tmp_path / "run")
    counted, count = [], toy_study.count_weights

    def interrupt(folder):
        counted.append(Path(folder).name)
        if counted == ["vanilla-0", "vanilla-1", "skip-0"]:
            raise KeyboardInterrupt
        return count(folder)

    interrupt.__qualname__ = count.__qualname__
    monkeypatch.setattr(toy_study, "count_weights", interrupt)
    assert skipdit(*toy).code == 130
    trained = (tmp_path / "run" / "vanilla-0" / "model_index.json").stat().st_mtime_ns
    other = skipdit(*toy[:4], "--seeds", 3, *toy[6:])
    assert other.code == 2 and "other settings (seeds)" in other.stderr
    with monkeypatch.context() as other_release:
        other_release.setattr("skipdit_cli.version.__version__", "0.1.0")
        other = skipdit(*toy)
    assert other.code == 2 and "other settings (versions)" in other.stderr
    (tmp_path / "run" / "results" / "skip-0.json").write_text("{")
    (tmp_path / "run" / "measured" / "vanilla-0.json").write_text("[]")
    moved = tmp_path / "moved to"
    (tmp_path / "run").rename(moved)
    monkeypatch.chdir(moved)  # the preset names another, which is relative to it and not to the current folder
    resumed = skipdit(*toy[:-2], moved, "--json")
    assert resumed.code == 0, resumed.stderr
    assert (moved / "vanilla-0" / "model_index.json").stat().st_mtime_ns == trained
    assert resumed.json["numbers"] == undisturbed["numbers"]
    assert counted[3:] == ["vanilla-0", "skip-0"]  # one was damaged, one not measured yet


def test_a_failing_command_names_itself_and_nothing_is_begun_after_it(skipdit, toy, tmp_path):
    preset = tmp_path / "toy.yaml"
    preset.write_text(preset.read_text().replace("steps: 2", "steps: 0"))
    ended = skipdit(*toy)
    assert ended.code == 2 and "--max-train-steps 0" in ended.stderr
    assert not (tmp_path / "run").exists()


def test_a_dry_run_writes_nothing(skipdit, toy, tmp_path):
    ended = skipdit(*toy, "--dry-run")
    assert ended.code == 0 and ended.json["commands"]["skip-0"] == "convert -m {run}/vanilla-0"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("experiment", "problem"),
    [
        ({"study": "other", "preset": "digits", "steps": 1}, "of study 'other'"),
        ({"study": "toy", "preset": "digits"}, "no 'experiment: steps'"),
        ({"study": "toy", "preset": "digits", "stepps": 1, "steps": 1}, "Did you mean 'steps'?"),
        ({"study": "toy", "preset": "digits", "steps": True}, "a whole number"),
        ({"study": "toy", "preset": ["digits"], "steps": 1}, "a text"),
        ({"study": "toy", "preset": "--push-to-hub", "steps": 1}, "one word"),
        ({"study": "toy", "preset": "digits --push-to-hub me", "steps": 1}, "one word"),
        ({"study": "toy", "preset": "'--push-to-hub'", "steps": 1}, "without quotes"),
        ({"study": "toy", "preset": "\\--push-to-hub", "steps": 1}, "without quotes"),
        ({"study": "toy", "preset": "digits'", "steps": 1}, "without quotes"),
    ],
)
def test_settings_that_do_not_fit_are_refused(experiment, problem):
    with pytest.raises(UsageError, match=problem.replace("?", r"\?")):
        read_settings(toy_study.STUDY, experiment, "Preset x")


def test_tasks_run_after_what_they_need():
    order = []
    tasks = {name: lambda name=name: order.append(name) for name in ("late", "first", "other")}
    done = dict(run_together(tasks, {"late": frozenset({"first", "made before"})}, jobs=2))
    assert set(done) == set(order) == {"late", "first", "other"} and order.index("late") > order.index("first")


@pytest.mark.parametrize("at", ["while it waits", "between two results"])
def test_an_interrupted_study_interrupts_the_programs_that_run(at, tmp_path):
    def sleep():
        return run_program(["sleep", "60"], tmp_path / "log", os.environ)

    def interrupt():
        while not begun:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    tasks = {"slow": sleep, "fast": interrupt if at == "while it waits" else lambda: None}
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), closing(run_together(tasks, {}, jobs=2)) as results:
        assert next(results)[0] == "fast"
        while not begun:
            time.sleep(0.01)
        if at == "between two results":
            raise KeyboardInterrupt
        next(results)
    assert time.monotonic() - start < 30 and not begun


def _run_sleep(folder):
    script = f"echo $$ >{folder}/new; mv {folder}/new {folder}/pid; exec sleep 60"
    run_program(["sh", "-c", script], folder / "log", os.environ)


def test_the_programs_of_a_killed_study_end(tmp_path):
    study = get_context("fork").Process(target=_run_sleep, args=(tmp_path,))
    study.start()
    while not (tmp_path / "pid").exists():
        time.sleep(0.01)
    program = psutil.Process(int((tmp_path / "pid").read_text()))
    study.kill()
    study.join()
    psutil.wait_procs([program], timeout=30)
    assert not program.is_running()


def test_the_spread_is_the_sample_standard_deviation():
    assert spread([1.0, 2.0, 3.0]) == "2.0 ±1.0" and spread([1.25], 2) == "1.25"
    assert spread([0.5, -1.0], 2, "+") == "-0.25 ±1.06" and spread([0.25], 2, "+") == "+0.25"
    assert [sign_beyond_spread(values) for values in ([2.0, 1.0], [-2.0, -1.0], [9.0, 9.0, -0.1], [5.0, 0.1])] == [
        1, -1, 0, 0,
    ]  # fmt: skip
    assert half_width([1.0, 2.0, 3.0]) == 1.0 and half_width([5.0]) == 0.0
