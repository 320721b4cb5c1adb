"""The search for plans: candidates, what their accuracy is measured on, shared prefixes, and what the search finds."""

import pytest
import torch
from diffusers import DDPMScheduler

from skipdit_cli import CachePolicy, load_pipeline
from skipdit_cli.errors import SkipditError, UsageError
from skipdit_cli.models import open_model
from skipdit_cli.planning.calibrate import MARGIN_DB, Calibrator
from skipdit_cli.planning.flops import StepFlops
from skipdit_cli.planning.searching.candidate import Candidate, full_steps_within, moved, spread_steps
from skipdit_cli.planning.searching.effort import Effort
from skipdit_cli.planning.searching.evaluate import BEST_DB, WORST_DB, Evaluator
from skipdit_cli.planning.searching.search import Search
from skipdit_cli.sampling.generate import generate
from skipdit_cli.sampling.schedulers import Sampler
from tests.support.tiny_pipelines import build, settings_of

LU = Sampler("dpm++", "lu")


@pytest.fixture(scope="module")
def digits():
    return open_model(None, "digits", dtype=torch.float32)


@pytest.fixture
def evaluator(digits):
    made = Evaluator(digits, [0, 1, 2, 3], 100, accuracy_db=50, first=2, guidance_scale=1.5)
    yield made
    made.close()


def cached(full_steps, layers=(1, 0), **changes):
    return Candidate(LU, 10, CachePolicy(layers, full_steps=full_steps, **changes))


# Candidates


@pytest.mark.parametrize("steps, count", [(20, 8), (20, 20), (5, 1), (50, 13), (7, 6)])
@pytest.mark.parametrize("end, power", [(1.0, 1.0), (0.8, 1.0), (0.5, 1.0), (1.0, 0.5), (0.7, 2.0)])
def test_spread_steps_are_as_many_as_asked_for_from_the_first_on(steps, count, end, power):
    places = spread_steps(steps, count, end, power)
    assert len(set(places)) == count and list(places) == sorted(places)
    assert places[0] == 0 and places[-1] < steps


def test_a_move_shifts_one_full_step_and_the_last_ones_come_first():
    assert moved((0, 2, 5), 7, (1, -1)) == [(0, 2, 6), (0, 2, 4), (0, 3, 5), (0, 1, 5)]


def test_the_cost_counts_full_forwards(digits):
    flops = StepFlops(digits.transformer)
    assert Candidate(LU, 9).cost(flops) == 9
    assert cached((0, 3, 6), layers=(0, 0)).cost(flops) == 3
    share = flops.reused((1, 0)) / flops.full
    assert cached((0, 3, 6)).cost(flops) == pytest.approx(3 + 7 * share)
    assert full_steps_within(3 + 7 * share, 10, share) == 3
    assert full_steps_within(2.9 + 7 * share, 10, share) == 2


# Accuracy


def test_a_run_that_shares_its_beginning_gives_the_very_samples(digits, evaluator):
    """Also with explicit timesteps of which the first ones agree, and where the output itself is forecast."""
    ts = (999.0, 900.0, 700.0, 500.0, 300.0, 150.0, 80.0, 40.0, 10.0, 0.0)
    late = (*ts[:6], 90.0, *ts[7:])
    candidates = [
        cached((0, 2, 4, 6)), cached((0, 2, 4, 7)), cached((0, 2, 5, 7)),
        cached((0, 2, 4, 6), (0, 0)), cached((0, 2, 4, 8), (0, 0)),
        *(Candidate(Sampler("dpm++", timesteps=each), 10) for each in (ts, late)),
    ]  # fmt: skip
    shared = [evaluator.each(candidate) for candidate in candidates]
    ran = evaluator.prefixes.forwards
    evaluator.close()
    evaluator.results.clear()
    assert [evaluator.each(candidate) for candidate in candidates] == shared
    assert ran < 2 * sum(len(candidate.full_steps) for candidate in candidates) + 6 * 6 * 2


def test_runs_that_differ_by_less_than_the_timesteps_precision_share_no_forward():
    """Flux rounds timesteps to bfloat16 before its transformer gets them: 800.3 and 799.5 are one to it."""
    pipe = build("flux").to(torch.bfloat16)
    settings = {**settings_of("flux"), "guidance_scale": 3.0, "batch_size": 1}
    evaluator = Evaluator(pipe, ["a cat"], 0, accuracy_db=20, **settings)
    candidates = [
        Candidate(Sampler(timesteps=(1000.0, second, 640.0, 333.0, 120.0)), 5) for second in (800.3, 799.5, 798.7)
    ]
    shared = [evaluator.each(candidate) for candidate in candidates]
    evaluator.close()
    evaluator.results.clear()
    assert [evaluator.each(candidate) for candidate in candidates] == shared
    assert len({tuple(each) for each in shared}) == 3


