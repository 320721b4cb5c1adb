"""The flags of a command, made from its settings class: one flag a field."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, fields, is_dataclass
from typing import Annotated, get_type_hints

import typer

from skipdit_cli.commands import options

SHARED = {
    "output": options.Output,
    "overwrite": options.Overwrite,
    "push_to_hub": options.PushToHub,
    "private": options.Private,
}
"""Flags that several commands spell alike, by field name."""


@dataclass(frozen=True)
class _Flag:
    field: Field
    kind: type
    """Its annotated type."""

    @property
    def parameter(self) -> inspect.Parameter:
        annotation = SHARED.get(self.field.name, Annotated[self.kind, self._option()])
        default = self.field.default
        return inspect.Parameter(
            self.field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
        )

    def _option(self):
        default, metadata = self.field.default, self.field.metadata
        names = metadata["names"]
        if default is False and not names:
            names = (f"--{self.field.name.replace('_', '-')}",)
        return typer.Option(
            *names,
            help=metadata["help"],
            metavar=metadata["metavar"],
            min=metadata["minimum"],
            rich_help_panel=metadata["panel"],
            show_default=default is not None and default is not False,  # 0 is shown
        )


def _flags_of(settings_class: type) -> Iterator[_Flag]:
    """The flags of a settings class; a field that is settings itself gives its own in its place."""
    types = get_type_hints(settings_class)
    for field in fields(settings_class):
        if is_dataclass(types[field.name]):
            yield from _flags_of(types[field.name])
        else:
            yield _Flag(field, types[field.name])


def _settings_from(settings_class: type, values: dict[str, object]):
    """An instance of a settings class, its values taken out of ``values``."""
    types = get_type_hints(settings_class)
    return settings_class(
        **{
            field.name: _settings_from(kind, values) if is_dataclass(kind) else values.pop(field.name)
            for field in fields(settings_class)
            for kind in [types[field.name]]
        }
    )


def with_settings(settings_class: type) -> Callable[[Callable], Callable]:
    """In the place of its argument ``settings``, give a command one flag for each field of a settings class.

    A field whose type is a settings class itself gives the flags of that class; no name may occur twice.
    """
    flags = [flag.parameter for flag in _flags_of(settings_class)]

    def decorate(command: Callable) -> Callable:
        parameters = list(inspect.signature(command, eval_str=True).parameters.values())
        at = next(i for i, parameter in enumerate(parameters) if parameter.name == "settings")
        before, after = (
            [p.replace(kind=p.KEYWORD_ONLY) for p in part] for part in (parameters[:at], parameters[at + 1 :])
        )

        @functools.wraps(command)
        def run(**values):
            return command(settings=_settings_from(settings_class, values), **values)

        run.__signature__ = inspect.Signature([*before, *flags, *after])
        run.__annotations__ = {p.name: p.annotation for p in run.__signature__.parameters.values()}
        return run

    return decorate
