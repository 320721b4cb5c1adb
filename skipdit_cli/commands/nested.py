"""Run a command from within another one, in the same process."""

from __future__ import annotations

from collections.abc import Sequence

import typer


def run_command(ctx: typer.Context, words: Sequence[str]) -> int:
    """Run a command line, and return its exit code; what goes wrong is printed as ever.

    Args:
        ctx: The context of the running command.
        words: The command line after "skipdit".
    """
    return ctx.find_root().command.main(list(words), prog_name="skipdit", standalone_mode=False) or 0
