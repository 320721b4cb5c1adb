"""Options that only pipelines of diffusers have: an image to start from, the rest of their call, a LoRA, memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skipdit_cli.errors import UsageError
from skipdit_cli.formats import parse_yaml

PANEL = "Pipelines of diffusers"

NumFrames = Annotated[int | None, typer.Option(help="Of a video; the model's own if not given.", show_default=False)]
Height = Annotated[int | None, typer.Option(help="In pixels.", show_default=False, rich_help_panel=PANEL)]
Width = Annotated[int | None, typer.Option(help="In pixels.", show_default=False, rich_help_panel=PANEL)]
Image = Annotated[
    Path | None,
    typer.Option(
        help="Picture to start from: image to image, or image to video.", show_default=False, rich_help_panel=PANEL
    ),
]
Strength = Annotated[
    float | None,
    typer.Option(
        help="How far from --image: over 0 and up to 1 (all noise).", show_default=False, rich_help_panel=PANEL
    ),
]
PipelineArg = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="More of the pipeline's call, in YAML; several by giving it again.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
Lora = Annotated[
    str | None,
    typer.Option(
        metavar="PATH", help="LoRA to load: file, folder or hub id.", show_default=False, rich_help_panel=PANEL
    ),
]
CpuOffload = Annotated[
    str | None,
    typer.Option(
        metavar="model|group",
        help="Keep weights off the accelerator but for the part, or the block, that runs.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
VaeTiling = Annotated[
    bool, typer.Option("--vae-tiling", help="Decode in tiles, in less memory.", rich_help_panel=PANEL)
]


def check_positive(**given: int | None) -> None:
    """
    Raises:
        UsageError: One that was given is less than 1.
    """
    for name, value in given.items():
        if value is not None and value < 1:
            raise UsageError(f"Got --{name.replace('_', '-')} {value} but expected 1 or more.")


def check_strength(strength: float | None, image: Path | None, steps: int) -> None:
    """
    Args:
        steps: Of a whole run, of which the strength leaves its part.
    Raises:
        UsageError: Outside its range, no image that it could be of, or no step left.
    """
    if strength is None:
        return
    if not 0 < strength <= 1:
        raise UsageError(f"Got --strength {strength:g} but expected more than 0 and at most 1.")
    if image is None:
        raise UsageError(f"Got --strength {strength:g} without --image FILE, which it is of.")
    if int(steps * strength) < 1:
        raise UsageError(f"Got --strength {strength:g}, which leaves no step of {steps}; give more --steps.")


def read_arguments(given: list[str] | None) -> dict[str, object]:
    """``["eta=0.5", "sigmas=[1, 0.5]"]`` to names and values.

    Raises:
        UsageError: One is no KEY=VALUE, no YAML, given twice, or has a flag of its own.
    """
    from skipdit_cli.commands import limits
    from skipdit_cli.sampling.pipelines.call_arguments import check_key

    found = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise UsageError(f"Got --pipeline-arg '{text}' but expected KEY=VALUE, such as eta=0.5.")
        check_key(name)
        if name in found:
            raise UsageError(f"Got --pipeline-arg {name} twice; give it once.")
        if len(value) > limits.MOST_LETTERS:
            raise UsageError(f"Got --pipeline-arg {name} of {len(value)} letters, of at most {limits.MOST_LETTERS}.")
        found[name] = parse_yaml(value, f"Got --pipeline-arg '{text[:200]}', whose value")
        limits.check_argument(name, found[name])
    return found


def read_image(file: Path | None):
    """The picture in RGB, upright; None for none.

    Raises:
        UsageError: It is missing or no picture.
    """
    from skipdit_cli.media import read_picture

    return None if file is None else read_picture(file).convert("RGB")
