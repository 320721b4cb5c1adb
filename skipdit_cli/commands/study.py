"""``skipdit study``: rerun an experiment of the papers, and leave a report."""

from __future__ import annotations

import contextlib
import io
import json as json_format
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from skipdit_cli import console, files
from skipdit_cli.commands import options
from skipdit_cli.commands.flags import with_settings
from skipdit_cli.commands.nested import run_command
from skipdit_cli.commands.training_options import ConsoleObserver
from skipdit_cli.errors import INTERRUPTED, UsageError
from skipdit_cli.presets import load_preset, preset_path
from skipdit_cli.settings import OUTPUT, setting
from skipdit_cli.studies import STUDIES
from skipdit_cli.version import versions_of_results

SIZES = ("small", "full")
Name = Annotated[
    str | None, typer.Argument(metavar="NAME", help=f"{', '.join(STUDIES)}; without one, all are listed.")
]


@dataclass(frozen=True)
class StudySettings:
    """The settings of ``skipdit study``."""

    size: str = setting("small", "small, for a laptop, or full, for GPUs: the preset study-NAME-SIZE.", metavar="SIZE")
    seeds: int = setting(3, "Training seeds: 0, 1, 2 and so on.", minimum=1, maximum=100)
    jobs: int = setting(1, "Commands and measurements at one time, each in its own process.", minimum=1, maximum=256)
    num_processes: int = setting(
        1, "Processes (GPUs) of one training, which accelerate launches.", minimum=1, maximum=4096
    )
    dry_run: bool = setting(False, "Show the commands and what the study needs; run nothing.")
    output: Path | None = setting(
        None, "Folder for the report and everything that it measures. [default: skipdit-study-NAME]", OUTPUT
    )
    overwrite: bool = setting(False, "Replace an existing output.", OUTPUT)


@with_settings(StudySettings)
def study(
    ctx: typer.Context,
    name: Name = None,
    preset: options.Preset = None,
    settings: StudySettings = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Rerun an experiment of the papers, and leave an HTML report.

    skipdit study branches --jobs 2

    Its settings are a preset, study-NAME-small or study-NAME-full, or that of --preset. An interrupted study goes on
    by the same command.
    """
    from skipdit_cli.studies import load_study
    from skipdit_cli.studies.study import read_settings

    if name is None:
        _list(STUDIES, load_study)
        return
    chosen, source = load_study(name), preset or f"study-{name}-{_size(settings.size)}"
    folder = preset_path(source).absolute().parent
    own = read_settings(chosen, load_preset(source).experiment, f"Preset {source}", folder)
    seeds, output = tuple(range(settings.seeds)), settings.output or Path(f"skipdit-study-{name}")
    if chosen.check and not settings.dry_run:
        chosen.check(own)
    needs = chosen.needs(own, seeds) if chosen.needs else []
    if settings.dry_run:
        _show(name, chosen.commands(own, seeds), needs)
        return
    files.check_partial(output, files.STUDY, settings.overwrite)
    files.hold(output)
    lines = console.count(len(chosen.commands(own, seeds)), "command")
    for line in (*needs, f"{lines}, then measurements of what they make; after Ctrl-C the same command goes on."):
        console.say(line)
    record = _run(ctx, (chosen, own, seeds), output, settings, source)
    for line in (record["lead"], *record["details"], *(f"Warning: {text}" for text in record["warnings"])):
        console.say(line)
    console.say(f"The report, with plots and all numbers: {output}/report.html")
    console.emit({**record, "command": "study", "output": str(output)})


def _size(size: str) -> str:
    if size not in SIZES:
        raise UsageError(f"Got --size '{size}' but expected {' or '.join(SIZES)}; or give a --preset of your own.")
    return size


def _list(names: Iterable[str], load: Callable) -> None:
    studies = [load(name) for name in names]
    console.table(["study", "what it asks"], [[each.name, each.summary] for each in studies])
    console.emit({"studies": [{"name": s.name, "summary": s.summary, "claim": s.claim} for s in studies]})


def _show(name: str, lines: dict[str, str], needs: Sequence[str]) -> None:
    """Show what a study would run."""
    for line in (*needs, f"{console.count(len(lines), 'command')}, then measurements of what they make:"):
        console.say(line)
    for line in lines.values():
        console.say(f"skipdit {line}")
    console.emit({"command": "study", "study": name, "commands": lines, "needs": list(needs)})


def _run(ctx, what: tuple, output: Path, settings: StudySettings, preset: str) -> dict[str, Any]:
    """Run a study in its folder, or go on with it; write the report, and return its record.

    Args:
        what: The study, its own settings and the seeds.
    """
    from skipdit_cli.bench.results.tables import environment
    from skipdit_cli.formats import to_json
    from skipdit_cli.reports import save
    from skipdit_cli.sampling.device import select_device
    from skipdit_cli.studies.study_report import make_record, make_report
    from skipdit_cli.studies.study_run import StudyRun, as_json

    chosen, own, seeds = what
    values = as_json({"study": chosen.name, "seeds": seeds, **asdict(own), "versions": versions_of_results()})
    resume = files.is_resumed(output, files.STUDY, values, settings.overwrite)
    device, dtype = select_device()
    in_process = settings.jobs == settings.num_processes == 1
    with files.PartialFolder(output, files.STUDY, values, resume) as folder:
        folder.open(["report.html", "study.json"])
        run = StudyRun(
            chosen,
            own,
            seeds,
            folder.place,
            device=device.type,
            observer=ConsoleObserver(),
            jobs=settings.jobs,
            num_processes=settings.num_processes,
            execute=(lambda words: _execute(ctx, words)) if in_process else None,
        )
        try:
            run.run_commands()
            folder.keep()
            findings = chosen.measure(run)
        finally:
            if any(run.folder(name).exists() for name in run.lines):
                folder.keep()
        record = make_record(run, findings, preset, environment(device, dtype))
        with files.replacing(folder.place / "study.json") as part:
            part.write_text(to_json(record, indent=1), encoding="utf-8")
        save(make_report(run, findings, record, ctx.find_root().meta["typed"]), folder.place / "report.html")
        folder.finish()
    return record


def _execute(ctx, words: Sequence[str]) -> dict[str, Any]:
    """Run a command line in this process, and return the object that it prints."""
    console.say(f"\n$ skipdit {shlex.join(words)}")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = run_command(ctx, [*words, "--json"])
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise typer.Exit(code)
    return json_format.loads(printed.getvalue())
