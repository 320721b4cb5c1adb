"""DESIGN section 5: one generation, one state."""

import copy
import pickle
import warnings

import diffusers
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from skipdit_cli import CachePolicy, disable_skip_cache, enable_skip_cache, remove_skip_branches
from skipdit_cli.cache import FORECASTS, TARGETS
from skipdit_cli.cache.forecast import weights
from skipdit_cli.cache.generation.steps import CountedSteps
from skipdit_cli.errors import UsageError
from skipdit_cli.trunk import attached_trunk
from tests.support.tiny_dit_runs import (
    copy_without_cache,
    guided,
    inputs,
    noise,
    reference,
    run,
    sample,
    traces,
)


def blocks_that_run(model):
    ran = []
    for i, block in enumerate(model.transformer_blocks):
        block.attn1.register_forward_hook(lambda *_, i=i: ran.append(i))
    return ran


# Schedules


def test_every_kth_step_is_full():
    assert CachePolicy(1, interval=3).plan([0] * 7) == (True, False, False, True, False, False, True)
    assert CachePolicy(1).plan([0] * 4) == CachePolicy(1, interval=2).plan([0] * 4) == (True, False, True, False)


@pytest.mark.parametrize(
    "timesteps, interval, window, reused",
    [
        (range(980, -1, -20), 2, (700, 50), 17),  # T2V N2-700-50, recorded from the official code
        (range(980, -1, -20), 3, (700, 50), 22),
        (range(980, -1, -20), 4, (700, 50), 25),
    ],
)
def test_the_official_windows(timesteps, interval, window, reused):
    plan = CachePolicy(1, interval=interval, window=window).plan(list(timesteps))
    assert plan.count(False) == reused
    assert all(plan[i] for i, t in enumerate(timesteps) if t >= window[0])
    first_after = next(i for i, t in enumerate(timesteps) if t <= window[1]) + 1
    assert all(plan[first_after:])


@pytest.mark.parametrize("steps", [1, 5, 20, 50, 250])
def test_late_dense_places_exactly_m_full_steps(steps):
    for count in range(1, steps + 1):
        plan = CachePolicy(1, full_steps=count).plan([0] * steps)
        assert plan.count(True) == count and plan[0]


def test_late_dense_is_dense_late():
    plan = CachePolicy(1, full_steps=13).plan([0] * 50)
    full = [step for step, is_full in enumerate(plan) if is_full]
    assert full == [0, 6, 12, 17, 22, 27, 32, 36, 40, 43, 46, 48, 49]


def test_an_explicit_list_is_taken_as_it_is():
    assert CachePolicy(1, full_steps=(3, 0, 3)).plan([0] * 5) == (True, False, False, True, False)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"layers": -1}, "--cache-layers -1"),
        ({"layers": (1, -1)}, "--cache-layers 1:-1"),
        ({"layers": (1, 2, 3)}, "FRONT:BACK"),
        ({"layers": 0, "target": "residual"}, "--cache-layers 0"),
        ({"layers": 1, "damping": 1.5}, "--forecast-damping 1.5"),
        ({"layers": 1, "interval": 0}, "--cache-interval 0"),
        ({"layers": 1, "window": (50, 700)}, "START > END"),
        ({"layers": 1, "forecast": "tailor"}, "reuse, linear, taylor2"),
        ({"layers": 1, "target": "bound"}, "boundary, residual"),
        ({"layers": 1, "full_steps": 0}, "--full-steps 0"),
        ({"layers": 1, "full_steps": ()}, "step indices"),
        ({"layers": 1, "full_steps": (-1, 2)}, "step indices"),
        ({"layers": 1, "full_steps": 5, "interval": 2}, "one of the two"),
        ({"layers": "1"}, "--cache-layers '1'"),
        ({"layers": 1.5}, "--cache-layers 1.5"),
        ({"layers": 1, "interval": 2.5}, "--cache-interval 2.5"),
        ({"layers": 1, "window": 700}, "two timesteps"),
        ({"layers": 1, "window": (900, 700, 50)}, "two timesteps"),
        ({"layers": 1, "full_steps": 2.0}, "whole number"),
        ({"layers": 1, "full_steps": ("a",)}, "tuple of step indices"),
    ],
)
def test_bad_policies(arguments, words):
    with pytest.raises(UsageError, match=words.replace("(", r"\(")):
        CachePolicy(**arguments)


