"""A report as one HTML page beside its images; it opens from disk and loads nothing from the network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top } figcaption { font-size: .9rem }
img { max-width: 100% } img.plot { background: #fff }
div.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .85rem }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap }
th:first-child, td:first-child { text-align: left } code { background: #8882; padding: .1rem .3rem }
"""


def heading(text: str) -> str:
    """Return a heading of the second level."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def command(text: str) -> str:
    """Return a command line in a paragraph of its own."""
    return f"<p><code>{escape(text)}</code></p>"


def picture(file: str, caption: str, width: int | None = None) -> str:
    """Return a figure with an image file that lies beside the page.

    Args:
        file: Name of the file.
        caption: Text below the image, and for readers who do not see it.
        width: Width in pixels; None for a plot, which is shown on white.
    """
    attributes = f'width="{width}"' if width else 'class="plot"'
    text = escape(caption)
    return f'<figure><img src="{escape(file)}" alt="{text}" {attributes}><figcaption>{text}</figcaption></figure>'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table with a line of column names."""

    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join([line("th", columns), *(line("td", row) for row in rows)])
    return f'<div class="wide"><table>{body}</table></div>'


def save_page(path: Path, title: str, parts: Sequence[str]) -> None:
    """Write a page.

    Args:
        path: The file.
        title: Title of the page.
        parts: HTML of the functions above, in order.
    """
    text = "\n".join(
        [
            '<!doctype html><html lang="en"><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}</style>",
            f"<h1>{escape(title)}</h1>",
            *parts,
            "</html>\n",
        ]
    )
    path.write_text(text, encoding="utf-8")
