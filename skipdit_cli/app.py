"""The ``skipdit`` command and how each run of it ends.

Command modules import torch inside their functions, so that ``--help`` stays fast.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from typer.core import TyperGroup

from skipdit_cli import console, files, processes
from skipdit_cli.commands.bench import bench
from skipdit_cli.commands.calibrate import calibrate
from skipdit_cli.commands.convert import convert
from skipdit_cli.commands.demo import demo
from skipdit_cli.commands.env import env
from skipdit_cli.commands.evaluate import evaluate
from skipdit_cli.commands.exclusive import check_once
from skipdit_cli.commands.finetune import finetune
from skipdit_cli.commands.flags import check_ranges
from skipdit_cli.commands.guide import guide
from skipdit_cli.commands.help_panels import PanelCommand
from skipdit_cli.commands.info import info
from skipdit_cli.commands.play import play
from skipdit_cli.commands.prepare import prepare
from skipdit_cli.commands.presets import presets
from skipdit_cli.commands.sample import sample
from skipdit_cli.commands.study import study
from skipdit_cli.commands.synonyms import advice_for, flag_meant, with_typed_names
from skipdit_cli.commands.train import train
from skipdit_cli.commands.values import flag_of, naming_source, set_defaults, switches_of
from skipdit_cli.errors import INTERRUPTED, SkipditError, UsageError, disk_failure, is_out_of_memory
from skipdit_cli.version import __version__

TOGETHER = ("finetune", "train", "sample", "calibrate", "evaluate", "prepare")
"""The commands that several processes of a launcher run together; the others refuse them."""
SPINS = "10000"
"""How often an idle thread of torch looks for work before it sleeps (Linux). The usual 300,000 of libgomp keep a core
busy that, beside other programs, a working thread needs; with 1,000 a small model is twice as slow on idle cores."""
ClickException = typer.BadParameter.__mro__[2]
"""Click's base exception, from Typer's own copy of Click or, before Typer 0.26, from Click itself."""


@contextmanager
def sentences(ctx: typer.Context | None = None, debug: bool = False) -> Iterator[None]:
    """Turn every exception into one sentence on stderr and ``typer.Exit`` with its exit code.

    Under ``--json`` the sentence is also the one object on stdout, unless the result has been printed there already.

    Args:
        ctx: The context of the running command; its ``meta`` may hold "debug" and "output".
        debug: Whether to print the traceback first.

    Raises:
        typer.Exit: With the exit code, after any exception but ``Abort`` and ``BrokenPipeError``.
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
        if processes.end(cause, "interrupted."):
            console.error("interrupted.", INTERRUPTED)
        raise typer.Exit(INTERRUPTED) from cause
    except ClickException as cause:
        if type(cause).__name__ == "NoArgsIsHelpError":
            raise
        if processes.end(cause, _refusal(cause)):
            console.error(_refusal(cause), cause.exit_code)
        raise typer.Exit(cause.exit_code) from cause
    except Exception as cause:
        meta = ctx.meta if ctx else {}
        if debug or meta.get("debug"):
            console.trace(cause)
        code = getattr(cause, "exit_code", 1)
        sentence = _sentence(cause, meta.get("output"))
        if processes.end(cause, sentence):
            console.error(sentence, code)
        raise typer.Exit(code) from cause


def _refusal(cause) -> str:
    """Return the sentence for an error of Click: a flag or value that it cannot parse."""
    ctx = getattr(cause, "ctx", None)
    where = ctx.command_path if ctx else "skipdit"
    typed = getattr(cause, "option_name", None)  # of an option that does not exist
    if ctx and typed and type(cause).__name__ == "NoSuchOption":
        meant = flag_meant(typed, (name for parameter in ctx.command.params for name in parameter.opts))
        advice = advice_for(typed) if meant is None else None
        nearest = getattr(cause, "possibilities", None) or ()
        if advice is None and meant is None and len(nearest) == 1:
            meant = nearest[0]
        if advice is not None:
            return f"No such option: {typed}. {advice}"
        if meant is not None:
            return f"No such option: {typed}. Did you mean '{meant}'? See '{where} --help'."
    message = cause.format_message().rstrip(".")
    return f"{message}{'' if message.endswith('?') else '.'} See '{where} --help'."


def _sentence(cause: Exception, output: object) -> str:
    """Return the sentence for an exception; ``output`` is where the command writes, for a full disk."""
    if isinstance(cause, SkipditError):
        return str(cause)
    if (failure := processes.lost_peer(cause) or disk_failure(cause, output)) is not None:
        return failure
    if isinstance(cause, OSError) and cause.filename is not None:
        return f"{cause.strerror}: {cause.filename}."
    if is_out_of_memory(cause):
        return (
            "the device ran out of memory; give a smaller --batch-size, --vae-tiling or --cpu-offload, in training a "
            f"smaller --train-batch-size or --gradient-checkpointing{_measured_memory()}."
        )
    lines = str(cause).strip().splitlines() or ["no message"]
    return f"{type(cause).__name__}: {lines[0][:300].rstrip('.')}; run again with --debug for the traceback."


