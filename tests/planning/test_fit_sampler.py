"""Fitted samplers: on a linear denoiser, whose solution has a closed form; as flags; and what is refused."""

import diffusers
import pytest
import torch

from skipdit_cli import CachePolicy, load_pipeline
from skipdit_cli.errors import UsageError
from skipdit_cli.planning.accuracy import accuracy_db
from skipdit_cli.planning.fit_sampler import SamplerFitter
from skipdit_cli.planning.flops import StepFlops
from skipdit_cli.planning.plan import Plan, make_made_for
from skipdit_cli.planning.searching.candidate import Candidate, candidate_of
from skipdit_cli.planning.searching.effort import Effort
from skipdit_cli.planning.searching.evaluate import Evaluator
from skipdit_cli.planning.searching.prefixes import SharedPrefixes
from skipdit_cli.planning.searching.search import Search
from skipdit_cli.sampling.generate import generate
from skipdit_cli.sampling.schedulers import Sampler, check_deterministic, make_scheduler
from tests.support.tiny_pipelines import build, settings_of

SETTINGS = {"guidance_scale": 1.5, "decode": False}
COEFFICIENTS = [[1.0, 0.5], [1.0, 0.25, 0.25]]


@pytest.fixture
def pipe(tiny_pipeline):
    return load_pipeline(tiny_pipeline())


@pytest.fixture
def text_pipe(text_pipeline):
    return load_pipeline(text_pipeline)


def held_out(pipe, sampler, reference, steps):
    """The accuracy of a sampler on seeds that it was not fitted to."""
    settings = {"num_inference_steps": steps, "seed": 100, **SETTINGS}
    return accuracy_db(pipe, generate(pipe, [2, 0, 1], scheduler=sampler, **settings), reference)


def test_a_fitted_sampler_is_nearer_to_the_exact_solution_on_other_seeds(pipe):
    fit = SamplerFitter(pipe, [0, 1, 2, 3], guidance_scale=1.5).search(4, trials=6)
    reference = generate(pipe, [2, 0, 1], scheduler="dpm++", num_inference_steps=100, seed=100, **SETTINGS)
    assert len(fit.sampler.timesteps) == 4 and [len(row) for row in fit.sampler.arguments["coefficients"]] == [
        2,
        3,
        4,
        5,
    ]
    assert held_out(pipe, fit.sampler, reference, 4) > held_out(pipe, Sampler("dpm++", "lu"), reference, 4) + 3


def test_more_trials_never_lose_on_the_calibration_seeds(pipe):
    fitter = SamplerFitter(pipe, [0, 1, 2, 3], guidance_scale=1.5)
    few, more = (fitter.search(3, trials) for trials in (5, 15))
    assert more.accuracy_db >= few.accuracy_db


def test_an_interrupted_search_goes_on_to_the_same_sampler(pipe):
    known: dict[str, list[float]] = {}
    fitter = SamplerFitter(pipe, [0, 1, 2, 3], known=known, guidance_scale=1.5)
    fitter.search(4, trials=5)
    assert len(known) == 5
    ran, fit = [], fitter.fit
    fitter.fit = lambda nodes: ran.append(nodes) or fit(nodes)
    resumed = fitter.search(4, trials=8)
    assert len(known) == 8 and len(ran) == 4  # the three that were not known, and the best again
    assert resumed == SamplerFitter(pipe, [0, 1, 2, 3], guidance_scale=1.5).search(4, trials=8)


def test_a_run_equals_the_run_that_fitted_it(pipe):
    fitter = SamplerFitter(pipe, [0, 1, 2], guidance_scale=1.5)
    fit = fitter.fit([0, 20, 50])
    again = generate(pipe, [0, 1, 2], scheduler=fit.sampler, **SETTINGS)
    assert accuracy_db(pipe, again, fitter.path.samples) == fit.accuracy_db


def test_shared_beginnings_change_no_bit_and_save_forwards(pipe):
    prefixes = SharedPrefixes(pipe)
    try:
        shared = SamplerFitter(pipe, [0, 1, 2], prefixes=prefixes, guidance_scale=1.5).search(3, 8)
    finally:
        prefixes.close()
    assert prefixes.forwards < 64 + 8 * 3
    assert shared == SamplerFitter(pipe, [0, 1, 2], guidance_scale=1.5).search(3, 8)


def test_a_sampler_is_fitted_to_the_forecasts_of_a_cache(pipe):
    policy, settings = CachePolicy((1, 0), full_steps=(0, 2)), {"guidance_scale": 1.5}
    fit = SamplerFitter(pipe, [0, 1, 2], policy=policy, **settings).fit([0, 20, 40, 55])
    cached = generate(pipe, [0, 1, 2], scheduler=fit.sampler, policy=policy, **SETTINGS)
    assert cached.report.reused_steps == 2 and torch.isfinite(cached.latents).all()
    reference = SamplerFitter(pipe, [0, 1, 2], **settings).path.samples
    assert accuracy_db(pipe, cached, reference) == fit.accuracy_db


def test_a_flow_is_fitted_as_well(pipe):
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    fit = SamplerFitter(pipe, [0, 1, 2, 3], guidance_scale=1.5).search(3, 5)
    reference = generate(pipe, [2, 0, 1], num_inference_steps=150, seed=100, **SETTINGS)
    assert held_out(pipe, fit.sampler, reference, 3) > held_out(pipe, None, reference, 3)


