"""The face: exit codes, one sentence per error, where a flag's value comes from, a light start."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from skipdit_cli import console
from skipdit_cli.app import App, Group
from skipdit_cli.commands.options import Debug, Json, Preset
from skipdit_cli.errors import CheckError, SkipditError, UsageError

Output = Annotated[Path | None, typer.Option("-o", "--output")]

FAILURES = {
    "usage": (UsageError("Got 3, allowed are 1 and 2."), 2, "Error: Got 3, allowed are 1 and 2."),
    "failed": (SkipditError("The run failed."), 1, "Error: The run failed."),
    "missed": (CheckError("The check was missed."), 3, "Error: The check was missed."),
    "interrupt": (KeyboardInterrupt(), 130, "Error: interrupted."),
    "library": (
        RuntimeError("shapes differ\nin two lines"),
        1,
        "Error: RuntimeError: shapes differ; run again with --debug for the traceback.",
    ),
    "silent": (ValueError(), 1, "Error: ValueError: no message; run again with --debug for the traceback."),
    "full-disk": (
        OSError(28, "No space left on device"),
        1,
        "Error: the disk is full at out; free some space or choose another --output.",
    ),
    "full-disk-of-a-library": (
        RuntimeError("I/O error: No space left on device (os error 28)"),
        1,
        "Error: the disk is full at out; free some space or choose another --output.",
    ),
    "permission": (PermissionError(13, "Permission denied", "/x"), 1, "Error: Permission denied: /x."),
    "markup": (UsageError("Got [bold]:key:[/x]."), 2, "Error: Got [bold]:key:[/x]."),
}


@pytest.fixture
def own():
    """An app of our class with one command, ``run --kind``, that ends as ``FAILURES`` says."""
    app = App(cls=Group, name="skipdit", context_settings={"auto_envvar_prefix": "SKIPDIT"}, rich_markup_mode=None)

    @app.command()
    def run(
        kind: str = "",
        seed: int = 0,
        rate: float = 0.5,
        flip: bool = False,
        labels: Annotated[list[int] | None, typer.Option()] = None,
        output: Output = None,
        preset: Preset = None,
        json: Json = False,
        debug: Debug = False,
    ) -> None:
        if kind:
            raise FAILURES[kind][0]
        console.say("for people")
        console.emit({"seed": seed, "rate": rate, "flip": flip, "labels": labels})

    @app.command()
    def other() -> None:
        """So that the app is a group."""

    return lambda *arguments, env=None: CliRunner(env=env).invoke(app, ["run", *arguments])


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failure_is_one_sentence_and_an_exit_code(own, kind):
    _, code, sentence = FAILURES[kind]
    result = own("--kind", kind, "-o", "out")
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", sentence + "\n")


@pytest.mark.parametrize("kind", ["usage", "library"])
def test_debug_adds_the_traceback_and_keeps_the_exit_code(own, kind):
    for given in ({"env": {"SKIPDIT_RUN_DEBUG": "1"}}, {}):
        arguments = [] if given else ["--debug"]
        result = own("--kind", kind, *arguments, "-o", "out", **given)
        lines = result.stderr.splitlines()
        assert result.exit_code == FAILURES[kind][1]
        assert lines[0].startswith("Traceback") and lines[-1].startswith("Error: ")


def test_flag_beats_environment_beats_preset_beats_default(own, tmp_path):
    preset = tmp_path / "p.yaml"
    preset.write_text("run:\n  seed: 1\n  rate: 1e-4\n  flip: true\n  labels: [3, 4]\n")
    from_preset = {"schema": 1, "seed": 1, "rate": 1e-4, "flip": True, "labels": [3, 4]}

    def values(*arguments, env=None):
        result = own("--json", *arguments, env=env)
        assert result.exit_code == 0, result.stderr
        return __import__("json").loads(result.stdout)

    assert values() == {"schema": 1, "seed": 0, "rate": 0.5, "flip": False, "labels": []} | {"labels": None}
    assert values("--preset", str(preset)) == from_preset
    assert values(env={"SKIPDIT_RUN_PRESET": str(preset)}) == from_preset
    environment = {"SKIPDIT_RUN_SEED": "2"}
    assert values("--preset", str(preset), env=environment)["seed"] == 2
    assert values("--seed", "3", "--preset", str(preset), env=environment)["seed"] == 3
    assert values("--preset", str(preset), "--seed", "3", env=environment)["seed"] == 3


def test_json_keeps_stdout_for_one_object_even_after_a_failed_run(own):
    assert own("--json").stderr == "for people\n"
    for kind, (_, code, _) in FAILURES.items():
        ended = own("--json", "--kind", kind)
        said = json.loads(ended.stdout)
        assert said == {"schema": 1, "error": ended.stderr.strip().removeprefix("Error: "), "exit_code": code}
    assert json.loads(own("--sed", "--json").stdout)["exit_code"] == 2
    assert own().stdout == "for people\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seed", "x"], "Invalid value for '--seed'"),
        (["--sed", "1"], "No such option: --sed"),
        (["stray"], "unexpected extra argument"),
        (["--seed"], "requires an argument"),
    ],
)
def test_what_typer_refuses_reads_the_same(own, arguments, says):
    result = own(*arguments)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("Error: ") and says in result.stderr
    assert result.stderr.endswith("See 'skipdit run --help'.\n")


def test_an_unknown_command_and_an_unknown_root_flag_are_sentences(skipdit):
    for arguments in (["smaple"], ["--nope"]):
        ended = skipdit(*arguments)
        assert ended.code == 2 and ended.stdout == ""
        assert len(ended.stderr.splitlines()) == 1 and ended.stderr.startswith("Error: No such ")


def test_bare_skipdit_shows_the_help(skipdit):
    bare, helped = skipdit(), skipdit("--help")
    assert bare.code == 2 and bare.stdout + bare.stderr == helped.stdout
    assert helped.code == 0 and "presets" in helped.stdout and "130 interrupted" in helped.stdout


def test_help_of_every_command_fits_80_columns(skipdit):
    from typer.main import get_command

    from skipdit_cli.app import app

    for name in get_command(app).commands:
        ended = skipdit(name, "--help")
        assert ended.code == 0, name
        assert max(map(len, ended.stdout.splitlines())) <= 80, name
        assert not re.search(r"--\w[\w-]*-$", ended.stdout, re.MULTILINE), "a flag is broken at a hyphen"
        for example in re.findall(r"^  (skipdit .*?)\n\n", ended.stdout, re.MULTILINE | re.DOTALL):
            assert all(line.endswith(" \\") for line in example.splitlines()[:-1]), "a shell joins the lines"
    assert "..." not in skipdit("--help").stdout.partition("Commands:")[2], "summaries are whole"


FIRST = {
    "sample": ["--model", "--preset", "--output"],
    "bench": ["--model", "--preset", "--output"],
    "info": ["--model", "--preset"],
    "train": ["--preset", "--data", "--output"],
    "finetune": ["--model", "--preset", "--train", "--data", "--output"],
}
"""The flags without a panel, by command."""
PANELS = ["Arguments", "Options", "Model", "What to sample", "Cache", "Pipeline"]


@pytest.mark.parametrize("command", FIRST)
def test_help_groups_flags_into_panels_and_shows_first_what_everyone_needs(skipdit, command):
    text = skipdit(command, "--help").stdout
    titles = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    shared = [title for title in PANELS if title in titles]
    assert titles[: len(shared)] == shared and titles[-1] == "Output"
    first = re.search(r"^Options:\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)[1]
    assert re.findall(r"^  (?:-\w, )?(--[\w-]+)", first, re.MULTILINE) == [*FIRST[command], "--help"]


def test_version(skipdit):
    from skipdit_cli import __version__

    assert skipdit("--version").stdout == f"skipdit {__version__}\n"


def test_help_and_presets_leave_the_heavy_libraries_alone():
    code = (
        "import sys\nfrom skipdit_cli.app import app\n"
        "for arguments in (['--help'], ['presets', 'list']):\n"
        "    try: app(arguments)\n"
        "    except SystemExit: pass\n"
        "heavy = 'torch diffusers transformers accelerate numpy PIL sklearn matplotlib imageio'.split()\n"
        "print('heavy:', [name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_ctrl_c_is_130_and_a_short_line():
    code = (
        "import sys, time\nfrom skipdit_cli.app import app, App, Group\n"
        "own = App(cls=Group)\n"
        "@own.command()\ndef wait():\n    print('waiting', flush=True)\n    time.sleep(60)\n"
        "@own.command()\ndef other(): pass\n"
        "own(['wait'])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130 and stderr == "Error: interrupted.\n"


def test_a_closed_pipe_is_quiet():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "skipdit_cli", "presets", "list"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.stderr == ""


def test_memory_that_runs_out_is_a_sentence(skipdit, tiny_pipeline, monkeypatch, tmp_path):
    import torch

    from skipdit_cli.sampling import generate as generation

    failures = (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ..."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried ..."
        ),
        MemoryError(),
    )
    model = tiny_pipeline()
    for failure in failures:

        def generate(*args, failure=failure, **kwargs):
            raise failure

        monkeypatch.setattr(generation, "generate_batches", generate)
        ran = skipdit("sample", "-m", model, "--class-labels", 1, "-o", tmp_path / "a.png")
        assert ran.code == 1 and "ran out of memory; give a smaller --batch-size" in ran.stderr


def test_no_help_tells_the_environment_flag_by_flag(skipdit):
    for command in ((), ("sample",), ("presets",), ("presets", "check")):
        assert "env var" not in skipdit(*command, "--help").stdout


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("train", "--lr", 1), "No such option: --lr. Did you mean '--learning-rate'?"),
        (("train", "--output_dir", "x"), "Did you mean '--output'?"),
        (("prepare", "-o", "x"), "No such option: -o. Did you mean '--cache-latents'?"),
        (("finetune", "--train_data_dir", "x"), "Did you mean '--data'?"),
        (("finetune", "--report_to", "wandb"), "Did you mean '--report-to'?"),
        (("finetune", "--pretrained_model_name_or_path", "x"), "Did you mean '--model'?"),
        (("sample", "--cfg-scale", 2), "Did you mean '--guidance-scale'?"),
        (("sample", "--token", "x"), "No such option: --token. The hub's token is read from HF_TOKEN"),
        (("smaple",), "Did you mean 'sample'? See"),
        (("sample", "--steps", 0), "Got --steps 0 but expected 1 or more"),
        (("sample", "--num-inference-steps", 0), "Got --num-inference-steps 0 but expected 1 or more"),
        (("sample", "--plan", "a", "--plan=b"), "Got --plan twice, a and b"),
        (("sample", "some/model", "-m", "other"), "Got a model twice, some/model and --model other"),
        (("calibrate", "no/model", "--cost", 3, "-o", "p.yaml"), "no/model"),
        (("info", "nowhere"), "Got MODEL nowhere, which does not exist"),
        (("info", "-m", "nowhere"), "Got --model nowhere, which does not exist"),
        (("sample", "--num_inference_step", 4), "Did you mean '--num-inference-steps'?"),
    ],
)
def test_a_flag_of_other_tools_leads_to_ours_and_errors_say_what_was_typed(skipdit, arguments, says):
    ran = skipdit(*arguments)
    assert ran.code == 2 and says in ran.stderr, ran.stderr


def test_the_version_has_a_short_flag_and_names_of_presets_are_completed(skipdit):
    assert skipdit("-V").stdout == skipdit("--version").stdout
    from skipdit_cli.commands.options import _complete_preset

    assert _complete_preset("digits-") == ["digits-sizes", "digits-video"]


def test_the_end_of_another_process_is_one_sentence_without_addresses(own, monkeypatch):
    """What gloo raises in a training whose other process is killed."""
    gloo = "[/p/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:29575. GLHF!"
    monkeypatch.setitem(FAILURES, "peer", (RuntimeError(gloo), 1, ""))
    monkeypatch.setattr("skipdit_cli.app.TOGETHER", ("run",))
    assert "RuntimeError: [/p/gloo" in own("--kind", "peer").stderr
    ran = own("--kind", "peer", env={"WORLD_SIZE": "2"})
    assert ran.exit_code == 1 and ran.stderr.startswith("Error: Another process of this run has ended")
    assert "(Connection closed by peer); its message says why" in ran.stderr and "gloo" not in ran.stderr