def test_a_schedule_for_more_steps_is_refused(model):
    scheduler = diffusers.DDIMScheduler()
    enable_skip_cache(model, CachePolicy(1, full_steps=(0, 12)), scheduler)
    with pytest.raises(UsageError, match="another --num-inference-steps"):
        sample(model, scheduler)
    enable_skip_cache(model, CachePolicy(1, full_steps=11), scheduler)
    with pytest.raises(UsageError, match="10 steps"):
        sample(model, scheduler)


@pytest.mark.parametrize("layers", [3, 4, 100])
def test_too_deep_is_refused(model, layers):
    with pytest.raises(UsageError, match=f"--cache-layers {layers} leaves nothing to cache.*valid 1..2"):
        enable_skip_cache(model, CachePolicy(layers))


@pytest.mark.parametrize("num_layers, has", [(1, "1 block, and"), (2, "2 blocks, and")])
def test_too_few_blocks_for_any_cache(tiny_dit, num_layers, has):
    with pytest.raises(UsageError, match=f"the model has {has} a cache of both ends needs 3 or more"):
        enable_skip_cache(tiny_dit(num_layers=num_layers), CachePolicy(1))


# Forecasts


@pytest.mark.parametrize("forecast, degree", [("reuse", 0), ("linear", 1), ("taylor2", 2)])
def test_forecasts_are_exact_on_polynomials(forecast, degree):
    times, at = [400.0, 650.0, 700.0], 330.0

    def value(t):
        return sum((t / 100) ** power for power in range(degree + 1))

    predicted = sum(w * value(t) for w, t in zip(weights(forecast, times, at), times))
    assert predicted == pytest.approx(value(at))
    assert weights(forecast, times, 400.0)[0] == 1 and not any(weights(forecast, times, 400.0)[1:])


# Exactness


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("forecast", FORECASTS)
@pytest.mark.parametrize("with_branches", [True, False])
def test_a_reused_step_at_the_same_input_is_the_full_one(model, forecast, target, with_branches):
    if not with_branches:
        remove_skip_branches(model)
    expected = run(model)
    cache = enable_skip_cache(model, CachePolicy(2, interval=3, forecast=forecast, target=target))
    assert all(torch.equal(run(model), expected) for _ in range(8))
    assert cache.trace == ["full", "reused", "reused"] * 2 + ["full", "reused"]


def test_interval_1_is_no_cache(model):
    expected = sample(model, diffusers.DDIMScheduler())
    scheduler = diffusers.DDIMScheduler()
    cache = enable_skip_cache(model, CachePolicy(1, interval=1), scheduler)
    assert torch.equal(sample(model, scheduler), expected)
    assert cache.trace == ["full"] * 10


@pytest.mark.parametrize("layers", [1, 2])
def test_a_reused_step_runs_the_outer_blocks_on_the_old_boundary(model, layers):
    blocks, branches = model.transformer_blocks, model.skip_branches
    boundary = {}
    handle = blocks[6 - layers - 1].register_forward_hook(lambda m, a, out: boundary.update(old=out))
    cache = enable_skip_cache(model, CachePolicy(layers, forecast="reuse"))
    run(model)
    handle.remove()
    ran = blocks_that_run(model)
    got = run(model, hidden_states=inputs(seed=5)["hidden_states"])
    assert ran == [*range(layers), *range(6 - layers, 6)]
    assert cache.trace == ["full", "reused"]

    disable_skip_cache(model)
    remove_skip_branches(model)
    arguments = {key: value for key, value in inputs(seed=5).items() if key != "hidden_states"}
    with torch.no_grad():
        x, sources = model.pos_embed(inputs(seed=5)["hidden_states"]), []
        for block in blocks[:layers]:
            x = block(x, **arguments)
            sources.append(x)
        x = boundary["old"]
        for block in blocks[6 - layers :]:
            pair = len(sources) - 1
            x = block(branches(x, sources.pop(), pair), **arguments)
        blocks[-1].register_forward_hook(lambda *_: x)  # the model's own head on our x
        expected = run(model, hidden_states=inputs(seed=5)["hidden_states"])
    assert torch.allclose(got, expected, atol=1e-6)


