"""Where a flag's value comes from: typed > record (``--from``) > environment > preset > default.

This is the one place that lays values over each other. What it finds below a typed flag becomes the ``default_map`` of
the command's context, whatever the order on the command line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from skipdit_cli import console
from skipdit_cli.commands.replay import read_record
from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.presets import FORBIDDEN_FLAGS, Preset, load_preset

FETCHED = ("model", "vae", "lora", "text_from", "vanilla")
"""Parameters that name what the hub is asked for where no such folder is here; ``revision`` says which of it."""
RIVALS = (
    {"model_argument", "model"},
    {"class_labels", "prompt"},
    {"class_labels", "prompts_file"},
    {"prompt", "prompts_file"},
)
"""Parameters of which one is given in place of the other: one that is set takes back the other of a lower layer."""
RIVALS_OF = {"sample": ({"cache_interval", "full_steps"}, {"cache_window", "full_steps"})}
"""The same, of one command alone: ``bench`` takes both and measures both."""


@dataclass(frozen=True)
class Layer:
    """Values of one source.

    Args:
        source: What a sentence calls it.
        values: Parameter name to value, as typed or as the command gets it; None stands for the default, whatever
            lower layers say.
        foreign: Whether it is a file that somebody else may have written.
    """

    source: str
    values: Mapping[str, object]
    foreign: bool = False


def flags_of(command) -> set[str]:
    """A command's long flags, without dashes, that a preset may set; presets.py names those that have to be typed."""
    return {opt[2:] for p in command.params if not p.is_eager for opt in p.opts if opt.startswith("--")}


def flags_of_commands(ctx: typer.Context) -> dict[str, set[str]]:
    return {name: flags_of(command) for name, command in ctx.find_root().command.commands.items()}


def switches_of(command) -> list:
    """The flags without a value that a preset may set."""
    settable = flags_of(command) - set(FORBIDDEN_FLAGS) if any(p.name == "preset" for p in command.params) else ()
    return [p for p in command.params if getattr(p, "is_flag", False) and flag_of(p)[2:] in settable]


def sentence(source: str) -> str:
    """The name of a source as a sentence begins with it."""
    return source[0].upper() + source[1:]


@contextmanager
def naming_source(ctx: typer.Context) -> Iterator[None]:
    """A refusal of a flag's value also says whose it is, where it was not typed."""
    try:
        yield
    except UsageError as cause:
        named = re.match(r"Got (--[\w-]+)", str(cause))
        source = ctx.meta.get("sources", {}).get(named[1]) if named else None
        if source is None:
            raise
        raise UsageError(f"{cause} It comes from {source}.") from cause


def flag_of(parameter) -> str:
    """How a parameter is given: its first long flag, or a positional argument's name."""
    return next((opt for opt in parameter.opts if opt.startswith("--")), parameter.name)


def preset_layer(command, preset: Preset) -> Layer:
    """What a preset sets of a command; lists only where the command takes several.

    Raises:
        UsageError: It sets one parameter under two names.
    """
    source, values = f"the preset {preset.name}", {}
    for flag, value in preset.flags.get(command.name, {}).items():
        parameter = next(p for p in command.params if f"--{flag}" in p.opts)
        if parameter.name in values:
            raise UsageError(
                f"{sentence(source)} sets '{command.name}: {flag}' twice, under two names; leave one out."
            )
        several = value if isinstance(value, list) else [value]
        values[parameter.name] = several if parameter.multiple else ",".join(several)
    return Layer(source, values, foreign=True)


def environment_layer(command) -> Layer:
    """
    Raises:
        UsageError: A variable begins as those of the command do, but no flag of it has that name; or two of one flag
            say different things.
    """
    values, known = {}, []
    for parameter in command.params:
        names = _variables(command, parameter)
        given = {name: os.environ[name] for name in names if os.environ.get(name)}
        known += names
        if len(set(given.values())) > 1:
            said = " and ".join(f"{name}={value}" for name, value in given.items())
            raise UsageError(f"Got {said} in the environment, which are one flag; set one of the two.")
        for text in given.values():  # several are not parted at every blank: texts have them
            values[parameter.name] = text.splitlines() if getattr(parameter, "multiple", False) else text
    for name in sorted(os.environ):
        if name.startswith(_variable(command, "")) and name not in known:
            raise UsageError(
                f"Got {name} in the environment, which is no flag of {command.name}.{nearest(name, known)}"
            )
    return Layer("the environment", values)


def _variables(command, parameter) -> list[str]:
    """The environment variables of a flag: one for each of its long names, and one for its name in the code."""
    names = [opt[2:] for opt in parameter.opts if opt.startswith("--")]
    return [_variable(command, name) for name in dict.fromkeys([*names, parameter.name])]


def _variable(command, name: str) -> str:
    return f"SKIPDIT_{command.name}_{name}".upper().replace("-", "_")


