"""The probe trigger: full steps where the output of the first blocks has changed enough."""

import diffusers
import pytest
import torch

from skipdit_cli import CachePolicy, add_skip_branches, enable_skip_cache
from skipdit_cli.cache.trigger import MOST_REUSED, simulate
from skipdit_cli.errors import UsageError
from tests.support.tiny_dit_runs import guided, inputs, noise, run, sample, train_a_little
from tests.support.tiny_transformers import arguments, tiny, tiny_text_transformer
from tests.support.tiny_transformers import run as run_any


def scaled(model, factor):
    """Run one forward whose shallow output has changed the more, the further ``factor`` is from that of the last."""
    return run(model, hidden_states=factor * inputs()["hidden_states"])


def test_a_full_step_falls_where_the_summed_change_passes_the_threshold(tiny_dit):
    model = tiny_dit()
    cache = enable_skip_cache(model, CachePolicy((1, 0), threshold=0.1, forecast="reuse"))
    for factor in (1, 1.01, 1.02, 2, 2.01, 2.02):
        scaled(model, factor)
    assert cache.trace == ["full", "reused", "reused", "full", "reused", "reused"]
    report = cache.report()
    assert (report.reused_steps, report.triggered_steps, report.blocks_run) == (4, 1, 2 * 6 + 4)
    assert str(report).endswith("1 full by the threshold")
    assert cache.changes[0] is None and [len(change) for change in cache.changes[1:]] == [2] * 5


def test_roots_of_the_changes_are_summed_for_a_forecast_through_several_full_steps(tiny_dit):
    measured = {}
    for forecast in ("reuse", "linear", "taylor2"):
        model = tiny_dit()
        cache = enable_skip_cache(model, CachePolicy((1, 0), threshold=9, forecast=forecast))
        scaled(model, 1), scaled(model, 1.1)
        measured[forecast] = cache.changes[1]
    torch.testing.assert_close(measured["linear"] ** 2, measured["reuse"])
    torch.testing.assert_close(measured["taylor2"] ** 3, measured["reuse"])


def test_small_changes_add_up(tiny_dit):
    model = tiny_dit()
    cache = enable_skip_cache(model, CachePolicy((1, 0), threshold=0.1, forecast="reuse"))
    for step in range(6):
        scaled(model, 1 + 0.04 * step)
    assert "full" in cache.trace[1:] and max(float(change.max()) for change in cache.changes[1:]) < 0.1


def test_the_sample_that_changes_most_decides(tiny_dit):
    model = tiny_dit()
    cache = enable_skip_cache(model, CachePolicy((1, 0), threshold=0.5, forecast="reuse"))
    scaled(model, 1)
    one_changed = inputs()["hidden_states"].clone()
    one_changed[1] *= 5
    run(model, hidden_states=one_changed)
    assert cache.trace == ["full", "full"]
    assert float(cache.changes[1].min()) == 0


def test_without_change_the_limit_of_reused_steps_makes_full_ones(tiny_dit):
    model = tiny_dit()
    cache = enable_skip_cache(model, CachePolicy((1, 0), threshold=1e9))
    for _ in range(2 * MOST_REUSED + 3):
        run(model)
    assert cache.trace == (["full"] + ["reused"] * MOST_REUSED) * 2 + ["full"]
    assert cache.report().triggered_steps == 0


def test_a_step_that_turns_full_is_bit_for_bit_an_uncached_one(tiny_dit):
    """The sources of all branches are kept, and the boundary is remembered for the steps after it."""
    model, plain = tiny_dit(), tiny_dit()
    branches = train_a_little(add_skip_branches(model))
    add_skip_branches(plain, branches=branches)
    cache = enable_skip_cache(model, CachePolicy((2, 1), threshold=0.1, forecast="reuse"))
    scaled(model, 1)
    assert torch.equal(scaled(model, 3), scaled(plain, 3)) and cache.trace == ["full", "full"]
    assert torch.equal(scaled(model, 3), scaled(plain, 3)) and cache.trace[-1] == "reused"


def test_a_reused_step_runs_the_live_blocks_alone(tiny_dit):
    model, ran = tiny_dit(), []
    train_a_little(add_skip_branches(model))
    enable_skip_cache(model, CachePolicy((2, 1), threshold=0.1, forecast="reuse"))
    scaled(model, 1)
    for i, block in enumerate(model.transformer_blocks):
        block.attn1.register_forward_hook(lambda *_, i=i: ran.append(i))
    scaled(model, 1.01)
    assert ran == [0, 1, 5]


def test_a_run_equals_the_static_one_of_the_same_full_steps(tiny_dit):
    model, scheduler = tiny_dit(), diffusers.DDIMScheduler()
    cache = enable_skip_cache(model, CachePolicy((1, 0), threshold=0.7), scheduler)
    first, second = sample(model, scheduler), sample(model, scheduler)
    assert torch.equal(first, second) and len(cache.trace) == 10
    full = tuple(step for step, kind in enumerate(cache.trace) if kind == "full")
    assert 1 < len(full) < 10
    assert simulate(cache.changes, 0.7) == tuple(kind == "full" for kind in cache.trace)
    enable_skip_cache(model, CachePolicy((1, 0), full_steps=full), scheduler)
    assert torch.equal(sample(model, scheduler), first)


