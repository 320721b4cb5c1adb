"""``--help`` in panels: flags grouped under "Model", "What to sample" and so on, in plain text."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from typer.core import TyperCommand

from skipdit_cli.settings import OUTPUT, PANELS

FIRST = ("Arguments", "Options", *PANELS)
"""Panels that come first, in their order. Those of one command follow, and ``OUTPUT`` comes last."""
NO_BREAK = "\N{NO-BREAK SPACE}"
UNBROKEN = "\N{NON-BREAKING HYPHEN}"
"""Stands for a hyphen while lines are wrapped, so that no flag is broken at one."""


class PanelCommand(TyperCommand):
    """A command whose help is grouped in panels. Typer's own panels need Rich's Markdown, 0.15 s to import."""

    def get_help(self, ctx):
        """Return the help: flags are not broken at hyphens, and an example of several lines can be copied."""
        formatter = _formatter_class(ctx.formatter_class)(ctx.terminal_width, max_width=ctx.max_content_width)
        self.format_help(ctx, formatter)
        return formatter.getvalue().rstrip("\n")

    def get_short_help_str(self, limit=45):
        """Return the whole first sentence of the help; Click ends a long one in dots."""
        return super().get_short_help_str(10 * limit)

    def format_options(self, ctx, formatter):
        """Write one section per panel."""
        sections: dict[str, list] = {panel: [] for panel in FIRST}
        parameters: list[Any] = self.get_params(ctx)
        for parameter in parameters:
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            if parameter.param_type_name == "argument":
                sections["Arguments"].append((record[0].split(" <")[0], record[1]))  # without its type
            else:
                sections.setdefault(parameter.rich_help_panel or "Options", []).append(record)
        sections[OUTPUT] = sections.pop(OUTPUT, [])
        for panel, records in sections.items():
            if records:
                with formatter.section(panel):
                    formatter.write_dl(records)


def _formatter_class(base: type) -> Any:
    """Return Click's class of formatters, from wherever this Typer has it, with lines wrapped for commands."""

    class Formatter(base):
        def __init__(self, width, max_width):
            super().__init__(width=width, max_width=max_width)

        def write_text(self, text):
            paragraphs = re.split(r"\n{2,}", text)
            text = "\n\n".join(self._example(each) if each.startswith("skipdit ") else each for each in paragraphs)
            super().write_text(text.replace("-", UNBROKEN))

        def _example(self, command):
            """Return a command on lines that a shell joins; Click wraps no paragraph that begins so."""
            together = re.sub(r" (-[\w-]+) (?!-)", rf" \1{NO_BREAK}", command)  # a flag and its value
            width = self.width - self.current_indent - len(" \\")
            lines = textwrap.wrap(together, width, subsequent_indent="    ", break_on_hyphens=False)
            return "\b\n" + " \\\n".join(lines).replace(NO_BREAK, " ")

        def write_dl(self, rows, *arguments):
            super().write_dl([tuple(cell.replace("-", UNBROKEN) for cell in row) for row in rows], *arguments)

        def getvalue(self):
            return super().getvalue().replace(UNBROKEN, "-")

    return Formatter
