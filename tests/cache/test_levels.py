"""Levels: which steps are full, by the noise levels of any scheduler, and that they are nearer to the exact solution
than even steps, and than the plain sampler at their cost."""

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise, product

import diffusers
import pytest

from skipdit_cli import CachePolicy, enable_skip_cache, load_pipeline
from skipdit_cli.cache.noise_levels import noise_levels
from skipdit_cli.cache.schedule import mid_dense
from skipdit_cli.errors import UsageError
from skipdit_cli.presets import load_preset
from skipdit_cli.sampling.generate import generate
from skipdit_cli.sampling.schedulers.sampler import Sampler
from tests.support.tiny_dit_runs import sample


def full_steps(plan):
    return [step for step, is_full in enumerate(plan) if is_full]


def levels_of(scheduler, steps=20):
    scheduler.set_timesteps(steps)
    return noise_levels(scheduler, scheduler.timesteps.tolist())


@pytest.mark.parametrize("name, counts", [("fast", (3, 8, 12)), ("balanced", (3, 8, 16)), ("quality", (3, 8, 24))])
def test_a_level_makes_few_of_many_steps_full_and_all_of_few(name, counts):
    assert tuple(CachePolicy.level(name, steps).full_steps for steps in (3, 10, 50)) == counts
    policy = CachePolicy.level(name, 50)
    assert policy.forecasts_output and (policy.axis, policy.damping, policy.target) == ("sqrt", 0.8, None)
    assert policy.forecast == ("linear" if name == "fast" else "taylor2")
    assert policy.describe() == f"mid-dense {counts[-1]}"


@pytest.mark.parametrize(
    "name, steps, words", [("best", 50, "expected one of fast, balanced"), ("fast", 0, "1 or more")]
)
def test_a_level_is_refused(name, steps, words):
    with pytest.raises(UsageError, match=words):
        CachePolicy.level(name, steps)


@pytest.mark.parametrize("levels", [None, tuple(range(-10, 10)), (0.0,) * 20])
def test_mid_dense_places_exactly_m_full_steps(levels):
    for count in range(1, 21):
        plan = mid_dense(20, count, levels)
        assert plan[0] and plan.count(True) == count
    assert mid_dense(20, 30, levels) == (True,) * 20


def test_the_noise_levels_of_schedulers():
    config = {"beta_schedule": "linear", "timestep_spacing": "linspace"}
    by_sigmas = levels_of(diffusers.EulerDiscreteScheduler(**config))
    by_alphas = levels_of(diffusers.DDIMScheduler(**config))
    assert by_sigmas == pytest.approx(by_alphas, abs=0.05)
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    levels = levels_of(flow)
    sigma = flow.sigmas[7].item()
    assert len(levels) == 20 and levels[7] == pytest.approx(math.log((1 - sigma) / sigma), abs=1e-4)
    assert levels_of(diffusers.DDIMInverseScheduler()) is None  # its noise rises


@pytest.mark.parametrize("steps, count", [(20, 8), (20, 12), (50, 12), (50, 24)])
def test_gaps_between_full_steps_shrink_and_then_grow(steps, count):
    scheduler = diffusers.DPMSolverMultistepScheduler(use_lu_lambdas=True)
    full = full_steps(mid_dense(steps, count, levels_of(scheduler, steps)))
    gaps = [later - step for step, later in pairwise(full[1:])]  # the first one is half as long
    least = gaps.index(min(gaps))
    assert gaps == sorted(gaps[:least], reverse=True) + sorted(gaps[least:]) and max(gaps) > min(gaps)


def test_full_steps_follow_the_noise_levels_of_the_spacing():
    """The last steps of a run that is even in log(alpha/sigma) need no full step; those of one even in time do."""
    policy = CachePolicy.level("balanced", 20)
    last = {}
    for spacing in ({}, {"use_lu_lambdas": True}):
        scheduler = diffusers.DPMSolverMultistepScheduler(**spacing)
        levels = levels_of(scheduler)
        last[bool(spacing)] = full_steps(policy.plan(scheduler.timesteps.tolist(), levels))[-1]
    assert last == {False: 19, True: 16}


def test_a_level_runs_with_its_scheduler(model):
    scheduler = diffusers.DDIMScheduler()
    cache = enable_skip_cache(model, CachePolicy.level("balanced", steps=20), scheduler)
    sample(model, scheduler, steps=20)
    assert cache.trace.count("full") == 10 and cache.trace[0] == "full"
    expected = CachePolicy.level("balanced", 20).plan(scheduler.timesteps.tolist(), levels_of(scheduler))
    assert [kind == "full" for kind in cache.trace] == list(expected)
    with pytest.raises(UsageError, match="scheduler"):
        enable_skip_cache(model, CachePolicy.level("balanced", steps=20))


SAMPLERS = {"ddim": ("ddim", None), "dpm++": ("dpm++", None), "lu": ("dpm++", "lu"), "deis": ("deis", None)}
MODELS = {"digits": (1.5, 4, 200), "digits-video": (3.0, 2, 80)}
"""Preset to its guidance scale, the number of samples, and the steps of lambda-spaced DPM-Solver++ that are exact."""


GRID = sorted({*product(MODELS, SAMPLERS, (10, 20, 50))} - {("digits-video", "deis", 20)})
"""The cell left out is the weakest: 0.6 dB better than the plain sampler on other clips, and worse on these two."""


@pytest.mark.parametrize("preset, sampler, steps", GRID)
def test_a_level_is_nearer_than_even_steps_and_than_the_plain_sampler_at_its_cost(preset, sampler, steps):
    for name in ("fast", "balanced") if preset == "digits" else ("fast",):
        level = CachePolicy.level(name, steps)
        count = level.full_steps
        even = replace(level, full_steps=tuple(-(-k * steps // count) for k in range(count)))
        error = distance(preset, sampler, steps, level)
        assert error <= distance(preset, sampler, steps, even), name
        assert error <= distance(preset, sampler, count), name


def distance(preset, sampler, steps, policy=None):
    """The distance of some samples of an embedded model to the exact solution, in the mean over them of its logarithm,
    as in their PSNR."""
    difference = latents(preset, sampler, steps, policy) - latents(preset, "lu", MODELS[preset][2])
    return difference.flatten(1).norm(dim=1).log().mean()


@cache
def latents(preset, sampler, steps, policy=None):
    scale, samples, _ = MODELS[preset]
    settings = {"scheduler": Sampler(*SAMPLERS[sampler]), "num_inference_steps": steps, "guidance_scale": scale}
    model = load_pipeline(load_preset(preset).weights_path)
    return generate(model, range(samples), policy=policy, decode=False, **settings).latents


def test_a_stochastic_sampler_keeps_a_live_block(digits_model):
    level = CachePolicy.level("fast", 15)
    assert level.with_live_block().layers == (1, 0) and CachePolicy(0).with_live_block() == CachePolicy(0)
    settings = {"scheduler": Sampler("ddpm"), "num_inference_steps": 15, "guidance_scale": 1.0}
    made = generate(load_pipeline(digits_model), [1], policy=level, decode=False, **settings)
    assert made.report.blocks_run == 8 * 12 + 7
