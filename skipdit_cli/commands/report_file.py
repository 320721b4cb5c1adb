"""The HTML report of a command: check its file before the run, write it after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from skipdit_cli import console, files
from skipdit_cli.errors import UsageError

if TYPE_CHECKING:
    from skipdit_cli.reports import Report

SUFFIXES = (".html", ".htm")


def check_html(path: Path | None, overwrite: bool, reads: Mapping[str, object]) -> None:
    """Check that the file of ``--html`` may be written, without writing it.

    Args:
        path: The file; None for no report.
        overwrite: Whether an existing file may be replaced.
        reads: What the command reads, as for ``files.check_apart``.

    Raises:
        UsageError: It has another suffix, it exists, or an input lies there.
    """
    if path is None:
        return
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"Got --html {path} but expected a .html file, such as --html report.html.")
    files.check_apart(path, reads)
    files.check_file(path, overwrite)


def save_html(report: Report, path: Path) -> None:
    """Write the file of ``--html``, and say so."""
    from skipdit_cli.reports import save

    path.parent.mkdir(parents=True, exist_ok=True)
    save(report, path)
    files.note(path.parent, path.name)  # where it lies in a folder of ours
    console.say(f"Wrote {path}, which opens in a browser.")
