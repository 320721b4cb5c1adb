"""bench --overhead: the time of the caches in Python, ours and FirstBlockCache's, in the report."""

import math

from skipdit_cli.bench.overhead.call_overhead import METHODS, measure_overhead, overhead_notes


def test_each_cache_has_its_row_and_its_sentence():
    rows = measure_overhead(rounds=1)
    figures = {"live_block", "left_out_block", "full_forward", "reused_forward"}
    assert [row["method"] for row in rows] == list(METHODS)
    assert all(math.isfinite(row[name]) for row in rows for name in figures)
    assert all("per left-out block" in note for note in overhead_notes(rows))


def test_the_bench_prints_it_and_puts_it_into_the_report(skipdit, tiny_pipeline):
    done = skipdit("bench", "-m", tiny_pipeline(), "--steps", 4, "--rounds", 1, "--overhead", "--json")
    assert done.code == 0, done.stderr
    assert [row["method"] for row in done.json["overhead"]] == list(METHODS)
    assert "Overhead of skip-cache in Python: " in done.stderr
