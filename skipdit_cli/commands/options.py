"""Options that several commands share: one spelling and one help text for each."""

from __future__ import annotations

from typing import Annotated

import typer

from skipdit_cli import console
from skipdit_cli.errors import UsageError
from skipdit_cli.settings import CACHE, OUTPUT


def _apply_json(value: bool) -> bool:
    console.use_json(value)
    return value


def _note_debug(ctx: typer.Context, value: bool) -> bool:
    ctx.meta["debug"] = value
    return value


def _complete_preset(incomplete: str) -> list[str]:
    """Return the names of presets that begin like this, for the completion of a shell."""
    from skipdit_cli.presets import preset_names

    return [name for name in preset_names() if name.startswith(incomplete)]


Model = Annotated[
    str | None, typer.Option("-m", "--model", help="Pipeline folder or hub id.", metavar="PATH|ID", show_default=False)
]
ModelArgument = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="The model, in place of -m/--model.", show_default=False)
]
Preset = Annotated[
    str | None,
    typer.Option(
        "-p",
        "--preset",
        help="Preset of a model and flags, by name or YAML file; 'skipdit presets list' shows them.",
        metavar="NAME|PATH",
        is_eager=True,
        autocompletion=_complete_preset,
    ),
]
Plan = Annotated[
    str | None,
    typer.Option(
        "--plan",
        help="Plan of 'skipdit calibrate': sampler, steps and cache; over the preset, and in place of cache flags.",
        metavar="FILE",
        is_eager=True,
        rich_help_panel=CACHE,
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print the result as one JSON object on stdout; all else goes to stderr.",
        callback=_apply_json,
        is_eager=True,
        rich_help_panel=OUTPUT,
    ),
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug", help="Print the traceback of an error.", callback=_note_debug, is_eager=True, rich_help_panel=OUTPUT
    ),
]


def one_model(argument: str | None, option: str | None) -> str | None:
    """Return the model of a command that takes it as an argument or as ``-m``.

    Raises:
        UsageError: The model was given twice.
    """
    if argument is not None and option is not None:
        raise UsageError(f"Got a model twice, {argument} and --model {option}; give one of the two.")
    return argument or option
