"""What samples are of: the classes, the texts, or nothing that flags ask of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Prompt = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="Of a model of texts; several by --prompt A --prompt B.", show_default=False),
]
PromptsFile = Annotated[Path | None, typer.Option(help="Texts, one a line, in place of --prompt.", show_default=False)]
NegativePrompt = Annotated[
    str | None, typer.Option(help="What guidance by a text leads away from.", show_default=False)
]
