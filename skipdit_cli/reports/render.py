"""Rendering a report as one HTML file, with its styles, its script and its pictures inside."""

from __future__ import annotations

from pathlib import Path

import jinja2

from skipdit_cli.files import replacing
from skipdit_cli.reports import charts, palette
from skipdit_cli.reports.comparison import PIXELATED
from skipdit_cli.reports.description import Report

ASSETS = Path(__file__).parent / "assets"
BOUNDS = (0.9999, 0.9997, 0.999, 0.997, 0.99, 0.9)
"""The lowest cosine of each level of a heat map but the last, which has what is left."""


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
        bounds=BOUNDS,
        level_of=level_of,
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


def level_of(cosine: float) -> int:
    """Return the level of a cosine on the scale of heat maps: 0 for the most similar."""
    return sum(cosine < bound for bound in BOUNDS)
