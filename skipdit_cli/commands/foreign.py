"""What a file that somebody else may have written, a record or a preset, sets: nothing that is fetched, and what it
names on this machine is said."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipdit_cli import console
from skipdit_cli.errors import UsageError
from skipdit_cli.formats import parse_yaml
from skipdit_cli.presets import BRANCH, embedded_folder
from skipdit_cli.settings import flag_name
from skipdit_cli.training.data_source import parse_data

FETCHED = ("model", "vae", "lora", "text_from", "vanilla", "data", "image")
"""Parameters whose value is a path, or else is fetched from the hub, or from a server where it begins with its name;
``revision`` belongs to the model."""


@dataclass(frozen=True)
class Layer:
    """The values of one source.

    Args:
        source: The name of the source in a message.
        values: Parameter name to value, as typed or converted. None stands for the default, whatever lower layers say.
        foreign: Whether the source is a file that somebody else may have written.
    """

    source: str
    values: Mapping[str, object]
    foreign: bool = False


def check_nothing_is_fetched(
    typed: Mapping[str, object], values: dict[str, object], origins: Mapping[str, Layer]
) -> None:
    """Refuse a record or a preset that names a model, or a part of one, that is not on this machine.

    A ``revision`` of such a file is dropped where the model is a folder here, for a folder has only one.
    """
    for name in FETCHED:
        if name in values and origins[name].foreign and is_fetched(name, values[name]):
            flag = flag_name(name)
            other = "-m MODEL" if name == "model" else f"{flag} with another"
            raise UsageError(
                f"{capitalised(origins[name].source)} says {flag} {values[name]}, which is not on this machine, and "
                f"what may be fetched has to be typed: give {flag} {values[name]}, or give {other}."
            )
    _check_output_branch(values, origins)
    models = (source[name] for source in (typed, values) for name in ("model_argument", "model") if source.get(name))
    model = next(models, None)
    if "revision" in values and origins["revision"].foreign:
        if model is None or is_here(model):
            del values["revision"], origins["revision"]
        else:
            raise UsageError(
                f"{capitalised(origins['revision'].source)} says --revision {values['revision']}, and what may be "
                f"fetched has to be typed: give --revision {values['revision']}, or give another."
            )


def say_what_is_named(values: Mapping[str, object], origins: Mapping[str, Layer]) -> None:
    """Say which files of this machine a record or a preset names, which the user may not know of."""
    named: dict[str, list[str]] = {}
    for name in FETCHED:
        if name in values and origins[name].foreign and Path(str(values[name])).parent != embedded_folder():
            named.setdefault(origins[name].source, []).append(f"{flag_name(name)} {values[name]}")
    for source, flags in named.items():
        console.say(f"{capitalised(source)} says {', '.join(flags)}; type the flag to use another.")


def _check_output_branch(values: Mapping[str, object], origins: Mapping[str, Layer]) -> None:
    """Refuse a record or a preset whose scheduler takes an output branch from another machine."""
    texts: Any = values.get("scheduler_arg")
    for text in texts if isinstance(texts, (list, tuple)) and origins["scheduler_arg"].foreign else ():
        if text.startswith(BRANCH) and not is_here(parse_yaml(text.removeprefix(BRANCH), "Got --scheduler-arg")):
            raise UsageError(
                f"{capitalised(origins['scheduler_arg'].source)} says --scheduler-arg {text}, a file that is not on "
                "this machine; type the flag with a path, or leave the record out."
            )


def is_fetched(name: str, value: object) -> bool:
    """Return whether the hub is asked for the value of a parameter of ``FETCHED``."""
    return parse_data(str(value)).is_fetched if name == "data" else not is_here(value)


def is_here(name: object) -> bool:
    """Return whether a path or hub id is a file or folder on this machine, so that the hub is not asked for it."""
    text = str(name)
    if "://" in text or text.startswith(("//", "\\\\")):  # the second and third are another machine's on Windows
        return False
    try:
        place = Path(text).expanduser()
        return os.path.isdir(place) or os.path.isfile(place)
    except (RuntimeError, ValueError):  # no such home
        return False


def capitalised(source: str) -> str:
    """Return the name of a source for the beginning of a sentence."""
    return source[0].upper() + source[1:]
