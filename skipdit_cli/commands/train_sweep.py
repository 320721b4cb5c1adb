"""``skipdit train --sweep``: one training after the other, for each point of a grid, and their table."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import typer

from skipdit_cli import console, files, processes
from skipdit_cli.commands.flags import check_ranges, settings_from
from skipdit_cli.commands.foreign import FETCHED, is_fetched
from skipdit_cli.commands.nested import run_command
from skipdit_cli.commands.values import flag_of, flags_of_commands, preset_layer, process
from skipdit_cli.errors import INTERRUPTED, SkipditError, UsageError, nearest
from skipdit_cli.presets import FORBIDDEN_FLAGS, Preset, load_preset, preset_path
from skipdit_cli.settings import flag_name
from skipdit_cli.training.sweep import Cost, cost_of, final_loss, is_flag, points_of, preset_text
from skipdit_cli.training.training_settings import TrainingSettings

OF_THE_SWEEP = ("points", "dry_run", "resume_from_checkpoint", "force_config", "push_to_hub", "private")
"""Parameters of the command that its points do not take."""
NOT_SWEPT = {
    "mixed-precision": "one process trains in one precision",
    "vae": "it is of all points",
    **dict.fromkeys((flag_name(name)[2:] for name in OF_THE_SWEEP), "it is of the whole sweep"),
}


@dataclass(frozen=True)
class Point:
    """One training of a sweep.

    Args:
        preset: What it trains, with all flags but those in ``typed``.
        settings: The settings of its run.
        output: The folder of its run.
        cost: What it costs.
        typed: Further flags of its command line, which no preset may hold.
    """

    preset: Preset
    settings: TrainingSettings
    output: Path
    cost: Cost
    typed: list[str]

    @property
    def name(self) -> str:
        """The name of the point and of its folder."""
        return self.preset.name

    @property
    def file(self) -> Path:
        """The file of its preset."""
        return self.output.with_name(f"{self.name}.yaml")

    def is_finished(self) -> bool:
        """Return whether its training is complete."""
        return (files.read_marker(self.output) or {}).get("state") == files.FINISHED

    def preset_text(self) -> str:
        """Return the file of its preset, whose first line is the command that trains it alone."""
        words = ["skipdit", "train", "--preset", f"{self.name}.yaml", "-o", self.name, *self.typed]
        return preset_text(self.preset, shlex.join(words))

    def words(self) -> list[str]:
        """Return the command line that trains it in its place."""
        words = ["train", "--preset", str(self.file), "-o", str(self.output), *self.typed]
        return [*words, "--resume-from-checkpoint", "auto"]


def train_sweep(ctx: typer.Context, sweep: str, settings: TrainingSettings, points: str | None, dry_run: bool) -> None:
    """Train every point of a sweep that is not finished, and report all of them.

    Args:
        sweep: The preset of the sweep, by name or path.
        settings: The settings of the command line, of the environment and of the preset.
        points: The names of the points to train, with commas between them; None for all.
        dry_run: Only show the points and their cost.
    Raises:
        UsageError: The sweep, a value in it or the output cannot be used.
        SkipditError: The training of some points failed.
        typer.Exit: It was interrupted (code 130).
    """
    for name in ("resume_from_checkpoint", "push_to_hub"):
        if getattr(settings, name) not in (None, "auto"):
            why = "resumes by itself" if name.startswith("resume") else "makes many models: upload one of them"
            typed = f"{flag_name(name)} {getattr(settings, name)}"
            raise UsageError(f"Got {typed} with --sweep, which {why}; leave it out.")
    preset = load_preset(sweep, flags_of_commands(ctx))
    swept = _swept_flags(preset)
    chosen = _chosen(points_of(preset), points)
    if processes.count() > 1 and len(chosen) > 1:  # accelerate ends the group of processes with the first training
        raise UsageError(
            f"Got {len(chosen)} points of a sweep in {processes.count()} processes, which train one a launch; give "
            f"--points {chosen[0].name}, then the next."
        )
    if settings.output is None and not dry_run:
        raise UsageError("Got no --output but expected a folder for the sweep, such as -o runs/sweep.")
    output = settings.output or Path(sweep).with_suffix("")
    resume = (files.read_marker(output) or {}).get("kind") == files.SWEEP and not settings.overwrite
    with console.progress("count", len(chosen)) as advance:
        grid = []
        for each in chosen:
            grid.append(_point(ctx, each, swept, output))
            advance(note=each.name)
    if settings.output is not None:
        _check(grid, output, preset_path(sweep), resume, settings.overwrite)
    is_main, failed = processes.rank() == 0, []
    if is_main:
        _show(grid, trained=False)
    if not dry_run:
        files.hold(output)
        processes.join().wait_for_all()  # all have checked the output before the main process writes it
        with contextlib.redirect_stdout(sys.stderr) if ctx.params["json"] else contextlib.nullcontext():
            failed = _train(ctx, grid, output, resume)
    if not is_main:
        return
    if not dry_run:
        _show(grid, trained=True)
    rows = [_record(point) for point in grid]
    console.emit({"command": "train", "sweep": sweep, "output": str(output), "dry_run": dry_run, "points": rows})
    if failed:
        raise SkipditError(
            f"{console.count(len(failed), 'point')} of {len(grid)} failed ({', '.join(failed)}); the same command "
            "tries again."
        )


def _chosen(grid: list[Preset], points: str | None) -> list[Preset]:
    """Return the points of a grid that are named, in the order of the grid."""
    names = [point.name for point in grid]
    named = names if points is None else [name.strip() for name in points.split(",")]
    for name in named:
        if name not in names:
            raise UsageError(f"Got --points {name}, which is no point of the sweep.{nearest(name, names)}")
    return [point for point in grid if point.name in named]


def _swept_flags(preset: Preset) -> set[str]:
    """Return the flags that a sweep varies.

    Raises:
        UsageError: It varies one that all points of a sweep share.
    """
    keys = {key for variants in preset.sweep.values() for values in variants.values() for key in values}
    for key in NOT_SWEPT:
        if key in keys:
            raise UsageError(f"Preset {preset.name} sweeps '{key}', but {NOT_SWEPT[key]}; train them one by one.")
    return {key for key in keys if is_flag(key)}


def _point(ctx: typer.Context, preset: Preset, swept: set[str], output: Path) -> Point:
    """Return a point: the values typed and in the environment go into its preset, or stay on its command line."""
    command, flags, typed = ctx.command, dict(preset.flags["train"]), []
    for parameter in command.params:
        source, flag = ctx.get_parameter_source(parameter.name), flag_of(parameter)
        is_set = getattr(source, "name", "") == "COMMANDLINE" or ctx.meta["sources"].get(flag) == "the environment"
        name, value = parameter.name, ctx.params.get(parameter.name)
        if not is_set or parameter.is_eager or name in (*OF_THE_SWEEP, "output", "overwrite"):
            continue
        if flag[2:] in swept:
            raise UsageError(f"Got {flag} {value}, which the sweep varies; leave the flag out, or edit the sweep.")
        if flag[2:] in FORBIDDEN_FLAGS or (name in FETCHED and is_fetched(name, value)):
            typed += [flag, str(value)]
        else:
            flags[flag[2:]] = str(value).lower() if isinstance(value, bool) else str(value)
    from skipdit_cli.training.run.base_model import trainable_config

    preset = replace(preset, flags={**preset.flags, "train": flags})
    values = {**ctx.params, **_preset_values(ctx, command, preset)}
    check_ranges(command, values)
    trainable_config(preset, ctx.params["dry_run"] or ctx.params["vae"] is not None)
    branches = bool(values["skip_branches"])
    place = output / preset.name
    unchanged = {"output": place, "overwrite": False, "resume_from_checkpoint": "auto"}
    settings = settings_from(TrainingSettings, {**values, **unchanged})
    return Point(preset, settings, place, cost_of(preset, settings, branches, processes.count()), typed)


def _check(grid: list[Point], output: Path, preset: Path, resume: bool, overwrite: bool) -> None:
    """Check the output of a sweep and the settings of all its points, before the first of them is trained."""
    files.check_apart(output, {"--sweep": preset})
    if resume:
        files.check_resumed(output, files.SWEEP)
    else:
        files.check_folder(output, files.SWEEP, overwrite)
        for point in grid:
            replace(point.settings, output=output / "new", resume_from_checkpoint=None).check()
        return
    for point in grid:
        if point.file.is_file() and point.file.read_text(encoding="utf-8") != point.preset_text():
            raise UsageError(
                f"Got other settings of the point {point.name} than in {point.file}; give the same sweep and flags to "
                "go on, --overwrite to start anew, or another --output."
            )
        if not point.is_finished():
            point.settings.check()


def _train(ctx: typer.Context, grid: list[Point], output: Path, resume: bool) -> list[str]:
    """Train the points that are not finished; return the names of those that failed."""
    left = [point for point in grid if not resume or not point.is_finished()]
    if len(left) < len(grid):
        console.say(f"{console.count(len(grid) - len(left), 'point')} of {len(grid)} finished before.")
    failed = []
    with _shared(output, resume) as is_main:
        for point in grid if is_main else ():
            files.note(output, point.file.name, f"{point.name}/", state=files.RESUMABLE)
            with files.replacing(point.file) as part:
                part.write_text(point.preset_text(), encoding="utf-8")
        processes.join().wait_for_all()
        for number, point in enumerate(left, 1):
            console.say(f"\n[{number} of {len(left)}] $ skipdit {shlex.join(point.words())}")
            code = run_command(ctx, point.words())
            if code == INTERRUPTED:
                raise typer.Exit(INTERRUPTED)
            failed += [point.name] if code else []
    return failed


@contextlib.contextmanager
def _shared(output: Path, resume: bool) -> Iterator[bool]:
    """Yield whether this process is the main one of those that train, which alone writes the folder of the sweep."""
    if processes.rank() > 0:
        yield False
        return
    with files.work_in(output, files.SWEEP, resume):
        yield True


def _record(point: Point) -> dict[str, Any]:
    """Return what is known of a point, for ``--json``."""
    loss, seconds = final_loss(point.output)
    state = "finished" if point.is_finished() else ("begun" if seconds else "new")
    facts = {"name": point.name, "state": state, "preset": str(point.file), "output": str(point.output)}
    return {**facts, **asdict(point.cost), "loss": loss, "seconds": round(seconds, 1)}


def _show(grid: list[Point], trained: bool) -> None:
    """Print the table of a sweep: what its points cost or, when they are trained, how they ended."""
    amounts = [[point.name, console.amount(point.cost.parameters), _amount(point.cost.macs)] for point in grid]
    if not trained:
        columns = ["point", "parameters", "multiply-adds a forward", "multiply-adds of the training"]
        totals = [point.cost.training_macs for point in grid]
        console.table(columns, [[*row, "-" if n is None else f"{n:.3g}"] for row, n in zip(amounts, totals)])
        known = [total for total in totals if total is not None]
        if len(known) == len(grid):
            console.say(f"In all: {console.count(len(grid), 'point')}, {sum(known):.3g} multiply-adds.")
        return
    rows = []
    for (name, parameters, macs), record in zip(amounts, map(_record, grid)):
        loss = "-" if record["loss"] is None else f"{record['loss']:.4f}"
        rows.append([name, parameters, macs, loss, f"{record['seconds']:.1f}"])
    console.table(["point", "parameters", "multiply-adds a forward", "loss", "seconds"], rows)


def _amount(number: int | None) -> str:
    return "-" if number is None else console.amount(number)


def _preset_values(ctx: typer.Context, command, preset: Preset) -> dict[str, object]:
    """Return what a preset sets for a command, by parameter name, as the command gets it.

    Raises:
        UsageError: A value has the wrong type.
    """
    layer, parameters = preset_layer(command, preset), {p.name: p for p in command.params}
    return {name: process(ctx, parameters[name], value, layer) for name, value in layer.values.items()}