@pytest.mark.parametrize("name", ["flux", "aura-flow", "wan-2.2", "ltx", "cogview-4"])
def test_a_pipeline_that_passes_its_scheduler_more_than_the_steps_is_fitted_as_well(name):
    """They look for arguments of ``set_timesteps``, call ``set_begin_index``, or read ``sigmas``."""
    pipe, settings = build(name), settings_of(name)
    fit = SamplerFitter(pipe, ["a cat"], **settings).search(2, trials=2)
    made = generate(pipe, ["a cat"], scheduler=fit.sampler, num_inference_steps=2, decode=False, **settings)
    assert made.steps == 2 and made.latents.isfinite().all() and fit.accuracy_db > 10


def test_a_text_conditional_pipeline_is_fitted_as_well(text_pipe):
    fit = SamplerFitter(text_pipe, ["a dog", "a dog"]).search(3, 5)
    reference = generate(text_pipe, ["a cat"], scheduler="dpm++", num_inference_steps=60, seed=9, decode=False)
    fitted, plain = (
        generate(text_pipe, ["a cat"], scheduler=sampler, num_inference_steps=3, seed=9, decode=False)
        for sampler in (fit.sampler, Sampler("dpm++", "lu"))
    )
    assert accuracy_db(text_pipe, fitted, reference) > accuracy_db(text_pipe, plain, reference)


def test_it_is_deterministic_and_steps_as_its_coefficients_say(pipe):
    scheduler = make_scheduler(Sampler("fitted", arguments={"coefficients": COEFFICIENTS}, timesteps=[999, 0]), pipe)
    check_deterministic(scheduler)
    scheduler.set_timesteps(2)
    x, u, v = (torch.full((1,), value) for value in (1.0, 2.0, 4.0))
    first = scheduler.step(u, scheduler.timesteps[0], x).prev_sample
    assert first == 2 and scheduler.step(v, scheduler.timesteps[1], first, return_dict=False)[0] == 2.5


@pytest.mark.parametrize(
    "timesteps, coefficients, message",
    [
        (None, COEFFICIENTS, "without --timesteps"),
        ([999, 0], None, "without --scheduler-arg coefficients"),
        ([999, 500, 0], COEFFICIENTS, "3 --timesteps, but the coefficients are for 2"),
        ([999, 0], [[1.0, 0.5], [1.0]], "rows of 2, 3, 4"),
        ([999, 0], [[1.0, float("nan")], [1.0, 1.0, 1.0]], "finite numbers"),
        ([999, 0], "all", "rows of 2, 3, 4"),
    ],
)
def test_coefficients_that_do_not_fit_are_refused(timesteps, coefficients, message, pipe):
    arguments = {} if coefficients is None else {"coefficients": coefficients}
    with pytest.raises(UsageError, match=message):
        generate(pipe, [1], scheduler=Sampler("fitted", arguments=arguments, timesteps=timesteps))


@pytest.mark.parametrize("evaluations", [1, 33])
def test_a_number_of_evaluations_outside_of_the_range_is_refused(evaluations, pipe):
    with pytest.raises(UsageError, match="expected 2 to 32"):
        SamplerFitter(pipe, [0, 1], guidance_scale=1.5).search(evaluations)


def test_calibration_samples_in_several_batches_are_refused(text_pipe):
    with pytest.raises(UsageError, match="Got 2 batches to fit a sampler to but expected 1"):
        SamplerFitter(text_pipe, ["a cat", "a dog"])


def test_a_search_has_a_fitted_sampler_among_its_candidates(pipe):
    evaluator = Evaluator(pipe, [0, 1, 2, 3], 0, accuracy_db=40, first=2, guidance_scale=1.5)
    try:
        fitter = SamplerFitter(pipe, [0, 1, 2, 3], prefixes=evaluator.prefixes, seed=0, guidance_scale=1.5)
        effort = Effort(samplers=0, starts=0, passes=0, fits=6)
        search = Search(
            evaluator, StepFlops(pipe.transformer), [Sampler("dpm++", "lu")], 4, effort=effort, fitter=fitter
        )
        best = search.best_at(4)
        assert best["plan"] == best["fitted"] and best["fitted"].steps == 4
        assert evaluator.accuracy(best["fitted"]) > evaluator.accuracy(best["sampler"])
        assert best["fitted"].describe() == "fitted at 4 timesteps, 4 steps"
        assert candidate_of(best["fitted"].flags(), "plan") == best["fitted"]
        assert "fitted" not in search.best_at(1)
    finally:
        evaluator.close()


def test_a_plan_with_a_fitted_sampler_is_for_one_architecture(pipe, text_pipe):
    candidate = Candidate(Sampler("fitted", None, {"coefficients": COEFFICIENTS}, (999, 0)), 2)
    plan = Plan(candidate, make_made_for(pipe, candidate, 1.5, 2.0, {}))
    plan.check_run(pipe, candidate.sampler, 2)
    with pytest.raises(UsageError, match="but the model is a"):
        plan.check_run(text_pipe, candidate.sampler, 2)
