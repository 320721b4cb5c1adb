"""skipdit bench --exact: the accuracy of every row, the rows that it judges, and where there is none."""

import math

import pytest
import torch

from skipdit_cli import CachePolicy, load_pipeline
from skipdit_cli.bench import solving
from skipdit_cli.bench.cases import Case, make_baselines
from skipdit_cli.bench.run import Bench
from skipdit_cli.bench.solutions import describe, plain_samplers
from skipdit_cli.commands import bench as command
from skipdit_cli.planning.exact import solve_exactly
from skipdit_cli.sampling.generate import generate
from skipdit_cli.sampling.schedulers import Sampler

QUICK = ("--steps", 8, "--rounds", 1, "--warmup", 0, "--class-labels", "1,2", "--guidance-scale", 2, "--json")


@pytest.fixture
def converted(skipdit, tiny_pipeline, tmp_path):
    """A converted model, whose branches change nothing yet."""
    assert skipdit("convert", tiny_pipeline(num_layers=4), "-o", tmp_path / "skip", "--no-verify").code == 0
    return tmp_path / "skip"


def by_case(report):
    return {row["case"]: row for row in report["rows"]}


def test_rows_have_an_accuracy_and_the_best_plain_sampler_is_among_them(skipdit, converted, tmp_path):
    ran = skipdit("bench", "-m", converted, *QUICK, "--full-steps", 3, "-o", tmp_path / "out")
    assert ran.code == 0, ran.stderr
    report, rows = ran.json, by_case(ran.json)
    assert list(rows)[:4] == ["vanilla", "vanilla-cache", "skip", "skip-cache"]
    assert {"uniform", "paper", "fewer-steps"} < rows.keys()
    assert all(math.isfinite(row["psnr_exact"]) and row["sampler"] for row in report["rows"])
    assert rows["vanilla"]["psnr_exact"] == rows["skip"]["psnr_exact"], "branches of zeros"
    best = rows.get("fewer-steps-best", rows["fewer-steps"])
    assert best["steps"] == rows["fewer-steps"]["steps"] and best["psnr_exact"] >= rows["fewer-steps"]["psnr_exact"]
    assert rows["uniform"]["schedule"] == "uniform 3" and rows["uniform"]["full_steps"] == 3
    assert rows["uniform"]["cost"] == pytest.approx(rows["skip-cache"]["cost"]) and rows["skip"]["cost"] == 8
    assert (rows["paper"]["schedule"], rows["paper"]["forecast"]) == ("every 2", "reuse")
    for row in report["rows"]:
        assert row["cost"] == pytest.approx(8 / (row["limit"] or 1))
        assert row["seconds_iqr"] is None, "one round has no spread"
    exact = report["exact"]
    assert exact["vanilla"] == exact["skip"] and exact["vanilla"]["sampler"].startswith("dpm++ order 3")
    assert exact["vanilla"]["agreement_db"] > best["psnr_exact"] or exact["vanilla"]["steps"] == 1000
    page = (tmp_path / "out" / "bench.md").read_text()
    for text in (report["verdict"], report["target"], *report["warnings"]):
        assert text in page
    assert page.index("| paper |") < page.index(report["verdict"]) < page.index("full: full steps") and "±" not in page


def test_accuracy_is_the_distance_to_the_exact_solution(tiny_pipeline):
    pipe = load_pipeline(tiny_pipeline(num_layers=4))
    arguments = {"guidance_scale": 1.0, "seed": 5}
    bench = Bench(pipe, [CachePolicy(1, interval=2)], [1, 2], num_inference_steps=6, **arguments)
    solving.solve(bench)
    rows = bench.run(rounds=1, warmup=0)
    exact = solve_exactly(pipe, [1, 2], accuracy_db=60, **arguments)
    full = generate(pipe, [1, 2], num_inference_steps=6, **arguments)
    error = (full.latents.clamp(-1, 1) - exact.latents.clamp(-1, 1)).square().flatten(1).mean(1)
    assert rows[0]["psnr_exact"] == pytest.approx(float((10 * torch.log10(4 / error)).mean()), abs=0.5)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--scheduler", "ddpm"), "DDPMScheduler adds noise at each step"),
        (("--no-exact",), None),
    ],
)
def test_where_there_is_no_exact_solution(flags, reason, skipdit, converted):
    ran = skipdit("bench", "-m", converted, *QUICK, "--cache-interval", 2, *flags)
    assert ran.code == 0, ran.stderr
    report = ran.json
    assert all(row["psnr_exact"] is None for row in report["rows"]) and report["exact"] is report["target"] is None
    assert "does not tell whether fewer steps" in report["verdict"]
    notes = [note for note in report["notes"] if "No psnr_exact." in note]
    assert len(notes) == (reason is not None) and all(reason in note for note in notes)
    assert ("paper" in by_case(report)) == (reason is not None)