def test_thirteen_late_dense_full_steps_beat_twenty_five_uniform_ones(digits_model):
    from skipdit_cli import load_pipeline
    from skipdit_cli.sampling.generate import generate

    pipe = load_pipeline(digits_model)

    def latents(policy=None):
        return generate(pipe, range(10), guidance_scale=1.5, policy=policy, decode=False).latents

    exact = latents()
    uniform = latents(CachePolicy(1, interval=2, forecast="reuse")) - exact
    late = latents(CachePolicy(1, full_steps=13)) - exact
    assert late.norm() < uniform.norm()


# One state per generation


@pytest.mark.parametrize("target", TARGETS)
def test_a_second_request_equals_a_fresh_process(model, target):
    def fresh(seed):
        own, scheduler = copy.deepcopy(model), diffusers.DDIMScheduler()
        enable_skip_cache(own, CachePolicy(1, interval=3, forecast="taylor2", target=target), scheduler)
        return sample(own, scheduler, seed=seed)

    scheduler = diffusers.DDIMScheduler()
    cache = enable_skip_cache(model, CachePolicy(1, interval=3, forecast="taylor2", target=target), scheduler)
    for seed in (0, 1):
        assert torch.equal(sample(model, scheduler, seed=seed), fresh(seed))
        assert len(cache.trace) == 10


def test_a_broken_loop_leaves_nothing_behind(model):
    scheduler = diffusers.DDIMScheduler()
    enable_skip_cache(model, CachePolicy(1), scheduler)
    expected = sample(model, scheduler, seed=1)

    def breaks(model, x, t):
        if t < 500:
            raise KeyboardInterrupt
        return noise(model, x, t, torch.arange(len(x)))

    with pytest.raises(KeyboardInterrupt):
        sample(model, scheduler, call=breaks)
    assert torch.equal(sample(model, scheduler, seed=1), expected)


def test_an_exception_within_a_block_is_followed_by_a_full_step(model):
    cache = enable_skip_cache(model, CachePolicy(1, interval=4))
    expected = run(model)
    handle = model.transformer_blocks[5].attn1.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(model)
    handle.remove()
    assert torch.equal(run(model), expected)
    assert cache.trace == ["full", "full"]


@pytest.mark.parametrize(
    "changed",
    [
        inputs(batch=1),
        {**inputs(), "hidden_states": torch.zeros(2, 1, 4, 4)},
        {**inputs(), "timestep": torch.tensor([500.0, 500.0])},
    ],
    ids=["batch", "resolution", "dtype"],
)
def test_a_change_of_shape_or_dtype_is_a_full_step(model, changed):
    expected = run(copy_without_cache(model), **changed)
    cache = enable_skip_cache(model, CachePolicy(1, interval=4))
    run(model)
    assert torch.equal(run(model, **changed), expected)
    assert cache.trace == ["full", "full"]
    run(model, **changed)
    assert cache.trace == ["full", "full", "reused"]


def test_gradients_and_training_mode_bypass(model):
    cache = enable_skip_cache(model, CachePolicy(1))
    for _ in range(3):
        model(**inputs()).sample.mean().backward()
    model.train()
    run(model)
    assert cache.trace == ["full"] * 4
    model.eval()
    run(model)
    run(model)
    assert cache.trace[-2:] == ["full", "reused"]


