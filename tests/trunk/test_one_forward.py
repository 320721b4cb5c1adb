"""The state of one forward belongs to that call: threads, nesting, exceptions; blocks compiled by themselves; other
caches; models that are let go; blocks that the model itself leaves out."""

import copy
import gc
import pickle
import threading
import weakref

import diffusers
import pytest
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig
from diffusers.hooks import HookRegistry, apply_first_block_cache

from skipdit_cli import CachePolicy, add_skip_branches, disable_skip_cache, enable_skip_cache, remove_skip_branches
from skipdit_cli.errors import UsageError
from skipdit_cli.families import FAMILIES
from tests.support.tiny_dit_runs import inputs, noise, sample, train_a_little
from tests.support.tiny_dit_runs import run as run_dit
from tests.support.tiny_transformers import arguments, run, tiny


def in_thread(work):
    """Run it in a thread; its result, or the exception."""
    found = []

    def guarded():
        try:
            found.append(work())
        except BaseException as problem:
            found.append(problem)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    return found[0]


def at_block(model, index, work):
    """Do something once, in the middle of the next forward: before block ``index`` runs."""
    done = []

    def before(*_):
        if not done:
            done.append(None)
            done[0] = work()

    model.transformer_blocks[index].register_forward_pre_hook(before)
    return done


@pytest.fixture
def undeclared(monkeypatch):
    """``undeclared(name)``: the family as if we had no declaration of it."""
    return lambda name: monkeypatch.delitem(FAMILIES, name)


@pytest.fixture
def model(tiny_dit):
    made = tiny_dit()
    train_a_little(add_skip_branches(made))
    return made


# Threads


@pytest.mark.parametrize("how", ["in a thread", "nested"])
@pytest.mark.parametrize("index", [2, 4])
def test_a_forward_within_another_changes_neither(model, how, index):
    first, second = run_dit(model), run_dit(model, **inputs(seed=5))
    other = lambda: run_dit(model, **inputs(seed=5))  # noqa: E731
    done = at_block(model, index, other if how == "nested" else lambda: in_thread(other))
    assert torch.equal(run_dit(model), first) and torch.equal(done[0], second)


@pytest.mark.parametrize("name", ["Flux2Transformer2DModel", "SD3Transformer2DModel"])
def test_threads_give_what_one_gives(name):
    model = tiny(name)
    train_a_little(add_skip_branches(model))
    given = [arguments(model, seed) for seed in (0, 1)]
    expected, made, start = [run(model, each) for each in given], {0: [], 1: []}, threading.Barrier(2)

    def work(at):
        start.wait()
        made[at] += [run(model, given[at]) for _ in range(10)]

    threads = [threading.Thread(target=work, args=(at,)) for at in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(made[at]) == 10 and all(torch.equal(x, expected[at]) for x in made[at]) for at in (0, 1))


def test_gradients_with_checkpointing_in_two_threads(model):
    model.enable_gradient_checkpointing()
    parameters = list(model.skip_branches.parameters())

    def gradients(seed):
        loss = model(**inputs(seed=seed)).sample.square().mean()
        return torch.autograd.grad(loss, parameters)

    expected = [gradients(seed) for seed in (0, 5)]
    done = at_block(model, 4, lambda: in_thread(lambda: gradients(5)))
    assert all(torch.equal(a, b) for a, b in zip(gradients(0), expected[0]))
    assert all(torch.equal(a, b) for a, b in zip(done[0], expected[1]))


def test_a_forward_that_raises_midway_leaves_nothing(model):
    expected, left = run_dit(model), []

    def interrupts(block, args, kwargs, output):
        left.append(weakref.ref(output))
        raise KeyboardInterrupt

    handle = model.transformer_blocks[2].register_forward_hook(interrupts, with_kwargs=True)
    with pytest.raises(KeyboardInterrupt):
        run_dit(model)
    handle.remove()
    gc.collect()
    assert left[0]() is None and torch.equal(run_dit(model), expected)