@pytest.mark.parametrize("order", [lambda step: (0, 1), lambda step: (0, 1, 2)])
def test_all_branches_of_guidance_decide_alike(tiny_dit, order):
    model, scheduler = tiny_dit(), diffusers.DDIMScheduler()
    cache = enable_skip_cache(model, CachePolicy((1, 0), threshold=0.1, forecast="reuse"), scheduler)
    sample(model, scheduler, call=guided(order))
    count = len(order(0))
    steps = [cache.trace[at : at + count] for at in range(0, len(cache.trace), count)]
    assert all(len(set(step)) == 1 for step in steps) and {step[0] for step in steps} == {"full", "reused"}
    assert len(cache.changes) == len(steps)


@pytest.mark.parametrize(
    "policy", [CachePolicy((1, 0), threshold=0.1, forecast="reuse"), CachePolicy((1, 0), interval=2)]
)
def test_a_step_reads_one_value_from_the_device_at_most(tiny_dit, policy, monkeypatch):
    """Static plans read none."""
    model, scheduler, reads = tiny_dit(), diffusers.DDIMScheduler(), []
    cache = enable_skip_cache(model, policy, scheduler)
    to_bool = torch.Tensor.__bool__

    def call(model, x, t):
        reads.append(0)
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "__bool__", count)
            return noise(model, x, t, torch.arange(2))

    def count(tensor):
        reads[-1] += 1
        return to_bool(tensor)

    sample(model, scheduler, call=call)
    assert "reused" in cache.trace
    assert max(reads) == (1 if policy.threshold else 0)


def test_a_step_that_another_branch_opens_is_full(tiny_dit):
    """Its change is not known. A polynomial through full steps that lie together is not used far behind them."""
    model, scheduler = tiny_dit(), diffusers.DDIMScheduler()
    cache = enable_skip_cache(model, CachePolicy((1, 0), threshold=1e9), scheduler)
    sample(model, scheduler, call=guided(lambda step: (0, 1) if step != 3 else (1, 0)))
    kinds = cache.trace[::2]
    assert [step for step, kind in enumerate(kinds) if kind == "full"] == [0, 3, 4, 6, 9]


def test_a_threshold_below_every_change_is_said(tiny_dit):
    model, scheduler = tiny_dit(), diffusers.DDIMScheduler()
    cache = enable_skip_cache(model, CachePolicy((1, 0), threshold=1e-9), scheduler)
    with pytest.warns(UserWarning, match="reused none of 10 steps; its threshold of 1e-09 was passed in each"):
        sample(model, scheduler)
    assert cache.report().triggered_steps == 9


def test_not_a_number_makes_a_step_full(tiny_dit):
    model = tiny_dit()
    cache = enable_skip_cache(model, CachePolicy((1, 0), threshold=1e9))
    scaled(model, 1), scaled(model, float("nan"))
    assert cache.trace == ["full", "full"]


def test_the_memory_is_released_after_the_generation(tiny_dit):
    model, scheduler = tiny_dit(), diffusers.DDIMScheduler()
    cache = enable_skip_cache(model, CachePolicy((1, 0), threshold=0.1, forecast="reuse"), scheduler)
    sample(model, scheduler)
    assert cache.peak_bytes > 0 and cache.trigger.probe is None


@pytest.mark.parametrize("name", ["LatteTransformer3DModel", "FluxTransformer2DModel", "WanTransformer3DModel"])
def test_any_layout(name):
    model = tiny_text_transformer() if name.startswith("Latte") else tiny(name)
    example = arguments(model)
    cache = enable_skip_cache(model, CachePolicy((1, 0), threshold=0.1, forecast="reuse"))
    full, reused = (run_any(model, example) for _ in range(2))
    assert cache.trace == ["full", "reused"] and torch.equal(full, reused)


# Refusals


@pytest.mark.parametrize(
    "values, message",
    [
        ({"layers": 1, "threshold": 0}, "--cache-threshold 0 but expected a finite number above 0"),
        ({"layers": 1, "threshold": float("inf")}, "finite number"),
        ({"layers": 1, "threshold": "0.1"}, "finite number"),
        ({"layers": 1, "threshold": 0.1, "interval": 2}, "give one rule"),
        ({"layers": 1, "threshold": 0.1, "window": (700, 50)}, "give one rule"),
        ({"layers": 1, "threshold": 0.1, "full_steps": 5}, "give one rule"),
        ({"layers": (0, 1), "threshold": 0.1}, "one or more at the front"),
        ({"layers": 0, "threshold": 0.1}, "one or more at the front"),
    ],
)
def test_a_policy_with_a_bad_threshold_is_refused(values, message):
    with pytest.raises(UsageError, match=message):
        CachePolicy(**values)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_transformer_is_refused(tiny_dit, in_place):
    model = tiny_dit()
    compiled = model if in_place else torch.compile(model)
    if in_place:
        model.compile()
    with pytest.raises(UsageError, match="Got a cache threshold for a compiled transformer"):
        enable_skip_cache(compiled, CachePolicy((1, 0), threshold=0.1, forecast="reuse"))
    enable_skip_cache(compiled, CachePolicy((1, 0)))
