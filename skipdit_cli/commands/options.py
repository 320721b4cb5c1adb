"""Options that several commands share: one spelling, one help text, one check each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skipdit_cli import console
from skipdit_cli.errors import UsageError


def _apply_json(value: bool) -> bool:
    console.use_json(value)
    return value


def _note_debug(ctx: typer.Context, value: bool) -> bool:
    ctx.meta["debug"] = value
    return value


def _note_output(ctx: typer.Context, value: Path | None) -> Path | None:
    ctx.meta["output"] = value
    return value


Model = Annotated[str | None, typer.Option("-m", "--model", help="Pipeline folder or hub id.", show_default=False)]
ModelArgument = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="The model, as -m/--model.", show_default=False)
]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="Where to write.", show_default=False, callback=_note_output)
]
Preset = Annotated[
    str | None,
    typer.Option("-p", "--preset", help="Preset name or YAML path; flags win over it.", is_eager=True),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.", callback=_apply_json, is_eager=True)]
Debug = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error.", callback=_note_debug, is_eager=True)
]
Seed = Annotated[int, typer.Option("--seed", help="Image i uses seed + i.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Dtype = Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16 (fp32, bf16, fp16).")]
PushToHub = Annotated[
    str | None,
    typer.Option("--push-to-hub", metavar="OWNER/NAME", help="Upload the finished folder there.", show_default=False),
]
Private = Annotated[bool, typer.Option("--private", help="Make the repository of --push-to-hub a private one.")]
LocalFilesOnly = Annotated[bool, typer.Option("--local-files-only", help="Never ask the hub; use its cache.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit on the hub.")]


def one_model(argument: str | None, option: str | None) -> str | None:
    """The model of a command that takes it as an argument or as ``-m``.

    Raises:
        UsageError: It was given twice.
    """
    if argument is not None and option is not None:
        raise UsageError(f"Got a model twice, {argument} and --model {option}; give one of the two.")
    return argument or option


CACHE = "Cache"
CacheLayers = Annotated[
    int | None,
    typer.Option(
        help="N: blocks at each end that stay live on a reused step. Turns the cache on.", rich_help_panel=CACHE
    ),
]
CacheInterval = Annotated[
    int | None,
    typer.Option(help="K: every K-th step is full (the paper's n). 2 if not given.", rich_help_panel=CACHE),
]
CacheWindow = Annotated[
    str | None, typer.Option(help="START:END timesteps between which steps are reused.", rich_help_panel=CACHE)
]
FullSteps = Annotated[
    str | None,
    typer.Option(help="Instead of K: M full steps, late-dense; or a list such as 0,5,9.", rich_help_panel=CACHE),
]
Forecast = Annotated[str, typer.Option(help="reuse, linear or taylor2.", rich_help_panel=CACHE)]
CacheTarget = Annotated[
    str, typer.Option(help="Forecast the boundary, or its residual over the shallow output.", rich_help_panel=CACHE)
]


def cache_policy(layers, interval, window, full_steps, forecast="reuse", target="boundary"):
    """The ``CachePolicy`` that the cache flags ask for; None where ``--cache-layers`` is not given.

    Raises:
        UsageError: A value is malformed, or a cache flag stands without ``--cache-layers``.
    """
    from skipdit_cli.cache import CachePolicy

    if layers is None:
        given = {"--cache-interval": interval, "--cache-window": window, "--full-steps": full_steps}
        given |= {"--forecast": None if forecast == "reuse" else forecast}
        given |= {"--cache-target": None if target == "boundary" else target}
        stray = [flag for flag, value in given.items() if value is not None]
        if stray:
            raise UsageError(f"Got {stray[0]} without --cache-layers N, which turns the cache on.")
        return None
    return CachePolicy(layers, interval, parse_window(window), parse_full_steps(full_steps), forecast, target)


def parse_window(text: str | None) -> tuple[float, float] | None:
    """``"700:50"`` to (700, 50)."""
    if text is None:
        return None
    try:
        start, end = (float(part) for part in text.split(":"))
    except ValueError as cause:
        raise UsageError(f"Got --cache-window '{text}' but expected START:END, such as 700:50.") from cause
    if start != start or end != end:
        raise UsageError(f"Got --cache-window '{text}', in which NaN is no timestep; expected such as 700:50.")
    return start, end


def parse_full_steps(text: str | None) -> int | tuple[int, ...] | None:
    """``"13"`` to 13, ``"0,5,9"`` to (0, 5, 9)."""
    if text is None:
        return None
    numbers = parse_integers(text, "--full-steps")
    return numbers[0] if len(numbers) == 1 and "," not in text else tuple(numbers)


def parse_integers(text: str, flag: str) -> list[int]:
    """``"1,2,3"`` to [1, 2, 3].

    Raises:
        UsageError: Something in the list is not an integer.
    """
    try:
        return [int(part) for part in str(text).split(",") if part.strip() != ""]
    except ValueError as cause:
        raise UsageError(f"Got {flag} '{text}' but expected integers separated by commas, such as 1,2,3.") from cause