def test_a_block_alone_and_reentrant_checkpointing_are_refused(model):
    from torch.utils.checkpoint import checkpoint

    with pytest.raises(UsageError, match="ran without block 1"):
        model.transformer_blocks[4](torch.zeros(2, 16, 16), timestep=torch.zeros(2), class_labels=torch.arange(2))
    model.enable_gradient_checkpointing(lambda block, *args: checkpoint(block.__call__, *args, use_reentrant=True))
    hidden = {**inputs(), "hidden_states": inputs()["hidden_states"].requires_grad_()}
    loss = model(**hidden).sample.square().mean()
    with pytest.raises(UsageError, match="use_reentrant=False"):
        loss.backward()


@pytest.mark.parametrize("scheduled", [True, False])
@pytest.mark.parametrize("how", ["in a thread", "nested"])
def test_a_second_call_of_a_cache_is_refused_and_the_first_goes_on(model, scheduled, how):
    scheduler = diffusers.DDIMScheduler()
    own = scheduler if scheduled else None
    enable_skip_cache(model, CachePolicy(1, interval=2), own)
    expected = sample(model, scheduler)
    enable_skip_cache(model, CachePolicy(1, interval=2), own)

    def second():
        return noise(model, torch.zeros(2, 1, 8, 8), torch.tensor(500), torch.arange(2))

    def refused():
        with pytest.raises(UsageError, match="one cache serves one generation"):
            second()
        return "refused"

    done = at_block(model, 0, refused if how == "nested" else lambda: in_thread(refused))
    assert torch.equal(sample(model, scheduler), expected) and done == ["refused"]


def test_a_generation_is_of_one_thread_and_the_next_may_be_of_another(model):
    scheduler = diffusers.DDIMScheduler()
    cache = enable_skip_cache(model, CachePolicy(1), scheduler)
    expected = sample(model, scheduler)
    assert torch.equal(in_thread(lambda: sample(model, scheduler)), expected)
    assert torch.equal(sample(model, scheduler), expected)
    scheduler.set_timesteps(10)
    run_dit(model)
    assert isinstance(in_thread(lambda: run_dit(model)), UsageError)  # in the middle of ours
    assert torch.equal(in_thread(lambda: sample(model, scheduler)), expected)  # ours was left
    assert cache.trace == ["full", "reused"] * 5
    with pytest.raises(UsageError, match="one cache serves one generation"):
        run_dit(model)
    assert torch.equal(sample(model, scheduler), expected)


def test_two_models_with_caches_of_their_own_in_two_threads(model, tiny_dit):
    other, expected = tiny_dit(seed=1), []
    schedulers = [diffusers.DDIMScheduler(), diffusers.DDIMScheduler()]
    for each, scheduler in zip((model, other), schedulers):
        enable_skip_cache(each, CachePolicy(1), scheduler)
        expected.append(sample(each, scheduler))
    done = at_block(model, 2, lambda: in_thread(lambda: sample(other, schedulers[1])))
    assert torch.equal(sample(model, schedulers[0]), expected[0]) and torch.equal(done[0], expected[1])


def test_a_compiled_model_is_compiled_once_for_all_threads(model):
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    expected, counter = run_dit(model), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    run_dit(compiled)
    for work in (lambda: run_dit(compiled), lambda: run_dit(model)):
        assert torch.equal(in_thread(work), expected)
    assert torch.equal(run_dit(compiled), expected) and counter.frame_count == 1


# Blocks compiled by themselves


def flux(blocks=5):
    return tiny("FluxTransformer2DModel", num_layers=blocks, num_single_layers=blocks)


def compiled_graphs(model, given, calls=4):
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    model.compile_repeated_blocks(fullgraph=True, backend=counter)
    return counter, lambda: [run(model, given) for _ in range(calls)]


