"""What the user sees away from a terminal: lines as they are, wide tables, plain progress, strict JSON."""

import json
from pathlib import Path

import pytest

from skipdit_cli import console


@pytest.fixture(autouse=True)
def json_off():
    yield
    console.use_json(False)


def test_lines_are_printed_as_they_are(capsys):
    line = "a [bold]b[/bold] [/x] :key: \\ " + "long " * 60 + "end"
    console.say(line)
    assert capsys.readouterr().out == line + "\n"


def test_warnings_and_errors_are_one_line_on_stderr(capsys):
    console.warn("two\nlines [x]")
    console.error("Got [red].")
    captured = capsys.readouterr()
    assert captured.err == "Warning: two lines [x]\nError: Got [red].\n" and captured.out == ""


def test_json_is_one_object_on_stdout_and_the_rest_on_stderr(capsys):
    console.use_json(True)
    console.say("for people")
    console.table(["a"], [[1]])
    console.emit({"psnr": float("inf"), "rows": [{"x": float("nan")}, (1, 2)], "path": Path("a/b")})
    captured = capsys.readouterr()
    expected = {"schema": 1, "psnr": None, "rows": [{"x": None}, [1, 2]], "path": "a/b"}
    assert json.loads(captured.out) == expected
    assert captured.err.startswith("for people\n")


def test_emit_says_nothing_to_people(capsys):
    console.emit({"a": 1})
    assert capsys.readouterr().out == ""


def test_tables_are_not_squeezed_and_numbers_stand_to_the_right(capsys):
    wide = "w" * 150
    console.table(["name", "speedup"], [["[x]", "1.5x"], [wide, "-"], ["c", "10.25x"]], title="Times")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "Times"
    assert lines[2].startswith("[x]") and lines[2].endswith(" 1.5x")
    assert lines[3].startswith(wide + " ") and lines[3].endswith(" -")
    assert len({len(line) for line in lines[1:]}) == 1


def test_progress_away_from_a_terminal_is_a_line_per_tenth_or_half_minute(capsys, monkeypatch):
    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(clock)))
    with console.progress("Sampling", 4) as advance:
        for _ in range(4):
            advance(note="full")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["1/4", "2/4", "3/4", "4/4"]
    assert lines[:2] == ["Sampling 1/4 full", "Sampling 2/4 40.0 s/it, 0:01:20 left full"]


def test_neither_the_setting_up_nor_what_a_resumed_run_had_done_counts_in_the_rate(capsys, monkeypatch):
    clock = iter((0.0, 200.0, 240.0))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress("train", 1000) as advance:
        advance(500)
        advance(10)
    assert capsys.readouterr().err.splitlines()[-1] == "train 510/1000 4.0 s/it, 0:32:40 left"


def test_a_total_that_was_too_low_an_estimate_grows(capsys, monkeypatch):
    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(clock)))
    with console.progress("exact solution", 2) as advance:
        for _ in range(3):
            advance()
    assert [line.split()[2] for line in capsys.readouterr().err.splitlines()] == ["1/2", "2/2", "3/3"]


def test_a_quick_loop_prints_nothing(capsys):
    with console.progress("Sampling", 100) as advance:
        for _ in range(100):
            advance()
    assert capsys.readouterr().err == ""