def test_the_tensors_are_let_go_at_the_end(model):
    scheduler = diffusers.DDIMScheduler()
    cache = enable_skip_cache(model, CachePolicy(1, forecast="reuse"), scheduler)
    sample(model, scheduler)
    assert cache.slots == {} and cache.peak_bytes == 2 * 16 * 16 * 4  # one boundary: batch, tokens, width, float32


# Guidance


@pytest.mark.parametrize(
    "order",
    [
        lambda step: (0, 1),
        lambda step: (1, 0),
        lambda step: (0, 1) if step % 2 else (1, 0),
        lambda step: (2, 0, 1),
        lambda step: (1, 0) if step < 4 else (0,),
        lambda step: (0, 1) if step < 4 else (0,),
        lambda step: (0,) if step < 4 else (1, 0),
        lambda step: (0,) if 2 < step < 7 else (1, 0),
    ],
    ids=[
        "cond first",
        "uncond first",
        "either",
        "three",
        "off mid-run",
        "off mid-run, cond first",
        "on",
        "off and on",
    ],
)
def test_guidance_in_several_calls(model, order):
    policy = CachePolicy(1, interval=3, forecast="linear")
    expected = reference(model, order, policy)
    scheduler = diffusers.DDIMScheduler()
    cache = enable_skip_cache(model, policy, scheduler)
    assert torch.equal(sample(model, scheduler, call=guided(order)), expected)
    assert "reused" in cache.trace


def test_another_prompt_mid_run_is_a_full_step(model):
    scheduler = diffusers.DDIMScheduler()
    cache, step = enable_skip_cache(model, CachePolicy(1, interval=20), scheduler), iter(range(100))
    sample(model, scheduler, call=lambda m, x, t: noise(m, x, t, torch.tensor([0, 1 if next(step) < 5 else 7])))
    assert [i for i, kind in enumerate(cache.trace) if kind == "full"] == [0, 5]


def test_calls_with_the_same_tensors_are_told_apart_without_comparing_values(model, monkeypatch):
    scheduler = diffusers.DDIMScheduler()
    cache = enable_skip_cache(model, CachePolicy(1), scheduler)
    labels = [torch.tensor([3, 3]), torch.tensor([10, 10])]

    def compared(*tensors):
        raise AssertionError("values were compared, which waits for a device")

    monkeypatch.setattr(torch, "equal", compared)

    def call(m, x, t):
        return sum(noise(m, x, t, each) for each in labels)

    sample(model, scheduler, call=call)
    assert cache.trace == ["full", "full", "reused", "reused"] * 5


def test_guidance_in_one_batch_switched_off_is_a_full_step(model):
    scheduler = diffusers.DDIMScheduler()
    cache = enable_skip_cache(model, CachePolicy(1, interval=20), scheduler)
    step = iter(range(100))

    def call(model, x, t):
        if next(step) < 5:
            return noise(model, torch.cat([x, x]), t, torch.tensor([0, 1, 10, 10]))[:2]
        return noise(model, x, t, torch.tensor([0, 1]))

    sample(model, scheduler, call=call)
    assert [i for i, kind in enumerate(cache.trace) if kind == "full"] == [0, 5]


def test_branches_are_told_apart_by_context_name(model):
    import contextlib

    entered = []

    @contextlib.contextmanager
    def cache_context(name):
        entered.append(name)
        yield

    model.cache_context = cache_context
    cache = enable_skip_cache(model, CachePolicy(1), diffusers.DDIMScheduler())
    cache.scheduler.set_timesteps(4)
    for name in ("cond", "uncond"):
        with model.cache_context(name):
            run(model)
    assert entered == ["cond", "uncond"] and set(cache.slots) == {"cond", "uncond"}
    disable_skip_cache(model)
    assert model.cache_context is cache_context


# Schedulers


