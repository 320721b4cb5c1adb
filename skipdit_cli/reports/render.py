"""Rendering a report as one HTML file, with its styles, its script and its pictures inside."""

from __future__ import annotations

from pathlib import Path

import jinja2

from skipdit_cli.files import replacing
from skipdit_cli.reports import charts, palette
from skipdit_cli.reports.comparison import PIXELATED
from skipdit_cli.reports.contours import contour_path
from skipdit_cli.reports.description import Report

ASSETS = Path(__file__).parent / "assets"
NUM_LEVELS = sum(name.startswith("level-") for name in palette.COLOURS)


def render(report: Report) -> str:
    """Return the HTML of a report."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html.j2").render(
        report=report,
        colours=palette.COLOURS,
        num_series=palette.NUM_SERIES,
        num_levels=NUM_LEVELS,
        contours=contour_path,
        draw=charts.draw,
        sizes={"wide": charts.WIDE, "narrow": charts.NARROW},
        mark_size=charts.MARK_SIZE,
        pixelated=PIXELATED,
        style=(ASSETS / "report.css").read_text(encoding="utf-8"),
        script=(ASSETS / "report.js").read_text(encoding="utf-8"),
    )


def save(report: Report, path: Path) -> None:
    """Write the HTML file of a report."""
    text = render(report)
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
