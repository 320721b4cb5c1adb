"""Levels: which steps are full, by the noise levels of any scheduler, and that they are no worse than even steps."""

import diffusers
import pytest

from skipdit_cli import CachePolicy, enable_skip_cache
from skipdit_cli.cache.noise_levels import NoiseLevels, noise_levels
from skipdit_cli.cache.schedule import mid_dense
from skipdit_cli.errors import UsageError
from tests.support.tiny_dit_runs import sample


def full_steps(plan):
    return [step for step, is_full in enumerate(plan) if is_full]


def levels_of(scheduler, steps=20):
    scheduler.set_timesteps(steps)
    return noise_levels(scheduler, scheduler.timesteps.tolist())


@pytest.mark.parametrize("name, counts", [("fast", (3, 6, 10)), ("balanced", (3, 7, 15)), ("quality", (3, 8, 23))])
def test_a_level_makes_few_of_many_steps_full_and_all_of_few(name, counts):
    assert tuple(CachePolicy.level(name, steps).full_steps for steps in (3, 10, 50)) == counts
    policy = CachePolicy.level(name, 50)
    assert (policy.layers, policy.forecast, policy.target) == ((1, 0), "taylor2", None)
    assert policy.describe() == f"mid-dense {counts[-1]}"


@pytest.mark.parametrize(
    "name, steps, words", [("best", 50, "expected one of fast, balanced"), ("fast", 0, "1 or more")]
)
def test_a_level_is_refused(name, steps, words):
    with pytest.raises(UsageError, match=words):
        CachePolicy.level(name, steps)


@pytest.mark.parametrize("levels", [None, NoiseLevels(tuple(range(-10, 10)), False), NoiseLevels((0.0,) * 20, True)])
def test_mid_dense_places_exactly_m_full_steps(levels):
    for count in range(1, 21):
        plan = mid_dense(20, count, levels)
        assert plan[0] and plan.count(True) == count
    assert mid_dense(20, 30, levels) == (True,) * 20


def test_the_noise_levels_of_schedulers():
    config = {"beta_schedule": "linear", "timestep_spacing": "linspace"}
    by_sigmas = levels_of(diffusers.EulerDiscreteScheduler(**config))
    by_alphas = levels_of(diffusers.DDIMScheduler(**config))
    assert by_sigmas.log_ratio == pytest.approx(by_alphas.log_ratio, abs=0.05) and not by_alphas.is_flow
    flow = levels_of(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    assert flow.is_flow and len(flow.log_ratio) == 20 and flow.since(5).log_ratio == flow.log_ratio[5:]
    assert levels_of(diffusers.DDIMInverseScheduler()) is None  # its noise rises


def test_full_steps_follow_the_noise_levels_of_the_spacing():
    """The last steps of a run that is even in log(alpha/sigma) need no full step; those of one even in time do."""
    policy = CachePolicy.level("balanced", 20)
    last = {}
    for spacing in ({}, {"use_lu_lambdas": True}):
        scheduler = diffusers.DPMSolverMultistepScheduler(**spacing)
        levels = levels_of(scheduler)
        last[bool(spacing)] = full_steps(policy.plan(scheduler.timesteps.tolist(), levels))[-1]
    assert last == {False: 19, True: 15}


def test_a_level_runs_with_its_scheduler(model):
    scheduler = diffusers.DDIMScheduler()
    cache = enable_skip_cache(model, CachePolicy.level("balanced", steps=20), scheduler)
    sample(model, scheduler, steps=20)
    assert cache.trace.count("full") == 9 and cache.trace[0] == "full"
    expected = CachePolicy.level("balanced", 20).plan(scheduler.timesteps.tolist(), levels_of(scheduler))
    assert [kind == "full" for kind in cache.trace] == list(expected)
    with pytest.raises(UsageError, match="scheduler"):
        enable_skip_cache(model, CachePolicy.level("balanced", steps=20))


GRID = [
    (name, spacing, steps, interval)
    for name, spacing in (("ddim", None), ("dpm++", None), ("dpm++", "lu"), ("dpm++", "karras"), ("deis", None))
    for steps, interval in ((20, 3), (30, 4), (50, 5))
]
"""Sampler, its spacing, and intervals with as many full steps as ``fast`` has at that number of steps."""


@pytest.mark.parametrize("name, spacing, steps, interval", GRID)
def test_a_level_is_no_worse_than_even_steps_with_the_same_forecast(digits_model, name, spacing, steps, interval):
    even, level = CachePolicy((1, 0), interval=interval), CachePolicy.level("fast", steps)
    assert even.plan(range(steps)).count(True) == level.full_steps
    exact, by_even, by_level = (latents(digits_model, name, spacing, steps, each) for each in (None, even, level))
    assert (by_level - exact).norm() <= (by_even - exact).norm()


def test_the_level_of_a_video_is_no_worse_than_even_steps(digits_video_model):
    even, level = CachePolicy((1, 0), interval=3), CachePolicy.level("fast", 20)
    exact, by_even, by_level = (latents(digits_video_model, "dpm++", "lu", 20, each) for each in (None, even, level))
    assert (by_level - exact).norm() <= (by_even - exact).norm()


@pytest.fixture(scope="module")
def digits_video_model():
    from skipdit_cli.presets import load_preset

    return load_preset("digits-video").weights_path


def latents(model, name, spacing, steps, policy):
    """The latents of four samples of an embedded model."""
    from skipdit_cli import load_pipeline
    from skipdit_cli.sampling.generate import generate
    from skipdit_cli.sampling.schedulers.sampler import Sampler

    settings = {"scheduler": Sampler(name, spacing), "num_inference_steps": steps, "guidance_scale": 1.5}
    return generate(load_pipeline(model), range(4), policy=policy, decode=False, **settings).latents
