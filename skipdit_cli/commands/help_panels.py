"""``--help`` in panels: flags grouped under "Model", "What to sample" and so on, in plain text."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from skipdit_cli.settings import OUTPUT, PANELS

FIRST = ("Arguments", "Options", *PANELS)
"""Panels that come first, in their order. Those of one command follow, and ``OUTPUT`` comes last."""


class PanelCommand(TyperCommand):
    """A command whose help is grouped in panels. Typer's own panels need Rich's Markdown, 0.15 s to import."""

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
