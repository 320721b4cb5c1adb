"""The results of ``skipdit bench`` in the terminal, in a card and as JSON."""

from __future__ import annotations

from pathlib import Path

from skipdit_cli import console


def add_overhead(report: dict) -> None:
    """Measure the overhead of the caches in Python, and put its rows and its sentences into the report."""
    from skipdit_cli.bench.overhead.call_overhead import measure_overhead, overhead_notes

    report["overhead"] = measure_overhead()
    report["notes"] += overhead_notes(report["overhead"])


def print_report(report: dict, output: Path | None, card: Path | None) -> None:
    """Print the table and what it says, put both into the card, and emit the JSON object of ``--json``."""
    from skipdit_cli.bench.results.tables import results, sentences, table
    from skipdit_cli.cards.card import put_bench

    columns, lines = table(report["rows"], width=console.screen().width)
    console.table(columns, lines)
    left_out = [name for name in table(report["rows"])[0] if name not in columns]
    if left_out:
        console.say(f"Too wide for this terminal, but in the report of -o and in --json: {', '.join(left_out)}.")
    for line in sentences(report):
        console.say(line)
    if output is not None:
        *others, last = ["bench.json", "bench.md", "bench.png", *(["pareto.png"] if report["peers"] else [])]
        console.say(f"Wrote {output}/{', '.join(others)} and {last}.")
    if card is not None:
        put_bench(card, results(report))
        console.say(f"Wrote the table into {card}.")
    console.emit(report)
