"""The flags of a command, made from its settings class: one flag per field."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import Field, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

from skipdit_cli.commands import options
from skipdit_cli.errors import UsageError
from skipdit_cli.settings import LARGEST_SEED, flag_name, setting_fields

SHORT = {"output": "-o"}
"""One-letter forms, by field name."""


def with_settings(settings_class: type[Any]) -> Callable[[Callable], Callable]:
    """Give a command one flag for each field of a settings class in place of its argument ``settings``.

    A field whose type is itself a settings class gives the flags of that class. No two fields may share a name. A
    command that takes ``-m MODEL`` takes it as an argument as well. ``HELP`` of the class replaces help texts by the
    names of fields; None hides a flag, which the command refuses.
    """
    texts = getattr(settings_class, "HELP", {})
    flags = [_parameter(field, kind, texts) for field, kind in setting_fields(settings_class)]

    def decorate(command: Callable) -> Callable:
        parameters = list(inspect.signature(command, eval_str=True).parameters.values())
        takes_argument = any(parameter.name == "model" for parameter in parameters)
        if takes_argument:
            argument = inspect.Parameter("model_argument", inspect.Parameter.KEYWORD_ONLY)
            parameters.insert(0, argument.replace(default=None, annotation=options.ModelArgument))
        at = next(i for i, parameter in enumerate(parameters) if parameter.name == "settings")
        before, after = (
            [p.replace(kind=p.KEYWORD_ONLY) for p in part] for part in (parameters[:at], parameters[at + 1 :])
        )

        @functools.wraps(command)
        def run_with_flags(**values):
            if takes_argument:
                values["model"] = options.one_model(values.pop("model_argument", None), values.get("model"))
            return command(settings=settings_from(settings_class, values), **values)

        run: Any = run_with_flags
        run.__signature__ = inspect.Signature([*before, *flags, *after])
        run.__annotations__ = {p.name: p.annotation for p in run.__signature__.parameters.values()}
        run.ranges = {
            field.name: (field.metadata["minimum"], field.metadata["maximum"])
            for field, _ in setting_fields(settings_class)
        }
        return run

    return decorate


def _parameter(field: Field, kind: type, texts: Mapping[str, str | None]) -> inspect.Parameter:
    """Make the parameter of a command that a field stands for, which Typer turns into a flag."""
    default, metadata = field.default, field.metadata
    spelled = flag_name(field.name)
    names = metadata["names"]
    if not names and field.name in SHORT:
        names = (SHORT[field.name], spelled)
    elif not names and default is False:
        names = (spelled,)  # without a name Typer adds a --no- form, which app.py does where a preset may set the flag
    option = typer.Option(
        *names,
        help=texts.get(field.name) or metadata["help"],
        hidden=texts.get(field.name, "") is None,
        metavar=metadata["metavar"],
        rich_help_panel=metadata["panel"],
        show_default=default is not None and default is not False,  # 0 is shown
    )
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def settings_from(settings_class: Any, values: dict[str, object]):
    """Build an instance of a settings class from ``values``, removing what it takes."""
    types = get_type_hints(settings_class)
    return settings_class(
        **{
            field.name: settings_from(kind, values) if is_dataclass(kind) else values.pop(field.name)
            for field in fields(settings_class)
            for kind in [types[field.name]]
        }
    )


def check_ranges(command, values: Mapping[str, object]) -> None:
    """Refuse numbers that no run can use.

    Args:
        command: The Click command; if it was made by ``with_settings``, its fields say the ranges.
        values: Its parameters, by name.

    Raises:
        UsageError: A number is too small, too large, NaN or infinite.
    """
    ranges = getattr(command.callback, "ranges", {})
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        given = f"Got {flag_name(name)} {short_number(value)} but expected"
        least, most = ranges.get(name, (None, None))
        if not math.isfinite(value):
            raise UsageError(f"{given} a number.")
        if least is not None and value < least:
            raise UsageError(f"{given} {least} or more.")
        if most is None and isinstance(value, int):
            most = LARGEST_SEED  # a whole number whose field says none
        if most is not None and value > most:
            raise UsageError(f"{given} at most {most}.")


def short_number(number: float) -> str:
    """Write a number; Python refuses to write integers of more than 4,300 digits."""
    return str(number) if isinstance(number, float) or number.bit_length() < 200 else "of over 60 digits"