def _measured_memory() -> str:
    """Return the memory of the default device in brackets, where torch has been imported; else an empty text."""
    if "torch" not in sys.modules:
        return ""
    import torch

    from skipdit_cli.sampling.device import memory_figures

    return f" ({memory_figures(torch.device('cuda' if torch.cuda.is_available() else 'cpu'))})"


class Command(PanelCommand):
    """A command whose flags also come from a record, the environment and a preset."""

    def parse_args(self, ctx, args):
        """Parse the command line over the record, the environment and the preset, and check the ranges of numbers."""
        ctx.meta["arguments"] = list(args)
        with self._naming_typed_flags(ctx):
            return self._parse_args(ctx, args)

    def _parse_args(self, ctx, args):
        try:
            if not ctx.resilient_parsing:
                check_once(self, args)
                parsed, *_ = self.make_parser(ctx).parse_args(list(args))
                typed = {name: value for name, value in parsed.items() if value is not None and value != ()}
                if "help" not in typed:
                    set_defaults(ctx, self, typed)
            rest = super().parse_args(ctx, args)
            ctx.meta["output"] = ctx.params.get("output")
            with naming_source(ctx):
                check_ranges(self, ctx.params)
            return rest
        except ClickException as cause:
            cause.ctx = cause.ctx or ctx  # Click's option parser sets none, and the sentence names the command
            raise

    def invoke(self, ctx):
        """Run the command; an error about a value that was not typed says where the value comes from.

        Raises:
            UsageError: A launcher has started several processes of a command that runs in one.
        """
        if self.name not in TOGETHER:
            processes.check_alone(ctx.command_path.removeprefix("skipdit "))
        with self._naming_typed_flags(ctx), naming_source(ctx), files.command_locks():
            return super().invoke(ctx)

    @contextmanager
    def _naming_typed_flags(self, ctx) -> Iterator[None]:
        """Name each flag in an error as the user typed it."""
        try:
            yield
        except UsageError as cause:
            names = [[opt for opt in p.opts if opt.startswith("--")] for p in self.params]
            spellings = [spelling for spelling in names if len(spelling) > 1]
            message = with_typed_names(str(cause), spellings, ctx.meta.get("arguments", ()))
            if (model := ctx.params.get("model_argument")) is not None:
                message = message.replace(f"--model {model}", f"MODEL {model}")
            if message == str(cause):
                raise
            raise UsageError(message) from cause


class App(typer.Typer):
    """A Typer app whose commands are of class ``Command``."""

    def command(self, *arguments, cls=Command, **keywords):
        """Return the decorator that adds a command."""
        return super().command(*arguments, cls=cls, **keywords)


class Group(TyperGroup):
    """The root command. Every error becomes a sentence, whether a shell or a test calls the app."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        for command in self.commands.values():
            for nested in getattr(command, "commands", {}).values():
                for parameter in nested.params:
                    parameter.show_envvar = False
            for parameter in command.params:
                parameter.show_envvar = False  # 'skipdit --help' explains environment variables once
            for switch in switches_of(command):  # --no-... turns off what a preset turns on
                if not switch.secondary_opts:
                    switch.secondary_opts, switch.show_default = [f"--no-{flag_of(switch)[2:]}"], False

    def make_context(self, info_name, args, parent=None, **extra):
        """Parse the command line; ``ctx.meta["typed"]`` keeps it for the commands that record it."""
        typed = shlex.join(["skipdit", *args])
        with console.own_json("--json" in args), sentences(debug="--debug" in args):
            ctx = super().make_context(info_name, args, parent, **extra)
        ctx.meta["typed"] = typed  # not sys.argv, which is that of 'demo' where 'demo' calls this command
        return ctx

    def invoke(self, ctx):
        """Run the chosen command."""
        with console.own_json("--json" in ctx.args), sentences(ctx, debug="--debug" in ctx.args):
            return super().invoke(ctx)


app = App(
    cls=Group,
    name="skipdit",
    help="Add skip branches to a Diffusion Transformer, train it, sample it with a cache, and measure the speedup.",
    epilog="'skipdit guide' explains every task. "
    "A flag can also come from the environment (SKIPDIT_SAMPLE_SEED=1) or from a --preset. "
    "Exit codes: 0 done, 1 the run failed, 2 bad input, 3 a stated check missed, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(presets, name="presets")
app.command()(demo)
app.command()(convert)
app.command()(prepare)
app.command()(finetune)
app.command()(train)
app.command()(sample)
app.command()(play)
app.command()(calibrate)
app.command()(bench)
app.command()(evaluate)
app.command()(study)
app.command()(info)
app.command()(guide)
app.command()(env)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"skipdit {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("-V", "--version", callback=_version, is_eager=True, help="Show the version.", show_envvar=False),
    ] = False,
) -> None:
    """Hold the flags of ``skipdit`` itself."""


def main() -> None:
    """Run the command line."""
    console.be_silent(processes.rank() > 0)
    if processes.count() > 1:  # a process that lost another prints pages of C++ frames before our sentence
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        processes.claim_stdout()
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read as torch is imported, which is later
    try:
        app()
    finally:
        processes.leave()
