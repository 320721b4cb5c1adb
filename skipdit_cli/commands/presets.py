"""``skipdit presets``: what presets there are, what one of them sets, and whether all of them still fit."""

from __future__ import annotations

from typing import Annotated

import typer

from skipdit_cli import console
from skipdit_cli.commands.options import Debug, Json
from skipdit_cli.commands.values import environment_layer, flags_of_commands, laid, preset_layer
from skipdit_cli.errors import CheckError, UsageError, nearest
from skipdit_cli.presets import Preset, load_preset, preset_names, preset_path

presets = typer.Typer(no_args_is_help=True, help="List, show and check presets.")

Name = Annotated[str, typer.Argument(help="Preset name or YAML path.", metavar="NAME")]
Names = Annotated[list[str] | None, typer.Argument(help="Names or YAML paths; all if none.", metavar="[NAME|PATH]...")]


@presets.command("list")
def list_presets(json: Json = False, debug: Debug = False) -> None:
    """Every preset and what it is for."""
    found = [load_preset(name) for name in preset_names()]
    console.table(["preset", "about"], [[preset.name, preset.about] for preset in found])
    console.emit({"presets": [{"name": p.name, "about": p.about, "commands": list(p.flags)} for p in found]})


@presets.command()
def show(ctx: typer.Context, name: Name, json: Json = False, debug: Debug = False) -> None:
    """The file, and the value every flag of its commands ends up with."""
    path = preset_path(name)
    preset = load_preset(name, flags_of_commands(ctx))
    console.say(path.read_text(encoding="utf-8").rstrip())
    effective = {command: _effective(_command(ctx, command), preset) for command in preset.flags}
    for command, flags in effective.items():
        rows = [[f"--{flag}", entry["value"], entry["from"]] for flag, entry in flags.items()]
        console.say("")
        console.table(["flag", "value", "from"], rows, title=f"skipdit {command} --preset {name}")
    console.emit({"name": preset.name, "path": path, "about": preset.about, "source": preset.source,
                  "weights": preset.weights, "model": preset.model, "flags": effective})  # fmt: skip


@presets.command()
def check(ctx: typer.Context, names: Names = None, json: Json = False, debug: Debug = False) -> None:
    """Parse every value with the command it is for, and every model with its diffusers class; exit 3 if one fails."""
    checked = names or preset_names()
    problems = [{"preset": name, "problem": problem} for name in checked for problem in _problems(ctx, name)]
    for entry in problems:
        console.say(f"{entry['preset']}: {entry['problem']}")
    console.emit({"checked": checked, "problems": problems})
    if problems:
        raise CheckError(f"{len({entry['preset'] for entry in problems})} of {len(checked)} presets do not fit.")
    console.say(f"{len(checked)} presets fit.")


def _command(ctx: typer.Context, name: str):
    return ctx.find_root().command.commands[name]


def _effective(command, preset: Preset) -> dict[str, dict[str, object]]:
    """Long flag to its value and where that comes from; flags without a value are left out."""
    values, origin = laid(command, [preset_layer(command, preset), environment_layer(command)])
    named = {"the environment": "environment"}
    flags = {}
    for parameter in command.params:
        longs = [opt[2:] for opt in parameter.opts if opt.startswith("--")]
        value = values.get(parameter.name, parameter.default)
        if longs and value is not None and not parameter.is_eager:
            source = named.get(origin[parameter.name].source, "preset") if parameter.name in origin else "default"
            flags[longs[0]] = {"value": value, "from": source}
    return flags


def _problems(ctx: typer.Context, name: str) -> list[str]:
    """One sentence for everything about a preset that would stop a run."""
    try:
        preset = load_preset(name, flags_of_commands(ctx))
    except UsageError as cause:
        return [str(cause)]
    found = _model_problems(preset.model)
    if preset.weights and not preset.weights_path.exists():
        found.append(f"weights '{preset.weights}' are not in the package")
    for command_name in preset.flags:
        command = _command(ctx, command_name)
        for parameter_name, value in preset_layer(command, preset).values.items():
            parameter = next(p for p in command.params if p.name == parameter_name)
            try:
                parameter.process_value(ctx, value)
            except (UsageError, typer.BadParameter) as cause:
                text = cause.format_message() if isinstance(cause, typer.BadParameter) else cause
                found.append(f"{command_name}: {text}")
    return found


def _model_problems(model: dict) -> list[str]:
    """What diffusers would refuse: a class it lacks, arguments the class does not take."""
    if not model:
        return []
    import inspect

    from skipdit_cli.families import class_named

    try:
        known = class_named(str(model["class"]))
    except AttributeError:
        return [f"diffusers has no class '{model['class']}'"]
    allowed = list(inspect.signature(known.__init__).parameters)
    strange = [key for key in model["config"] if key not in allowed]
    found = [f"{model['class']} takes no argument '{key}'.{nearest(key, allowed)}" for key in strange]
    return found + _model_problems(model.get("scheduler", {}))