def test_no_timestep_is_read_from_a_tensor(model):
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert function is not torch.ops.aten._local_scalar_dense.default, "a value was read from a tensor"
            return function(*args, **(kwargs or {}))

    scheduler = diffusers.DDIMScheduler()
    enable_skip_cache(model, CachePolicy(1, window=(900, 50), forecast="taylor2", target="residual"), scheduler)

    def call(model, x, t):
        if t == scheduler.timesteps[0]:
            return noise(model, x, t, torch.arange(2))
        with Watch():
            return noise(model, x, t, torch.arange(2))

    sample(model, scheduler, call=call)


def test_timesteps_that_start_later(model):
    scheduler = diffusers.EulerDiscreteScheduler()
    cache = enable_skip_cache(model, CachePolicy(1, full_steps=3), scheduler)
    scheduler.set_timesteps(10)
    scheduler.set_begin_index(4)  # image-to-image at strength 0.6
    x = torch.randn(2, 1, 8, 8)
    for t in scheduler.timesteps[4:]:
        with torch.no_grad():
            x = scheduler.step(noise(model, scheduler.scale_model_input(x, t), t, torch.arange(2)), t, x).prev_sample
    assert len(cache.plan) == 6 and cache.trace.count("full") == 3


def test_timesteps_that_start_later_where_the_scheduler_does_not_say(model):
    scheduler = diffusers.DDIMScheduler()  # has no begin_index; CogVideoX's video-to-video starts it in the middle
    cache = enable_skip_cache(model, CachePolicy(1, full_steps=3), scheduler)
    for start in (4, 0, 7):
        scheduler.set_timesteps(10)
        for t in scheduler.timesteps[start:]:
            with torch.no_grad():
                scheduler.step(noise(model, torch.randn(2, 1, 8, 8), t, torch.arange(2)), t, torch.randn(2, 1, 8, 8))
        assert len(cache.plan) == len(cache.trace) == 10 - start and cache.trace.count("full") == 3
        assert cache.slots == {}


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("forecast", FORECASTS)
def test_second_order_schedulers(model, name, forecast):
    scheduler = getattr(diffusers, name)()
    cache = enable_skip_cache(model, CachePolicy(1, forecast=forecast, target="residual"), scheduler)
    scheduler.set_timesteps(8)
    x = torch.randn(2, 1, 8, 8) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        with torch.no_grad():
            output = noise(model, scheduler.scale_model_input(x, t), t, torch.arange(2))
        x = scheduler.step(output, t, x).prev_sample
    assert torch.isfinite(x).all()
    assert len(cache.trace) == len(scheduler.timesteps)
    assert cache.trace[:2] == ["full", "reused"]


def test_a_scheduler_that_was_replaced_is_an_error(model):
    bound, used = diffusers.DDIMScheduler(), diffusers.DDIMScheduler()
    enable_skip_cache(model, CachePolicy(1), bound)
    bound.set_timesteps(10)
    with pytest.raises(UsageError, match="replaced"):
        sample(model, used, steps=20)


def test_late_dense_needs_a_scheduler(model):
    with pytest.raises(UsageError, match="scheduler"):
        enable_skip_cache(model, CachePolicy(1, full_steps=4))


def test_a_window_without_a_scheduler_reads_the_timestep(model):
    cache = enable_skip_cache(model, CachePolicy(1, interval=2, window=(1000, 20)))
    for t in (980, 890, 700, 640, 330, 90, 15, 5):
        run(model, timestep=torch.full((2,), t))
    assert [i for i, kind in enumerate(cache.trace) if kind == "reused"] == [1, 3, 5]