def test_it_is_left_out_where_it_takes_too_long_unless_it_is_requested(skipdit, converted, monkeypatch):
    monkeypatch.setattr(command, "EXACT_LIMIT", 0.0)
    run = ("bench", "-m", converted, *QUICK, "--cache-interval", 4, "--forecast", "reuse")
    report = skipdit(*run).json
    assert report["exact"] is None and any("'bench --exact' computes it" in note for note in report["notes"])
    assert skipdit(*run, "--exact").json["exact"]["vanilla"]["steps"] >= 25


def test_a_baseline_that_is_among_the_cases_is_not_run_twice():
    timesteps = list(range(20, 0, -1))
    paper, even = CachePolicy(1, interval=2, forecast="reuse"), CachePolicy(1, interval=4)
    policies = [paper, even, CachePolicy(1, full_steps=5), CachePolicy(1, full_steps=7), CachePolicy(2, full_steps=7)]
    cached = [Case("vanilla-cache", 20, policy) for policy in policies]
    names = [(case.name, case.policy.layers, case.schedule) for case in make_baselines(cached, timesteps, 6)]
    assert names == [("uniform", (1, 1), "uniform 7"), ("uniform", (2, 2), "uniform 7")], "uniform 5 is every 4"
    assert [case.name for case in make_baselines(cached[1:2], timesteps, 6)] == ["paper"]
    plan = make_baselines(cached, timesteps, 6)[0].policy.plan(timesteps)
    assert [step for step, full in enumerate(plan) if full] == [0, 2, 5, 8, 11, 14, 17]


def test_a_case_has_a_sampler_of_its_own(tiny_pipeline):
    pipe, sampler = load_pipeline(tiny_pipeline()), Sampler("dpm++", "lu", {"solver_order": 3})
    bench = Bench(pipe, [CachePolicy(1)], [1], num_inference_steps=4, guidance_scale=1.0)
    bench.cases.append(Case("plan", 5, CachePolicy(1, full_steps=(0, 2)), sampler=sampler, label="from a plan"))
    row = bench.run(rounds=1, warmup=0)[-1]
    assert (row["case"], row["sampler"], row["schedule"]) == ("plan", "dpm++ lu order 3", "from a plan")
    assert (row["steps"], row["full_steps"]) == (5, 2) and row["cost"] == pytest.approx(4 / row["limit"])
    run = {"num_inference_steps": 5, "guidance_scale": 1.0, "policy": CachePolicy(1, full_steps=(0, 2))}
    assert torch.equal(bench.generated[-1].latents, generate(pipe, [1], scheduler=sampler, **run).latents)


def test_plain_samplers_are_deterministic_and_no_two_are_equal(tiny_pipeline):
    pipe = load_pipeline(tiny_pipeline())
    names = [describe(sampler, pipe) for sampler in plain_samplers(pipe, Sampler("ddim"), 5)]
    assert names == ["ddim", "dpm++ lu order 2", "dpm++ lu order 3", "unipc at 5 timesteps"]
    assert names[1:] == [describe(each, pipe) for each in plain_samplers(pipe, Sampler("ddpm"), 5)][1:]


def test_a_minimum_that_the_noise_hides_is_not_judged(skipdit, converted, monkeypatch):
    monkeypatch.setattr("skipdit_cli.bench.run.load_average", lambda: 1000.0)
    run = ("bench", "-m", converted, *QUICK, "--cache-interval", 4, "--no-exact")
    ran = skipdit(*run, "--min-speedup", 1.5)
    assert ran.code == 3 and "--min-speedup 1.5, which these times cannot judge" in ran.stderr
    assert "The load average was up to 1000.0" in ran.stderr and ran.json["warnings"]
