"""Where a flag's value comes from: typed > record (``--from``) > environment > plan > preset > default.

No other module lays these values over each other. What stands below the typed flags becomes the ``default_map`` of the
command's context, so the order on the command line does not matter.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer

from skipdit_cli import console
from skipdit_cli.commands.exclusive import EXCLUSIVE, EXCLUSIVE_OF
from skipdit_cli.commands.foreign import Layer, capitalised, check_nothing_is_fetched, say_what_is_named
from skipdit_cli.commands.replay import read_record
from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.presets import FORBIDDEN_FLAGS, Preset, load_preset
from skipdit_cli.sampling.cache_settings import CacheSettings
from skipdit_cli.sampling.sample_settings import split_timesteps
from skipdit_cli.settings import flag_name

CACHE_NAMES = tuple(each.name for each in fields(CacheSettings))
SCHEDULER_NAMES = ("scheduler", "scheduler_spacing", "scheduler_arg", "timesteps")


def flags_of(command) -> set[str]:
    """Return the long flags of a command, without dashes, that a preset may name; some of them must still be typed."""
    return {opt[2:] for p in command.params if not p.is_eager for opt in p.opts if opt.startswith("--")}


def flags_of_commands(ctx: typer.Context) -> dict[str, set[str]]:
    """Return ``flags_of`` every command, by the command's name."""
    return {name: flags_of(command) for name, command in ctx.find_root().command.commands.items()}


def switches_of(command) -> list:
    """Return the parameters without a value (``--compile``) that a preset may set."""
    settable = flags_of(command) - set(FORBIDDEN_FLAGS) if any(p.name == "preset" for p in command.params) else ()
    return [p for p in command.params if getattr(p, "is_flag", False) and flag_of(p)[2:] in settable]


def flag_of(parameter) -> str:
    """Return how a parameter is typed: its first long flag, or the name of a positional argument."""
    return next((opt for opt in parameter.opts if opt.startswith("--")), parameter.name)


@contextmanager
def naming_source(ctx: typer.Context) -> Iterator[None]:
    """Add to an error about a flag's value where the value comes from, if it was not typed."""
    try:
        yield
    except UsageError as cause:
        match = re.match(r"Got (--[\w-]+)", str(cause))
        source = ctx.meta.get("sources", {}).get(match[1]) if match else None
        if source is None:
            raise
        raise UsageError(f"{cause} It comes from {source}.") from cause


def preset_layer(command, preset: Preset) -> Layer:
    """Return what a preset sets for a command: lists where the command takes several values, else texts.

    Raises:
        UsageError: The preset sets one parameter under two names.
    """
    source, values = f"the preset {preset.name}", {}
    for flag, value in _preset_flags(command, preset).items():
        parameter = next(p for p in command.params if f"--{flag}" in p.opts)
        if parameter.name in values:
            raise UsageError(
                f"{capitalised(source)} sets '{command.name}: {flag}' twice, under two names; leave one out."
            )
        items = value if isinstance(value, list) else [value]
        values[parameter.name] = items if parameter.multiple else ",".join(items)
    return Layer(source, values, foreign=True)


def _preset_flags(command, preset: Preset) -> dict[str, Any]:
    """Return the flags of a preset for a command; ``prepare`` reads the data as the trainings of the preset do."""
    if command.name != "prepare":
        return preset.flags.get(command.name, {})
    known = flags_of(command)
    training = {**preset.flags.get("finetune", {}), **preset.flags.get("train", {})}
    return {flag: value for flag, value in training.items() if flag in known} | preset.flags.get("prepare", {})


def plan_layer(command, chosen: Mapping[str, Any]) -> Layer:
    """Return what a plan sets for ``sample``; a scheduler or cache flag that it leaves out gets its default.

    It stands below the environment; where it is typed beside ``--from``, above the record.

    Args:
        chosen: The values of the command line and the environment, ``plan`` among them.

    Raises:
        UsageError: The file is no plan, or is damaged, or there are cache flags beside it.
    """
    from skipdit_cli.planning.plan import load_plan  # which imports torch

    for name in CACHE_NAMES:
        if name in chosen:
            raise UsageError(f"Got {flag_name(name)} and --plan, which sets the cache; give one of the two.")
    load_plan(chosen["plan"])
    preset = load_preset(str(Path(chosen["plan"]).absolute()))
    values = dict.fromkeys((*SCHEDULER_NAMES, *CACHE_NAMES))
    return Layer(f"the plan {preset.name}", {**values, **preset_layer(command, preset).values}, foreign=True)


def environment_layer(command) -> Layer:
    """Return what environment variables (``SKIPDIT_SAMPLE_SEED``) set for a command.

    Raises:
        UsageError: A variable with the command's prefix names no flag, or two variables of one flag differ.
    """
    values, known = {}, []
    for parameter in command.params:
        names = _variables(command, parameter)
        texts = {name: os.environ[name] for name in names if os.environ.get(name)}
        known += names
        if len(set(texts.values())) > 1:
            listed = " and ".join(f"{name}={text}" for name, text in texts.items())
            raise UsageError(f"Got {listed} in the environment, which are one flag; set one of the two.")
        for text in texts.values():  # several values are one a line, for prompts hold blanks
            values[parameter.name] = text.splitlines() if getattr(parameter, "multiple", False) else text
    for name in sorted(os.environ):
        if name.startswith(_variable(command, "")) and name not in known:
            raise UsageError(
                f"Got {name} in the environment, which is no flag of {command.name}.{nearest(name, known)}"
            )
    return Layer("the environment", values)


