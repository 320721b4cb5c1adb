"""The verdict of a bench in words, on made-up rows, and what is said of the load of a machine."""

import pytest

from skipdit_cli.bench.machine import find_warnings, is_in_doubt
from skipdit_cli.bench.results.verdict import make_headline, make_verdict, reached_by

MACS = {"vanilla": 100, "skip": 110}


def uncached(psnr_exact=40.0, case="vanilla", steps=50):
    return row(case, steps, psnr_exact, reference=case)


def row(case, cost, psnr_exact, schedule=None, steps=None, sampler="ddim", reference="vanilla"):
    layers, forecast, target = (None, None, None) if schedule is None else (1, "taylor2", "residual")
    return {
        "case": case, "reference": reference, "cache_layers": layers, "schedule": schedule, "forecast": forecast,
        "cache_target": target, "sampler": sampler, "steps": steps or round(cost), "cost": cost,
        "psnr_exact": psnr_exact, "measured_over_limit": None,
    }  # fmt: skip


def cached(cost, psnr_exact, schedule="late-dense 13", case="vanilla-cache", reference="vanilla"):
    return row(case, cost, psnr_exact, schedule, steps=50, reference=reference)


def plain(steps, psnr_exact, sampler="dpm++ lu"):
    return row("fewer-steps-best", steps, psnr_exact, sampler=sampler)


def test_a_cache_that_wins():
    rows = [uncached(), cached(15.6, 40.9), cached(8.0, 31.0, "every 9"), plain(13, 40.4), plain(8, 33.0)]
    assert make_verdict(rows, MACS) == (
        "At a cost of 15.6 full forwards (3.2 times fewer), the best cached row (vanilla-cache, late-dense 13, "
        "taylor2 residual, N=1) has 40.9 dB to the exact solution, 0.9 dB more than 50 steps of ddim. For no more "
        "than that, 13 steps of dpm++ lu alone have 40.4 dB, 0.5 dB less. Of the 2 cached rows, 1 is more accurate "
        "than every run of fewer steps that costs no more."
    )
    assert reached_by(rows, MACS) == (
        "Accuracy of 50 steps of ddim (40.0 dB, within 0.3 dB): reached at a cost of 13 by 13 steps of dpm++ lu, "
        "40.4 dB."
    )


def test_fewer_steps_that_win():
    rows = [uncached(), cached(15.0, 39.8), cached(20, 39.9, "every 3"), plain(10, 41.0), plain(9, 36.0)]
    verdict = make_verdict(rows, MACS)
    assert "(vanilla-cache, late-dense 13, taylor2 residual, N=1) has 39.8 dB" in verdict
    assert "0.2 dB less than 50 steps of ddim" in verdict and "15 full forwards" in verdict
    assert (
        "But 10 steps of dpm++ lu alone have 41.0 dB, 1.2 dB more, at a cost of 10: plain fewer steps win" in verdict
    )
    assert verdict.endswith(
        "None of the 2 cached rows is more accurate than every run of fewer steps that costs no more."
    )


def test_a_cached_row_that_is_cheaper_than_all_fewer_steps_does_not_count_as_a_win():
    rows = [uncached(), cached(15.0, 39.8), cached(8, 30.0, "every 9"), plain(12, 41.0)]
    assert make_verdict(rows, MACS).endswith(
        "Of 2 cached rows, 1 costs as much as a run of fewer steps; none is more accurate than every run of fewer "
        "steps that costs no more."
    )
    assert make_verdict([uncached(), cached(8, 30.0), plain(12, 41.0)], MACS).endswith(
        "No cached row costs as much as the cheapest run of fewer steps."
    )


def test_a_cache_that_reaches_less_than_the_full_run_is_judged_by_its_most_accurate_row():
    rows = [uncached(), cached(15, 35.0), cached(8, 30.0, "every 9")]
    verdict = make_verdict(rows, MACS)
    assert "has 35.0 dB to the exact solution, 5.0 dB less than 50 steps of ddim." in verdict
    assert verdict.endswith("No run of fewer steps at that cost was measured.")
    assert reached_by(rows, MACS).endswith("reached by no cheaper row.")


