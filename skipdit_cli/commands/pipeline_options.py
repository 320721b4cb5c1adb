"""Options that only pipelines of diffusers have: an image to start from, the rest of their call, a LoRA, memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PANEL = "Pipeline"

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