def _variables(command, parameter) -> list[str]:
    """Return the environment variables of a parameter: one for each long flag, and one for its name in the code."""
    names = [opt[2:] for opt in parameter.opts if opt.startswith("--")]
    return [_variable(command, name) for name in dict.fromkeys([*names, parameter.name])]


def _variable(command, name: str) -> str:
    return f"SKIPDIT_{command.name}_{name}".upper().replace("-", "_")


def merge_layers(
    command, layers: Iterable[Layer], typed: Iterable[str] = ()
) -> tuple[dict[str, object], dict[str, Layer]]:
    """Lay the values of several sources over each other.

    Args:
        layers: The sources, the lowest first.
        typed: Names of the parameters that were typed, which win over all layers.

    Returns:
        The value of each parameter that was not typed, and the layer that it comes from.
    """
    values, origins = {}, {}
    for layer in (*layers, Layer("the command line", dict.fromkeys(typed, True))):
        for name, value in layer.values.items():
            for other in _excluded_by(command, name) if value is not None else ():
                if other not in layer.values:
                    values.pop(other, None)
        values |= layer.values
        origins |= dict.fromkeys(layer.values, layer)
    merged = {name: value for name, value in values.items() if value is not None and name not in typed}
    return merged, {name: origins[name] for name in merged}


def _excluded_by(command, name: str) -> list[str]:
    groups = (*EXCLUSIVE, *EXCLUSIVE_OF.get(command.name, ()))
    return [other for group in groups if name in group for other in group - {name}]


def set_defaults(ctx: typer.Context, command, typed: Mapping[str, object]) -> None:
    """Set the defaults of a command's context to what the record, the environment, the plan and the preset say.

    Args:
        typed: The values on the command line, by parameter name.

    Raises:
        UsageError: The preset, the plan or the record does not exist, a value has the wrong type or must be typed, or
            there are a plan and cache flags.
    """
    environment = environment_layer(command)
    chosen: dict[str, Any] = {**environment.values, **typed}
    plans = [plan_layer(command, chosen)] if command.name == "sample" and "plan" in chosen else []
    over_record = "plan" in typed and "from_file" in chosen
    layers = [*([] if over_record else plans), environment]
    for name in ("preset", "sweep"):
        if name in chosen:
            layers.insert(0, preset_layer(command, load_preset(chosen[name], flags_of_commands(ctx))))
    if "from_file" in chosen:
        file = Path(chosen["from_file"])
        record = Layer(f"the record of {file}", read_record(file), foreign=True)
        if "model" not in record.values and not {"model_argument", "model", "preset"} & set(chosen):
            raise UsageError(f"The record of {file} names no model; give the --preset it was made with, or -m MODEL.")
        _warn_of_overruled(ctx, command, record, layers, typed)
        layers += [record, *(plans if over_record else [])]
    values, origins = merge_layers(command, layers, typed)
    timesteps = typed.get("timesteps") or values.get("timesteps")
    if isinstance(timesteps, str) and split_timesteps(timesteps) and "num_inference_steps" not in {**values, **typed}:
        values["num_inference_steps"] = len(split_timesteps(timesteps))
        origins["num_inference_steps"] = origins.get("timesteps", Layer("--timesteps", {}))
    for parameter in command.params:
        if parameter.name in values and not parameter.is_eager:
            process(ctx, parameter, values[parameter.name], origins[parameter.name])
    check_nothing_is_fetched(typed, values, origins)
    say_what_is_named(values, origins)
    ctx.default_map = values
    ctx.meta["sources"] = {flag_of(p): origins[p.name].source for p in command.params if p.name in origins}


def process(ctx: typer.Context, parameter, value: object, layer: Layer) -> object:
    """Return a value as the command gets it; raise ``UsageError`` that names its source if it has the wrong type."""
    try:
        return parameter.process_value(ctx, value)
    except typer.BadParameter as cause:
        problem = f"{capitalised(layer.source)} sets '{flag_of(parameter)}' to {value!r}: {cause.message}"
        raise UsageError(f"{problem.rstrip('.')}; correct it there, or type the flag.") from cause


def _warn_of_overruled(
    ctx: typer.Context, command, record: Layer, layers: Sequence[Layer], typed: Mapping[str, object]
) -> None:
    """Warn of values in the environment, the plan and the preset that the record overrules."""
    untyped = [p for p in command.params if p.name in record.values and p.name not in typed]
    for layer in layers:
        flags = []
        for parameter in (p for p in untyped if layer.values.get(p.name) is not None):
            value = record.values[parameter.name]
            kept = parameter.default if value is None else process(ctx, parameter, value, record)
            if process(ctx, parameter, layer.values[parameter.name], layer) != kept:
                flags.append(flag_of(parameter))
        if flags:
            console.warn(
                f"{layer.source} says {', '.join(flags)}, which {record.source} overrules; type the flags to keep."
            )
