"""``--cache-threshold`` and ``--target-speedup`` of ``skipdit sample`` and ``bench``."""

import pytest

from skipdit_cli.media import read_metadata

RUN = ("--preset", "digits", "--class-labels", "1,2", "--scheduler", "ddim", "--steps", 20)
CACHED = (*RUN, "--cache-layers", "1:0")


def settings_of(path):
    return read_metadata(path)["settings"]


def test_a_target_speedup_becomes_a_threshold_that_a_replay_takes(skipdit, tmp_path):
    first, again = tmp_path / "a.png", tmp_path / "b.png"
    made = skipdit("sample", *CACHED, "--target-speedup", 2, "-o", first, "--json")
    assert made.code == 0, made.stderr
    threshold = settings_of(first)["cache_threshold"]
    assert f"--target-speedup 2 takes --cache-threshold {threshold:g}" in made.stderr
    assert "target_speedup" not in settings_of(first) and threshold == float(f"{threshold:.4g}")
    counts = made.json["cache"]
    assert counts["blocks_total"] / counts["blocks_run"] == pytest.approx(2, abs=0.3) and counts["triggered_steps"] > 0
    replayed = skipdit("sample", "--from", first, "-o", again)
    assert replayed.code == 0 and again.read_bytes() == first.read_bytes(), replayed.stderr


def test_the_counts_are_those_of_all_batches(skipdit, tmp_path):
    run = (*CACHED, "--cache-threshold", 0.9, "--batch-size", 1, "-o", tmp_path / "a.png", "--json")
    cache = skipdit("sample", *run).json["cache"]
    assert cache["steps"] == 40 and cache["blocks_total"] == 2 * 20 * 12


@pytest.mark.parametrize("other", [("--full-steps", 5), ("--cache-interval", 3), ("--target-speedup", 2)])
def test_a_rule_that_is_typed_takes_back_the_threshold_of_a_record(skipdit, tmp_path, other):
    first = tmp_path / "a.png"
    assert skipdit("sample", *CACHED, "--cache-threshold", 0.9, "-o", first).code == 0
    ended = skipdit("sample", "--from", first, *other, "-o", tmp_path / "b.png")
    assert ended.code == 0, ended.stderr
    assert settings_of(tmp_path / "b.png").get("cache_threshold") != 0.9


@pytest.mark.parametrize("threshold, message", [(1e-9, "was passed in each"), (1e6, "was passed in no step")])
@pytest.mark.filterwarnings("ignore:Skip-Cache reused none")
def test_a_threshold_that_does_nothing_is_said(skipdit, tmp_path, threshold, message):
    ended = skipdit("sample", *CACHED, "--cache-threshold", threshold, "-o", tmp_path / "a.png")
    assert ended.code == 0 and message in ended.stderr


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--cache-threshold", 0.1), "--cache-threshold without --cache-layers"),
        (("--target-speedup", 2), "--target-speedup without --cache-layers"),
        (("--cache-layers", 1, "--cache-threshold", 0.1, "--full-steps", 3), "give one rule"),
        (("--cache-layers", 1, "--target-speedup", 2, "--full-steps", 3), "--target-speedup together with --full"),
        (("--cache-layers", 1, "--target-speedup", 2, "--cache-threshold", 1), "together with --cache-threshold"),
        (("--cache-layers", "0:1", "--target-speedup", 2), "one or more at the front"),
        (("--cache-layers", 1, "--target-speedup", 1), "expected a number above 1"),
        (("--cache-layers", 1, "--target-speedup", 50), "but expected more than 1 and at most"),
        (("--cache-layers", 1, "--cache-threshold", "nan"), "--cache-threshold nan but expected a number"),
        (("--cache-layers", 1, "--cache-threshold", 0), "--cache-threshold 0 but expected a finite number"),
        (("--cache-layers", 1, "--cache-threshold", 0.1, "--compile"), "--compile with --cache-threshold"),
        (("--cache-layers", 1, "--target-speedup", 2, "--compile"), "--compile with --target-speedup"),
    ],
)
def test_bad_input_of_sample_is_refused(skipdit, tmp_path, flags, message):
    ended = skipdit("sample", *RUN, *flags, "-o", tmp_path / "a.png")
    assert ended.code == 2 and message in ended.stderr, ended.stderr
    assert not list(tmp_path.iterdir())


def test_the_bench_measures_thresholds_and_speedups(skipdit):
    flags = ("--cache-layers", "1:0", "--cache-threshold", "0.9", "--target-speedup", "1.5,2", "--full-steps", "8")
    done = skipdit("bench", *RUN, *flags, "--rounds", 1, "--warmup", 0, "--json")
    assert done.code == 0, done.stderr
    rows = {row["schedule"]: row for row in done.json["rows"] if row["case"] == "vanilla-cache"}
    names = list(rows)
    assert names[0] == "late-dense 8" and names[1] == "threshold 0.9" and len(names) == 4
    for name, speedup in zip(names[2:], (1.5, 2)):
        row = rows[name]
        assert f"--target-speedup {speedup:g} takes --cache-{name}" in done.stderr
        assert row["limit"] == pytest.approx(speedup, abs=0.3) and row["cache_interval"] is None
        assert 1 < row["full_steps"] < 20 and row["psnr"] > 20


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--cache-threshold", "a"), "expected numbers separated by commas"),
        (("--cache-threshold", "0"), "finite number above 0"),
        (("--target-speedup", "0.5"), "expected a number above 1"),
        (("--cache-layers", "0", "--cache-threshold", "0.1"), "one or more at the front"),
        (("--cache-threshold", "0.1", "--compile"), "--compile with --cache-threshold"),
    ],
)
def test_bad_input_of_bench_is_refused(skipdit, flags, message):
    ended = skipdit("bench", *RUN, *flags)
    assert ended.code == 2 and message in ended.stderr, ended.stderr
