"""``skipdit presets``: list the presets, show what one of them sets, check that all of them still fit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skipdit_cli import console
from skipdit_cli.commands.flags import check_ranges
from skipdit_cli.commands.help_panels import PanelCommand
from skipdit_cli.commands.options import Debug, Json
from skipdit_cli.commands.values import environment_layer, flags_of_commands, merge_layers, preset_layer
from skipdit_cli.errors import CheckError, UsageError, nearest
from skipdit_cli.presets import Preset, load_preset, preset_names, preset_path
from skipdit_cli.training.sweep import points_of

presets = typer.Typer(no_args_is_help=True, help="List, show and check presets.")

Name = Annotated[str, typer.Argument(help="Preset, by name or YAML file.", metavar="NAME")]
Names = Annotated[
    list[str] | None,
    typer.Argument(help="Presets, by name or YAML file. [default: all]", metavar="[NAME|PATH]..."),
]


@presets.command("list", cls=PanelCommand)
def list_presets(json: Json = False, debug: Debug = False) -> None:
    """List every preset and what it is for."""
    listed = [load_preset(name) for name in preset_names()]
    console.table(["preset", "about"], [[preset.name, preset.about] for preset in listed])
    console.emit({"presets": [{"name": p.name, "about": p.about, "commands": list(p.flags)} for p in listed]})


@presets.command(cls=PanelCommand)
def show(ctx: typer.Context, name: Name, json: Json = False, debug: Debug = False) -> None:
    """Show a preset and the flags that it sets.

    Prints its file, then the value of every flag of its commands and where the value comes from.
    """
    path = preset_path(name)
    preset = load_preset(name, flags_of_commands(ctx))
    console.say(path.read_text(encoding="utf-8").rstrip())
    effective = {command: _effective(_command(ctx, command), preset) for command in preset.flags}
    for command, flags in effective.items():
        rows = [[f"--{flag}", entry["value"], entry["from"]] for flag, entry in flags.items()]
        console.say("")
        console.table(["flag", "value", "from"], rows, title=f"skipdit {command} --preset {name}")
    about = {"name": preset.name, "path": path, "about": preset.about, "source": preset.source}
    console.emit(
        {**about, "weights": preset.weights, "model": preset.model, "made_for": preset.made_for, "flags": effective}
    )


@presets.command(cls=PanelCommand)
def check(ctx: typer.Context, names: Names = None, json: Json = False, debug: Debug = False) -> None:
    """Check that presets fit their commands.

    Parses every value as the command would, and looks for every class and argument in diffusers. Exits with code 3
    if a preset does not fit.
    """
    checked = names or preset_names()
    problems = [{"preset": name, "problem": problem} for name in checked for problem in _problems(ctx, name)]
    for entry in problems:
        console.say(f"{entry['preset']}: {entry['problem']}")
    console.emit({"checked": checked, "problems": problems})
    if problems:
        raise CheckError(f"{len({entry['preset'] for entry in problems})} of {len(checked)} presets do not fit.")
    console.say(f"{console.count(len(checked), 'preset')} {'fits' if len(checked) == 1 else 'fit'}.")


def _command(ctx: typer.Context, name: str):
    return ctx.find_root().command.commands[name]


def _effective(command, preset: Preset) -> dict[str, dict[str, object]]:
    """Return the value of each flag and where it comes from, by long flag; flags without a value are left out."""
    values, origins = merge_layers(command, [preset_layer(command, preset), environment_layer(command)])
    named = {"the environment": "environment"}
    flags = {}
    for parameter in command.params:
        longs = [opt[2:] for opt in parameter.opts if opt.startswith("--")]
        value = values.get(parameter.name, parameter.default)
        if longs and value is not None and not parameter.is_eager:
            source = named.get(origins[parameter.name].source, "preset") if parameter.name in origins else "default"
            flags[longs[0]] = {"value": value, "from": source}
    return flags


def _problems(ctx: typer.Context, name: str) -> list[str]:
    """Return one sentence for each thing in a preset that would stop a run."""
    try:
        preset = load_preset(name, flags_of_commands(ctx))
        points = points_of(preset) if preset.sweep else []
    except UsageError as cause:
        return [str(cause)]
    problems = _own_problems(ctx, preset) + _study_problems(preset, preset_path(name).absolute().parent)
    for point in points:
        problems += [f"point {point.name}: {each}" for each in _own_problems(ctx, point) if each not in problems]
    return problems


def _own_problems(ctx: typer.Context, preset: Preset) -> list[str]:
    """Return the problems of a preset without those of the points of its sweep."""
    problems = _model_problems(preset.model) + _plan_problems(preset)
    if preset.weights and not preset.weights_path.exists():
        problems.append(f"weights '{preset.weights}' are not in the package")
    for command_name in preset.flags:
        command = _command(ctx, command_name)
        for parameter_name, value in preset_layer(command, preset).values.items():
            parameter = next(p for p in command.params if p.name == parameter_name)
            try:
                check_ranges(command, {parameter_name: parameter.process_value(ctx, value)})
            except (UsageError, typer.BadParameter) as cause:
                text = cause.format_message() if isinstance(cause, typer.BadParameter) else cause
                problems.append(f"{command_name}: {text}")
    return problems


def _study_problems(preset: Preset, folder: Path) -> list[str]:
    """Return what is wrong with the experiment of a preset, which lies in a folder."""
    if not preset.experiment:
        return []
    from skipdit_cli.studies import load_study
    from skipdit_cli.studies.study import read_settings

    try:
        study = load_study(str(preset.experiment.get("study")))
        study.commands(read_settings(study, preset.experiment, "it", folder), (0,))
    except UsageError as cause:
        return [str(cause)]
    return []


def _plan_problems(preset: Preset) -> list[str]:
    """Return what is wrong with a preset that is a plan."""
    if not preset.made_for:
        return []
    from skipdit_cli.planning.plan import plan_of

    try:
        plan_of(preset)
    except UsageError as cause:
        return [str(cause)]
    return []


def _model_problems(model: dict) -> list[str]:
    """Return what diffusers would refuse: a class that it lacks, arguments that the class does not take."""
    if not model:
        return []
    import inspect

    from skipdit_cli.families import class_named

    try:
        model_class = class_named(str(model["class"]))
    except AttributeError:
        return [f"diffusers has no class '{model['class']}'"]
    allowed = list(inspect.signature(model_class.__init__).parameters)
    unknown = [key for key in model["config"] if key not in allowed]
    problems = [f"{model['class']} takes no argument '{key}'.{nearest(key, allowed)}" for key in unknown]
    return problems + _model_problems(model.get("scheduler", {}))