def laid(
    command, layers: Iterable[Layer], typed: Iterable[str] = ()
) -> tuple[dict[str, object], dict[str, Layer | None]]:
    """Layers over each other, the lowest first.

    Args:
        typed: Parameters that were typed, which win over all of them.
    Returns:
        Parameter name to value, and to the layer that it is of; nothing of those that were typed.
    """
    values, origin = {}, {}
    for layer in (*layers, Layer("the command line", dict.fromkeys(typed, True))):
        for name, value in layer.values.items():
            for rival in _rivals(command, name) if value is not None else ():
                if rival not in layer.values:
                    values.pop(rival, None)
        values |= layer.values
        origin |= dict.fromkeys(layer.values, layer)
    found = {name: value for name, value in values.items() if value is not None and name not in typed}
    return found, {name: origin[name] for name in found}


def _rivals(command, name: str) -> list[str]:
    groups = (*RIVALS, *RIVALS_OF.get(command.name, ()))
    return [other for group in groups if name in group for other in group - {name}]


def lay(ctx: typer.Context, command, typed: Mapping[str, object]) -> None:
    """Set the context's defaults to what the record, the environment and the preset say.

    Args:
        typed: What the command line says, by parameter name.
    Raises:
        UsageError: No such preset or record, a value of another kind, something that has to be typed.
    """
    environment = environment_layer(command)
    chosen = {**environment.values, **typed}
    layers = [environment]
    if "preset" in chosen:
        layers.insert(0, preset_layer(command, load_preset(chosen["preset"], flags_of_commands(ctx))))
    if "from_file" in chosen:
        made = Path(chosen["from_file"])
        layers.append(Layer(f"the record of {made}", read_record(made), foreign=True))
        if "model" not in layers[-1].values and not {"model", "preset"} & set(chosen):
            raise UsageError(f"The record of {made} names no model; give the --preset it was made with, or -m MODEL.")
        _say_overruled(ctx, command, layers, typed)
    values, origin = laid(command, layers, typed)
    for parameter in command.params:
        if parameter.name in values and not parameter.is_eager:
            _processed(ctx, parameter, values[parameter.name], origin[parameter.name])
    _check_local(typed, values, origin)
    ctx.default_map = values
    ctx.meta["sources"] = {flag_of(p): origin[p.name].source for p in command.params if p.name in origin}


def _processed(ctx: typer.Context, parameter, value: object, layer: Layer) -> object:
    try:
        return parameter.process_value(ctx, value)
    except typer.BadParameter as cause:
        said = f"{sentence(layer.source)} sets '{flag_of(parameter)}' to {value!r}: {cause.message}"
        raise UsageError(f"{said.rstrip('.')}; correct it there, or type the flag.") from cause


def _say_overruled(ctx: typer.Context, command, layers: Sequence[Layer], typed: Mapping[str, object]) -> None:
    """A record is made again as it is: say what else would have been asked for."""
    *lower, record = layers
    open_still = [p for p in command.params if p.name in record.values and p.name not in typed]
    for layer in lower:
        flags = []
        for parameter in (p for p in open_still if p.name in layer.values):
            own = record.values[parameter.name]
            kept = parameter.default if own is None else _processed(ctx, parameter, own, record)
            if _processed(ctx, parameter, layer.values[parameter.name], layer) != kept:
                flags.append(flag_of(parameter))
        if flags:
            console.warn(
                f"{layer.source} says {', '.join(flags)}, which {record.source} overrules; type what is to be."
            )


def _check_local(typed: Mapping[str, object], values: dict[str, object], origin: Mapping[str, Layer]) -> None:
    """Nothing is fetched because a file says so.

    Raises:
        UsageError: A record or a preset names a model, or a part of one, that is not on this machine.
    """
    for name in FETCHED:
        if name in values and origin[name].foreign and not is_here(values[name]):
            flag = f"--{name.replace('_', '-')}"
            other = "-m MODEL" if name == "model" else f"{flag} with another"
            raise UsageError(
                f"{sentence(origin[name].source)} says {flag} {values[name]}, which is not on this machine, and what "
                f"may be fetched has to be typed: give {flag} {values[name]}, or give {other}."
            )
    named = (given[name] for given in (typed, values) for name in ("model_argument", "model") if given.get(name))
    model = next(named, None)
    if "revision" in values and origin["revision"].foreign:
        if model is None or is_here(model):
            del values["revision"], origin["revision"]  # of a folder there is one
        else:
            raise UsageError(
                f"{sentence(origin['revision'].source)} says --revision {values['revision']}, and what may be fetched "
                f"has to be typed: give --revision {values['revision']}, or give another."
            )


def is_here(name: object) -> bool:
    """Whether a path or hub id is a file or folder of this machine, for which the hub is not asked."""
    text = str(name)
    if "://" in text or text.startswith(("//", "\\\\")):  # the second and third are another machine's on Windows
        return False
    try:
        place = Path(text).expanduser()
        return os.path.isdir(place) or os.path.isfile(place)
    except (RuntimeError, ValueError):  # no such home
        return False
