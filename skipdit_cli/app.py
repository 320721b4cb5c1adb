"""The ``skipdit`` command. Command modules import torch inside their functions, so help stays fast."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from typer.core import TyperGroup

from skipdit_cli import __version__, console
from skipdit_cli.errors import SkipditError


class Group(TyperGroup):
    """Turns our errors into one sentence on stderr and an exit code, whoever calls the app."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except SkipditError as cause:
            if "--debug" in sys.argv:
                raise
            console.error(str(cause))
            raise typer.Exit(cause.exit_code) from cause
        finally:
            console.use_json(False)


app = typer.Typer(
    cls=Group,
    name="skipdit",
    help="Turn a DiT checkpoint into Skip-DiT, train it, sample it with a cache, and measure the speedup.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"auto_envvar_prefix": "SKIPDIT", "help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"skipdit {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass


def main() -> None:
    app()
