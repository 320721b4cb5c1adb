"""What samples are of: the classes, the texts, or nothing that flags ask of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skipdit_cli.errors import UsageError

Prompt = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="Of a model of texts; several by --prompt A --prompt B.", show_default=False),
]
PromptsFile = Annotated[Path | None, typer.Option(help="Texts, one a line, in place of --prompt.", show_default=False)]
NegativePrompt = Annotated[
    str | None, typer.Option(help="What guidance by a text leads away from.", show_default=False)
]


def read_prompts(prompt: list[str] | None, prompts_file: Path | None) -> list[str] | None:
    """The texts that were asked for; None where none were.

    Raises:
        UsageError: Both were given, a text is empty, or the file cannot be read.
    """
    if prompt and prompts_file is not None:
        raise UsageError("Got --prompt and --prompts-file; give one of the two.")
    if prompt:
        if not all(text.strip() for text in prompt):
            raise UsageError("Got an empty --prompt but expected a text.")
        return list(prompt)
    return None if prompts_file is None else _lines(prompts_file)


def _lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as cause:
        raise UsageError(f"Got --prompts-file {file}, which cannot be read: {cause.strerror}.") from cause
    except UnicodeDecodeError as cause:
        raise UsageError(f"Got --prompts-file {file}, which is no text in UTF-8.") from cause
    if not any(lines):
        raise UsageError(f"Got --prompts-file {file}, which holds no text; expected one a line.")
    return [line for line in lines if line]


def check_given(pipe, class_labels: object, prompts: list[str] | None) -> None:
    """Whether the flags say what is wanted: classes or texts, and of a model of texts one of the two.

    Raises:
        UsageError: Both, or no text for a model of texts.
    """
    from skipdit_cli.sampling.pipelines.call_arguments import is_text_conditional

    if prompts is not None and class_labels is not None:
        raise UsageError("Got --prompt and --class-labels; give the one that the model is of.")
    if prompts is None and class_labels is None and is_text_conditional(pipe):
        raise UsageError("Got no --prompt, but this is a model of texts; give --prompt TEXT or --prompts-file FILE.")
