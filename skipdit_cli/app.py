"""The ``skipdit`` command. Command modules import torch inside their functions, so help stays fast."""

from __future__ import annotations

import errno
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from typer.core import TyperCommand, TyperGroup

from skipdit_cli import __version__, console
from skipdit_cli.commands.bench import bench
from skipdit_cli.commands.convert import convert
from skipdit_cli.commands.demo import demo
from skipdit_cli.commands.env import env
from skipdit_cli.commands.finetune import finetune
from skipdit_cli.commands.flags import check_ranges
from skipdit_cli.commands.info import info
from skipdit_cli.commands.presets import presets
from skipdit_cli.commands.sample import sample
from skipdit_cli.commands.train import train
from skipdit_cli.commands.values import flag_of, lay, naming_source, switches_of
from skipdit_cli.errors import SkipditError
from skipdit_cli.settings import OUTPUT, PANELS

# Typer's ClickException, from its own copy of click or, before 0.26, from click itself.
REFUSED = typer.BadParameter.__mro__[2]
INTERRUPTED = 130


@contextmanager
def sentences(ctx: typer.Context | None = None, debug: bool = False) -> Iterator[None]:
    """Ends whatever goes wrong inside as one sentence on stderr and ``typer.Exit`` with its code; under ``--json`` the
    sentence is the one object on stdout, too, unless the result is there already.

    Args:
        ctx: Of the running command; its ``meta`` may hold "debug" and "output" (commands/options.py).
        debug: Print the traceback first.
    """
    try:
        yield
    except typer.Exit as ended:
        if ended.exit_code:
            console.fail("ended early; stderr says why.", ended.exit_code)
        raise
    except (typer.Abort, BrokenPipeError):
        raise
    except KeyboardInterrupt as cause:
        console.error("interrupted.", INTERRUPTED)
        raise typer.Exit(INTERRUPTED) from cause
    except REFUSED as cause:
        if type(cause).__name__ == "NoArgsIsHelpError":
            raise
        console.error(_refusal(cause), cause.exit_code)
        raise typer.Exit(cause.exit_code) from cause
    except Exception as cause:
        meta = ctx.meta if ctx else {}
        if debug or meta.get("debug"):
            console.trace(cause)
        code = getattr(cause, "exit_code", 1)
        console.error(_sentence(cause, meta.get("output")), code)
        raise typer.Exit(code) from cause


def _refusal(cause) -> str:
    where = cause.ctx.command_path if getattr(cause, "ctx", None) else "skipdit"
    return f"{cause.format_message().rstrip('.')}. See '{where} --help'."


def _sentence(cause: Exception, output) -> str:
    if isinstance(cause, SkipditError):
        return str(cause)
    number = getattr(cause, "errno", None)
    if number == errno.ENOSPC or "No space left on device" in str(cause):
        at = getattr(cause, "filename", None) or output or "the output"
        return f"the disk is full at {at}; free some space or choose another --output."
    if isinstance(cause, OSError) and cause.filename is not None:
        return f"{cause.strerror}: {cause.filename}."
    # Of torch, which is not imported for this; the second is what it says of a CPU.
    full = type(cause).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(cause)
    if full or isinstance(cause, MemoryError):
        return (
            "the device ran out of memory; give a smaller --batch-size, --vae-tiling or --cpu-offload, in training a "
            "smaller --train-batch-size or --gradient-checkpointing."
        )
    lines = str(cause).strip().splitlines() or ["no message"]
    return f"{type(cause).__name__}: {lines[0][:300].rstrip('.')}; run again with --debug for the traceback."


class Command(TyperCommand):
    """Plain help in panels: Typer's own panels need Rich's Markdown, which alone takes 0.15 s to import."""

    def parse_args(self, ctx, args):
        try:
            if not ctx.resilient_parsing:
                given, *_ = self.make_parser(ctx).parse_args(list(args))
                typed = {name: value for name, value in given.items() if value is not None and value != ()}
                if "help" not in typed:
                    lay(ctx, self, typed)
            rest = super().parse_args(ctx, args)
            ctx.meta["output"] = ctx.params.get("output")
            with naming_source(ctx):
                check_ranges(self, ctx.params)
            return rest
        except REFUSED as cause:
            cause.ctx = cause.ctx or ctx  # the option parser leaves it out, and the sentence names the command
            raise

    def invoke(self, ctx):
        with naming_source(ctx):
            return super().invoke(ctx)

    def format_options(self, ctx, formatter):
        sections: dict[str, list] = {panel: [] for panel in ("Arguments", "Options", *PANELS)}
        for parameter in self.get_params(ctx):
            panel = "Arguments" if parameter.param_type_name == "argument" else parameter.rich_help_panel
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(panel or "Options", []).append(record)
        sections[OUTPUT] = sections.pop(OUTPUT)
        for panel, records in sections.items():
            if records:
                with formatter.section(panel):
                    formatter.write_dl(records)


class App(typer.Typer):
    def command(self, *arguments, cls=Command, **keywords):
        return super().command(*arguments, cls=cls, **keywords)


class Group(TyperGroup):
    """The root command: all errors become sentences, whoever calls the app."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        for command in self.commands.values():
            for nested in getattr(command, "commands", {}).values():
                for parameter in nested.params:
                    parameter.show_envvar = False
            for parameter in command.params:
                parameter.show_envvar = False  # said once, under 'skipdit --help'
            for switch in switches_of(command):  # what a preset turns on can be turned off
                if not switch.secondary_opts:
                    switch.secondary_opts, switch.show_default = [f"--no-{flag_of(switch)[2:]}"], False

    def make_context(self, info_name, args, parent=None, **extra):
        typed = shlex.join(["skipdit", *args])
        with console.own_json("--json" in args), sentences(debug="--debug" in args):
            ctx = super().make_context(info_name, args, parent, **extra)
        ctx.meta["typed"] = typed  # for those who record it; sys.argv is another one's where 'demo' calls commands
        return ctx

    def invoke(self, ctx):
        with console.own_json("--json" in ctx.args), sentences(ctx, debug="--debug" in ctx.args):
            return super().invoke(ctx)


app = App(
    cls=Group,
    name="skipdit",
    help="Turn a DiT checkpoint into Skip-DiT, train it, sample it with a cache, and measure the speedup.",
    epilog="A flag can also come from the environment (SKIPDIT_SAMPLE_SEED=1) or from a --preset. "
    "Exit codes: 0 done, 1 the run failed, 2 bad input, 3 a stated check missed, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(presets, name="presets")
app.command()(demo)
app.command()(convert)
app.command()(finetune)
app.command()(train)
app.command()(sample)
app.command()(bench)
app.command()(info)
app.command()(env)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"skipdit {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.", show_envvar=False)
    ] = False,
) -> None:
    pass


def main() -> None:
    app()