@pytest.mark.parametrize("what, blocks, first", [
    ("branches", 5, True), ("cache", 5, True), ("both", 5, True), ("both", 5, False), ("both", 20, False),
])  # fmt: skip
def test_one_graph_for_each_kind_of_block(what, blocks, first):
    torch._dynamo.reset()
    plain = flux(blocks)
    given = arguments(plain)
    counter, calls = compiled_graphs(plain, given)
    calls()
    expected = counter.frame_count
    torch._dynamo.reset()
    model = flux(blocks)
    if not first:
        counter, calls = compiled_graphs(model, given)
    if what != "cache":
        train_a_little(add_skip_branches(model), 0.02)
    joined = run(model, given) if first else None
    cache = enable_skip_cache(model, CachePolicy(1)) if what != "branches" else None
    if first:
        counter, calls = compiled_graphs(model, given)
    made = calls()
    assert all(torch.equal(x, made[0] if joined is None else joined) for x in made)
    assert counter.frame_count == expected
    assert cache is None or cache.trace == ["full", "reused"] * 2
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))) if blocks == 5 else ():
        disable_skip_cache(copied)
        assert torch.equal(run(copied, given), made[0])
    disable_skip_cache(model)
    remove_skip_branches(model)
    vanilla = run(plain, given)
    assert torch.equal(run(model, given), vanilla)


def test_blocks_that_torch_compile_has_replaced_keep_their_branches():
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    model, counter = flux(6), CompileCounter()
    given = arguments(model)
    train_a_little(add_skip_branches(model))
    joined = run(model, given)
    for blocks in (model.transformer_blocks, model.single_transformer_blocks):
        for at, block in enumerate(blocks):
            blocks[at] = torch.compile(block, backend=counter, fullgraph=True)
    assert torch.equal(run(model, given), joined) and torch.equal(run(model, given), joined)
    assert counter.frame_count <= 4


def test_hooks_that_were_there_before_take_no_branch_along(model):
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    joined = run_dit(model)
    branches = remove_skip_branches(model)
    for module in (model, *model.transformer_blocks):
        add_hook_to_module(module, ModelHook())
    add_skip_branches(model, branches=branches)
    remove_hook_from_module(model, recurse=True)
    assert torch.equal(run_dit(model), joined) and torch.equal(run_dit(model), joined)


# Another cache on the same model

THEIRS = {
    "FirstBlockCache": FirstBlockCacheConfig(threshold=1e9),
    "MagCache": MagCacheConfig(num_inference_steps=4, mag_ratios=torch.ones(4), retention_ratio=0.1),
    "TaylorSeerCache": TaylorSeerCacheConfig(),
}


@pytest.mark.parametrize("name", THEIRS)
def test_a_second_cache_is_refused_in_both_orders_and_all_is_well_after(name):
    model = flux(3)
    given = arguments(model)
    before = run(model, given)
    model.enable_cache(THEIRS[name])
    for ours in (lambda: enable_skip_cache(model, CachePolicy(1)), lambda: add_skip_branches(model)):
        with pytest.raises(UsageError, match=rf"{name} on; .*disable_cache\(\)"):
            ours()
    model.disable_cache()
    enable_skip_cache(model, CachePolicy(1))
    with pytest.raises(UsageError, match=rf"{name}Config .*disable_skip_cache"):
        model.enable_cache(THEIRS[name])
    assert torch.equal(run(model, given), before) and torch.equal(run(model, given), before)
    disable_skip_cache(model)
    model.enable_cache(THEIRS[name])
    model.disable_cache()
    assert torch.equal(run(model, given), before)


@pytest.mark.parametrize("ran", [False, True])
def test_a_second_cache_that_is_applied_behind_our_back_is_refused_at_the_next_call(ran):
    model = flux(3)
    given = arguments(model)
    enable_skip_cache(model, CachePolicy(1))
    if ran:
        run(model, given)
    apply_first_block_cache(model, FirstBlockCacheConfig(threshold=1e9))
    with pytest.raises(UsageError, match="first_block_cache on; .*remove_hook"):
        run(model, given)
    for hook in ("fbc_leader_block_hook", "fbc_block_hook"):
        HookRegistry.check_if_exists_or_initialize(model).remove_hook(hook)
    run(model, given)