@pytest.mark.parametrize("forecast", FORECASTS)
def test_past_the_end_of_a_window_the_next_rise_begins_anew(model, forecast):
    """Without a scheduler: the count restarts and nothing of the run before is looked at."""
    cache = enable_skip_cache(model, CachePolicy(1, interval=2, window=(1000, 20), forecast=forecast))
    calls = [{**inputs(seed=t), "timestep": torch.full((2,), t)} for t in (980, 700, 330, 10)]
    first, second = [run(model, **call) for call in calls], [run(model, **call) for call in calls]
    assert cache.trace == ["full", "reused", "full", "reused"] * 2
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize(
    "policy", [CachePolicy(1, 3), CachePolicy(1, 3, (700, 50)), CachePolicy(1, full_steps=(0, 2, 7))]
)
def test_steps_decided_one_by_one_are_those_of_the_plan_and_nothing_of_them_is_kept(policy):
    timesteps, steps = list(range(995, 0, -5)), CountedSteps(policy)
    size, decided = len(pickle.dumps(steps)), []
    for _ in range(2 if policy.window else 1):
        for t in timesteps:
            steps.count_call(torch.tensor([t]), "DiTTransformer2DModel")
            decided.append(steps.next_is_full)
            steps.next += 1
    assert tuple(decided) == policy.plan(timesteps) * (2 if policy.window else 1)
    assert len(pickle.dumps(steps)) < size + 40


# Counts and traces


def test_the_report_counts_steps_and_blocks(model):
    scheduler = diffusers.DDIMScheduler()
    cache = enable_skip_cache(model, CachePolicy(1, interval=5), scheduler)
    sample(model, scheduler, call=guided(lambda step: (0, 1)))
    assert str(cache.report()) == "8 of 10 steps reused, 56 of 120 blocks run"


