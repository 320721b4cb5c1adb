"""What ``skipdit info --families`` shows: every transformer class of diffusers, and how its trunk is known."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

from skipdit_cli import console

HOW = {
    "declared": "known by name",
    "own skips": "known by name; has skips of its own, so it is cached as it is and not converted",
    "found": "found by watching one forward (example_inputs, or the first one)",
    "refused": "does not work",
    "not tried": "found or refused at its first forward; no tiny model of it was tried",
}


def show_families(markdown: bool) -> None:
    """Print the table, for a README with ``markdown``; ``--json`` has the same."""
    import diffusers

    from skipdit_cli.families.table import family_rows, recorded_with

    found, made = family_rows(), recorded_with()
    columns = ["class", "trunk", "blocks", "note"]
    rows = [[each.name, each.known, ", ".join(each.blocks) or "-", each.note or "-"] for each in found]
    if markdown:
        for row in [columns, ["---"] * len(columns), *([f"`{row[0]}`", *row[1:]] for row in rows)]:
            console.say(f"| {' | '.join(row)} |")
    else:
        console.table(columns, rows)
    counts = Counter(each.known for each in found)
    console.say("")
    for known, meaning in HOW.items():
        if counts[known]:
            console.say(f"{'* ' if markdown else ''}{known} ({counts[known]}): {meaning}.")
    if diffusers.__version__ != made:
        console.warn(f"tried out with diffusers {made}, but {diffusers.__version__} is installed.")
    console.emit({"diffusers": diffusers.__version__, "recorded_with": made, "families": list(map(asdict, found))})