@pytest.mark.parametrize("name", ["FirstBlockCache", "MagCache"])
def test_a_cache_of_diffusers_after_branches_skips_the_branches_too(name, tmp_path):
    model = flux(3)
    given = arguments(model)
    train_a_little(add_skip_branches(model))
    joined = run(model, given)
    model.enable_cache(THEIRS[name])
    with model.cache_context("cond"):
        for _ in range(3):
            assert torch.allclose(run(model, given), joined, rtol=1e-5, atol=1e-6)
    model.save_pretrained(tmp_path)
    with model.cache_context("cond"):
        assert torch.allclose(run(model, given), joined, rtol=1e-5, atol=1e-6)
    model.disable_cache()
    assert torch.equal(run(model, given), joined)


# Models that are let go


@pytest.mark.parametrize("what", ["branches", "cache", "both", "compiled", "found", "blocks compiled"])
def test_a_model_that_is_dropped_is_freed(what, undeclared):
    name, scheduler = "FluxTransformer2DModel", diffusers.FlowMatchEulerDiscreteScheduler()
    model = used = flux(3)
    given = arguments(model)
    if what == "found":
        undeclared(name)
    if what != "cache" and what != "found":
        add_skip_branches(model)
    if what == "compiled":
        used = torch.compile(model, backend="eager")
    if what == "blocks compiled":
        model.compile_repeated_blocks(backend="eager")
    if what != "branches":
        enable_skip_cache(used, CachePolicy(1), scheduler)
    scheduler.set_timesteps(4)
    run(used, given)
    held = [weakref.ref(model), *map(weakref.ref, model.parameters())]
    del model, used
    gc.collect()
    assert not any(ref() is not None for ref in held)
    scheduler.set_timesteps(4)


# Blocks that the model itself leaves out


@pytest.mark.parametrize("left_out", [[1], [2], [1, 2], [3], [4], [5], [0], [2, 3]])
def test_blocks_left_out_by_skip_layer_guidance(left_out):
    model = tiny("SD3Transformer2DModel")
    given = {**arguments(model), "skip_layers": left_out}
    branches = train_a_little(add_skip_branches(model))
    made = run(model, given)
    remove_skip_branches(model)
    outputs = {}
    for index, block in enumerate(model.transformer_blocks):

        def merged(module, args, kwargs, index=index):
            x, pair = kwargs["hidden_states"], 5 - index
            for passed in range(max(outputs, default=-1) + 1, index):
                outputs[passed] = x
            if pair < index:
                kwargs = {**kwargs, "hidden_states": branches(x, outputs[pair], pair)}
            return args, kwargs

        block.register_forward_pre_hook(merged, with_kwargs=True)
        block.register_forward_hook(lambda m, a, output, index=index: outputs.__setitem__(index, output[1]))
    assert torch.equal(run(model, given), made)


@pytest.mark.parametrize("target", ["boundary", "residual"])
@pytest.mark.parametrize("left_out", [[1], [2], [1, 2], [4], [1, 4], [0]])
def test_a_cache_beside_skip_layer_guidance(left_out, target):
    model = tiny("SD3Transformer2DModel")
    train_a_little(add_skip_branches(model))
    given = {**arguments(model), "skip_layers": left_out}
    expected = run(model, given)
    cache = enable_skip_cache(model, CachePolicy(1, target=target))
    assert all(torch.equal(run(model, given), expected) for _ in range(4))
    assert cache.trace == ["full", "reused"] * 2


def test_a_cache_whose_last_blocks_the_model_leaves_out_says_so():
    model = tiny("SD3Transformer2DModel")
    given = {**arguments(model), "skip_layers": [5]}
    expected = run(model, given)
    cache = enable_skip_cache(model, CachePolicy(1))
    with pytest.warns(UserWarning, match="left out its last 1 of the blocks.*never reused.*more --cache-layers"):
        assert all(torch.equal(run(model, given), expected) for _ in range(3))
    assert cache.trace == ["full"] * 3
    cache = enable_skip_cache(model, CachePolicy(2))
    assert all(torch.equal(run(model, given), expected) for _ in range(3)) and "reused" in cache.trace