def test_the_exact_solution_itself_is_the_best(digits, evaluator):
    exact = Candidate(evaluator.exact.sampler, evaluator.exact.steps)
    assert evaluator.each(exact) == [BEST_DB] * 4 and evaluator.first_look(exact) > evaluator.first_look(
        Candidate(LU, 10)
    )


def test_a_scheduler_that_is_shifted_by_the_size_of_the_image_has_timesteps_to_move():
    pipe = build("flux-2")
    evaluator = Evaluator(pipe, ["a cat"], 0, accuracy_db=10, batch_size=1, **settings_of("flux-2"))
    search = Search(evaluator, StepFlops(pipe.transformer), [Sampler()], 2, effort=Effort(passes=1))
    best = search.best_at(2)
    evaluator.close()
    assert len(best["timesteps"].sampler.timesteps or (1, 2)) == 2


def test_a_pipeline_that_runs_with_no_fitted_sampler_has_a_plan_without_one(digits, evaluator, caplog):
    class Unfit:
        def search(self, *_):
            raise SkipditError("The WanPipeline failed as it ran.")

    best = Search(evaluator, StepFlops(digits.transformer), [LU], 12, effort=Effort(starts=0), fitter=Unfit()).best_at(
        2
    )
    assert set(best) == {"plan", "sampler", "timesteps"} and "WanPipeline failed" in caplog.text


def test_the_pipeline_is_as_it_was_after_a_search(digits):
    run = {"num_inference_steps": 4, "guidance_scale": 1.5, "decode": False}
    before = generate(digits, [1, 2], **run).latents
    evaluator = Evaluator(digits, [0, 1], 0, accuracy_db=40, guidance_scale=1.5)
    evaluator.each(cached((0, 5)))
    evaluator.close()
    assert torch.equal(generate(digits, [1, 2], **run).latents, before)
    assert "forward" not in digits.transformer.__dict__


def test_a_candidate_that_cannot_run_is_the_worst(evaluator):
    assert evaluator.each(Candidate(LU, 10, CachePolicy(6, full_steps=(0, 5)))) == [WORST_DB] * 4


def test_a_candidate_far_behind_is_not_sampled_to_the_end(evaluator):
    good, bad = Candidate(LU, 8), Candidate(LU, 2)
    evaluator.accuracy(good)
    evaluator.accuracy(bad, good)
    assert len(evaluator.results[good.key()]) == 4 and len(evaluator.results[bad.key()]) == 2


# Plans


@pytest.fixture(scope="module")
def calibration(digits):
    effort = Effort(samplers=1, starts=1, passes=1)
    known: dict = {}
    calibrator = Calibrator(digits, [0, 1], [5, 6], scheduler=LU, known=known, guidance_scale=1.5, steps=12)
    return calibrator, calibrator.for_costs([4.0], effort), effort, known


def test_a_plan_beats_plain_steps_at_its_cost_on_samples_it_was_not_searched_with(calibration):
    _, found, _, _ = calibration
    best = found.plans[4.0]
    assert set(best) == {"plan", "sampler", "timesteps", "cached", "same-sampler"}
    assert all(each.cost <= 4 + 1e-9 for each in best.values())
    assert best["plan"].mean_db > best["sampler"].mean_db + 3
    assert best["plan"].searched_db >= best["timesteps"].searched_db >= best["sampler"].searched_db


def test_an_accuracy_is_exceeded_on_the_samples_of_the_search_by_more_where_they_spread_more(calibration):
    calibrator = calibration[0]
    near, far = (calibrator.margin_db([40 - spread, 40, 40, 40 + spread]) for spread in (0.05, 6.0))
    assert near == MARGIN_DB and far == pytest.approx(24**0.5 * 0.75**0.5)


def test_an_interrupted_search_goes_on_to_the_same_plan(digits, calibration):
    calibrator, found, effort, known = calibration
    results = dict(list(known.items())[: len(known) * 9 // 10])
    again = Calibrator(digits, [0, 1], [5, 6], scheduler=LU, known=results, guidance_scale=1.5, steps=12)
    assert again.for_costs([4.0], effort).plans[4.0]["plan"] == found.plans[4.0]["plan"]


def test_a_sampler_that_adds_noise_is_refused(digits):
    with pytest.raises(UsageError, match="deterministic"):
        Calibrator(digits, [0], [1], scheduler="ddpm")


def test_a_pipeline_of_ddpm_is_compared_with_ddim(tiny_pipeline):
    pipe = load_pipeline(tiny_pipeline())
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    calibrator = Calibrator(pipe, [0, 1], [2, 3], steps=6, guidance_scale=1.5)
    assert calibrator.own == Sampler("ddim") and Sampler() not in calibrator.samplers
    evaluator = Evaluator(pipe, [0], 0, accuracy_db=20, guidance_scale=1.5)
    evaluator.close()
    assert evaluator.accuracy(Candidate(calibrator.own, 20)) > evaluator.accuracy(Candidate(calibrator.own, 2))
