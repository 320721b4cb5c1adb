"""``enable_skip_cache`` on a whole pipeline: by a level, a policy or a plan."""

import diffusers
import pytest
import torch

from skipdit_cli import CachePolicy, disable_skip_cache, enable_skip_cache, load_pipeline
from skipdit_cli.errors import UsageError
from skipdit_cli.planning.plan import Plan, make_made_for, save_plan
from skipdit_cli.planning.searching.candidate import Candidate
from skipdit_cli.sampling.schedulers import Sampler
from tests.support.tiny_dit_runs import traces
from tests.support.tiny_pipelines import wan


def call(pipe, steps):
    generator = torch.Generator().manual_seed(0)
    return pipe([1], num_inference_steps=steps, generator=generator, output_type="pt").images


def test_a_level_follows_the_steps_and_the_scheduler_of_each_call(tiny_pipeline):
    pipe = load_pipeline(tiny_pipeline())
    clean = traces(pipe.transformer)
    cache = enable_skip_cache(pipe, "balanced")
    for steps in (20, 12):
        call(pipe, steps)
        assert cache.policy == CachePolicy.level("balanced", steps)
        assert cache.report().reused_steps == steps - cache.policy.full_steps
    pipe.scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
    call(pipe, 20)
    assert cache.policy == CachePolicy.level("balanced", 20).with_live_block()
    assert cache.report().reused_steps == 20 - cache.policy.full_steps
    disable_skip_cache(pipe)
    assert traces(pipe.transformer) == clean


def test_a_level_made_by_hand_keeps_a_live_block_under_a_scheduler_that_adds_noise(tiny_pipeline):
    pipe = load_pipeline(tiny_pipeline())
    pipe.scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
    level = CachePolicy.level("balanced", 20)
    by_hand = enable_skip_cache(pipe.transformer, level, pipe.scheduler)
    images = call(pipe, 20)
    assert by_hand.policy == level.with_live_block() != level
    enable_skip_cache(pipe, "balanced")
    assert torch.equal(call(pipe, 20), images)


def test_a_plan_brings_its_scheduler_until_the_cache_is_disabled(tiny_pipeline, tmp_path):
    pipe = load_pipeline(tiny_pipeline())
    candidate = Candidate(Sampler("dpm++", "lu"), 6, CachePolicy(1, full_steps=(0, 2, 4)))
    plan = Plan(candidate, make_made_for(pipe, candidate, 2.0, 3.5, {}))
    save_plan(plan, tmp_path / "plan.yaml")
    scheduler, uncached = pipe.scheduler, call(pipe, 6)
    for one in (plan, tmp_path / "plan.yaml", str(tmp_path / "plan.yaml")):
        cache = enable_skip_cache(pipe, one)
        assert isinstance(pipe.scheduler, diffusers.DPMSolverMultistepScheduler)
        call(pipe, 6)
        assert cache.report().reused_steps == 3
    with pytest.raises(UsageError, match="made for 6 steps but the run has 7"):
        call(pipe, 7)
    disable_skip_cache(pipe)
    assert pipe.scheduler is scheduler and torch.equal(call(pipe, 6), uncached)
    with pytest.raises(UsageError, match="give the whole pipeline"):
        enable_skip_cache(pipe.transformer, plan)


def test_two_transformers_get_a_cache_each():
    pipe = wan(two=True)
    caches = enable_skip_cache(pipe, CachePolicy(1))
    assert [cache.transformer for cache in caches] == [pipe.transformer, pipe.transformer_2]
    disable_skip_cache(pipe)
    assert not any(cache.enabled for cache in caches)


@pytest.mark.parametrize(
    ("policy", "message"),
    [("balance", "Did you mean 'balanced'"), (3, "Got a int for the cache"), ("none.yaml", "is no file")],
)
def test_what_is_no_cache_is_refused(tiny_pipeline, policy, message):
    pipe = load_pipeline(tiny_pipeline())
    with pytest.raises(UsageError, match=message):
        enable_skip_cache(pipe, policy)
    with pytest.raises(UsageError, match="without a scheduler"):
        enable_skip_cache(pipe.transformer, "fast")