def test_a_cache_that_does_nothing_is_a_warning(model):
    scheduler = diffusers.DDIMScheduler()
    enable_skip_cache(model, CachePolicy(1), scheduler)

    def changes(model, x, t):
        size = 1 + int(t) // 100 % 2
        return noise(model, x[:size], t, torch.arange(size)).mean(0, keepdim=True).expand_as(x)

    with pytest.warns(UserWarning, match="reused none of 10 steps"):
        sample(model, scheduler, call=changes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        enable_skip_cache(model, CachePolicy(1, interval=1), scheduler)
        sample(model, scheduler)


def test_enable_and_disable_leave_no_trace(tiny_dit):
    model, scheduler = tiny_dit(), diffusers.DDIMScheduler()
    clean, before, keys = traces(model), run(model), set(scheduler.__dict__)
    for _ in range(2):
        enable_skip_cache(model, CachePolicy(1), scheduler)
        enable_skip_cache(model, CachePolicy(2), scheduler)
        disable_skip_cache(model)
        assert traces(model) == clean and set(scheduler.__dict__) == keys
        assert torch.equal(run(model), before)
    disable_skip_cache(model)


def test_offload_hooks_taken_off_between_runs(model):
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    for module in (model, *model.transformer_blocks):
        add_hook_to_module(module, ModelHook())
    scheduler = diffusers.DDIMScheduler()
    cache = enable_skip_cache(model, CachePolicy(1), scheduler)
    expected = sample(model, scheduler)
    remove_hook_from_module(model, recurse=True)  # puts back the forwards it found, without ours
    assert torch.equal(sample(model, scheduler), expected)
    assert cache.trace.count("reused") == 5


def test_two_models_on_one_scheduler(model, tiny_dit):
    other, scheduler = tiny_dit(seed=1), diffusers.DDIMScheduler()
    first = enable_skip_cache(model, CachePolicy(1), scheduler)
    second = enable_skip_cache(other, CachePolicy(2, interval=5), scheduler)
    sample(
        model, scheduler, call=lambda m, x, t: noise(m, x, t, torch.arange(2)) + noise(other, x, t, torch.arange(2))
    )
    assert (first.trace.count("reused"), second.trace.count("reused")) == (5, 8)
    disable_skip_cache(model)
    sample(other, scheduler)
    assert len(second.trace) == 10


def test_a_copy_with_the_cache_on_stands_alone(model):
    cache = enable_skip_cache(model, CachePolicy(1))
    expected = run(model)
    copied = copy.deepcopy(model)
    assert torch.equal(run(copied), expected)
    assert cache.trace == ["full"]


def test_a_copy_of_the_scheduler_alone_is_of_no_cache(model):
    scheduler = diffusers.DDIMScheduler()
    cache = enable_skip_cache(model, CachePolicy(1), scheduler)
    memo = {}
    sound = copy.deepcopy(scheduler, memo)
    assert not any(copied is model or isinstance(copied, type(model)) for copied in memo.values())

    def call(m, x, t):
        sound.step(x, t, x)  # as LTX2's pipeline does for what is heard
        return noise(m, x, t, torch.arange(2))

    sound.set_timesteps(10)
    sample(model, scheduler, call=call)
    assert cache.trace == ["full", "reused"] * 5


@pytest.mark.parametrize("first", ["model", "scheduler"])
def test_a_copy_of_both_stands_alone(model, first):
    scheduler = diffusers.DDIMScheduler()
    cache = enable_skip_cache(model, CachePolicy(1), scheduler)
    expected, trace = sample(model, scheduler), list(cache.trace)
    both = {"model": model, "scheduler": scheduler}
    copied = copy.deepcopy({name: both[name] for name in sorted(both, reverse=first == "scheduler")})
    assert torch.equal(sample(copied["model"], copied["scheduler"]), expected)
    assert not torch.equal(sample(copied["model"], copied["scheduler"], seed=1), expected)
    assert cache.trace == trace
    assert torch.equal(sample(model, scheduler), expected)
    disable_skip_cache(copied["model"])
    assert not any("caches" in vars(method) for method in vars(copied["scheduler"]).values() if callable(method))


@pytest.mark.parametrize("order", ["compiled first", "cached first"])
@pytest.mark.parametrize(
    "policy",
    [CachePolicy(1), CachePolicy((1, 0)), CachePolicy((2, 1)), CachePolicy(2, forecast="taylor2", target="residual")],
)
def test_compiles_into_two_graphs(model, order, policy):
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    expected, counter = run(model), CompileCounter()
    if order == "compiled first":
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        cache = enable_skip_cache(compiled, policy)
    else:
        cache = enable_skip_cache(model, policy)
        compiled = torch.compile(model, backend=counter)
    assert all(torch.equal(run(compiled), expected) for _ in range(8))
    assert cache.trace == ["full", "reused"] * 4
    assert counter.frame_count == 2


def test_a_copy_of_the_scheduler_alone_drives_no_cache_and_takes_no_model_along(model):
    """LTX-2 steps its sound with such a copy, in the loop that steps its pictures."""
    scheduler = diffusers.DDIMScheduler()
    cache = enable_skip_cache(model, CachePolicy(1), scheduler)
    scheduler.set_timesteps(10)
    second = copy.deepcopy(scheduler)
    assert len(pickle.dumps(second)) < len(pickle.dumps(model)) / 4
    expected = sample(model, scheduler)

    def between(model, x, t):
        output = noise(model, x, t, torch.arange(2))
        second.step(output, t, x)
        return output

    assert torch.equal(sample(model, scheduler, call=between), expected)
    assert cache.trace == ["full", "reused"] * 5


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize("model_first", [True, False])
def test_a_model_and_its_scheduler_copied_together_are_cached_as_they_were(model, duplicate, model_first):
    scheduler = diffusers.DDIMScheduler()
    cache = enable_skip_cache(model, CachePolicy(1), scheduler)
    expected = sample(model, scheduler)
    pair = duplicate([model, scheduler][:: 1 if model_first else -1])
    copied, own = pair[:: 1 if model_first else -1]
    disable_skip_cache(model)
    assert torch.equal(sample(copied, own), expected)
    assert attached_trunk(copied).cache.trace == ["full", "reused"] * 5
    assert cache is not attached_trunk(copied).cache