def test_numbers_and_words_agree():
    rows = [uncached(30.0, steps=4), cached(1, 30.0), plain(1, 29.0)]
    verdict = make_verdict(rows, MACS)
    assert "At a cost of 1 full forward (4.0 times fewer)" in verdict and "as many as 4 steps of ddim" in verdict
    assert "1 step of dpm++ lu alone has 29.0 dB, 1.0 dB less." in verdict
    assert verdict.endswith("The only cached row is more accurate than every run of fewer steps that costs no more.")
    rows = [uncached(), cached(9, 40.0), cached(12, 41.0, "every 4"), plain(8, 33.0)]
    assert "Each of the 2 cached rows is more accurate" in make_verdict(rows, MACS)
    rows = [uncached(), cached(9, 40.0), plain(9, 40.02)]
    assert "have 40.0 dB, as many, at a cost of 9" in make_verdict(rows, MACS)
    assert "The only cached row is not more accurate" in make_verdict(rows, MACS)


def test_forwards_with_branches_cost_more_than_those_of_vanilla():
    skip = [uncached(case="skip"), cached(10, 40.0, case="skip-cache", reference="skip")]
    rows = [uncached(), *skip, plain(11, 41.0), plain(12, 42.0)]
    verdict = make_verdict(rows, MACS)
    assert "But 11 steps of dpm++ lu alone have 41.0 dB" in verdict
    assert "reached at a cost of 10 by skip-cache" in reached_by([uncached(), *skip, plain(12, 42.0)], MACS)


def test_without_accuracies_nothing_is_claimed():
    rows = [uncached(None), cached(9, None), plain(9, None)]
    assert make_verdict(rows, MACS).startswith("Without the exact solution this table does not tell")
    assert reached_by(rows, MACS) is None
    assert "nothing to compare" in make_verdict([uncached(), cached(9, None)], MACS)


@pytest.mark.parametrize(
    ("ratios", "load", "warnings"),
    [
        ([0.9, 1.1], 1.5, []),
        ([0.9, 1.1], 2.5, ["The load average was up to 2.5 on 2 cores"]),
        ([0.5, 1.1], 1.0, ["'of it') of 1 of 2 rows lies outside 0.85 to 1.15 (0.50)"]),
        ([0.5, 1.4], 3.0, ["up to 3.0", "of 2 of 2 rows lie outside 0.85 to 1.15 (0.50 to 1.40)"]),
    ],
)
def test_a_busy_machine_is_a_warning(ratios, load, warnings):
    rows = [{"measured_over_limit": ratio} for ratio in (None, *ratios)]
    found = find_warnings(rows, [0.3, load], cores=2)
    assert len(found) == len(warnings) and all(part in text for part, text in zip(warnings, found))


def test_noise_hides_a_speedup_that_is_near_the_minimum():
    assert is_in_doubt(speedup=1.6, limit=1.7, minimum=1.4) and is_in_doubt(1.6, 1.7, 2.0)
    assert not is_in_doubt(1.6, 1.7, 1.0) and not is_in_doubt(1.6, 1.7, 3.0)
    assert is_in_doubt(3.0, 1.7, 1.9), "faster than its FLOPs allow"


def headline(*rows):
    timed = [{"peer": None, **each, "speedup_vs_vanilla": 50 / each["cost"]} for each in rows]
    return make_headline(timed, MACS)


def test_the_headline_names_the_cost_the_control_and_the_plain_steps_that_come_as_close():
    skip = [uncached(case="skip"), cached(50 / 3, 40.1, case="skip-cache", reference="skip")]
    assert headline(uncached(), cached(50 / 3, 39.0), *skip, plain(13, 40.0), plain(19, 44.0)) == (
        "At about a third of the cost, this model's cached samples are as close to the exact solution as 50 steps of "
        "ddim; without skip branches the same cache is 1.1 dB further away; 13 plain steps of dpm++ lu come as close, "
        "at a cost of 13 instead of 18.3."
    )
    assert headline(uncached(), cached(10, 36.0), plain(9, 30.0)) == (
        "At about a fifth of the cost, this model's cached samples are 4.0 dB further from the exact solution than 50 "
        "steps of ddim; no measured run of fewer plain steps comes as close."
    )
    better = headline(uncached(), cached(22, 42.0), plain(20, 45.0))
    assert better.startswith("At 44 % of the cost, this model's cached samples are 2.0 dB closer to the exact")
    assert better.endswith("20 plain steps of dpm++ lu are 3.0 dB closer, at a cost of 20 instead of 22.")


def test_the_headline_without_an_exact_solution():
    rows = [{**uncached(None), "psnr": None}, {**cached(25, None), "psnr": 31.24}]
    assert headline(*rows) == (
        "At about half of the cost, this model's cached samples have a PSNR of 31.2 dB to its uncached ones."
    )
    assert headline({**uncached(None), "psnr": None}, {**cached(25, None), "psnr": None}) == ""
