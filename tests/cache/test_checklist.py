"""The 20 points of reference/caching-peers.md section 6 (what broke elsewhere), a test each, in the table's order.

Parts of points that cannot occur here, and why:

- 8, adaptive decisions per image: the steps to reuse are planned from their count and timesteps alone; no value of a
  tensor decides (test_cache: test_no_timestep_is_read_from_a_tensor). So nothing is shared among a batch's images.
- 9, memory of a CUDA graph written over: the command compiles in torch's default mode, which makes no CUDA graphs.
- 11, ranks that decide differently: for the reason of 8; there is nothing to reduce. The command samples in one
  process, and refuses to train under FSDP.
- 14, an unused calibrator: nothing is calibrated.
- 18, residuals of a ControlNet into a DiT or a Latte: their forwards take none; HunyuanDiT's does (test_families).
- 19, more cached blocks at the tail than at the head: there is one N, for both ends.
"""

import copy
import pickle
import weakref

import diffusers
import pytest
import torch

from skipdit_cli import (
    CachePolicy,
    add_skip_branches,
    disable_skip_cache,
    enable_skip_cache,
    load_pipeline,
    remove_skip_branches,
)
from skipdit_cli.errors import UsageError
from skipdit_cli.models import save_pipeline
from tests.support.measurements import relative_l2
from tests.support.tiny_dit_runs import guided, inputs, noise, reference, run, sample, train_a_little
from tests.support.tiny_transformers import arguments, tiny, tiny_text_transformer
from tests.support.tiny_transformers import run as run_family


@pytest.fixture
def scheduler():
    return diffusers.DDIMScheduler()


def test_01_a_second_request_equals_a_fresh_process_also_after_an_interrupt(model, scheduler):
    """More in test_cache, under "One state per generation"."""
    policy, fresh = CachePolicy(1, interval=3, forecast="taylor2"), copy.deepcopy(model)
    enable_skip_cache(model, policy, scheduler)
    sample(model, scheduler, seed=0)

    def interrupted(model, x, t):
        if t < 500:
            raise KeyboardInterrupt
        return noise(model, x, t, torch.tensor([3, 4]))

    with pytest.raises(KeyboardInterrupt):
        sample(model, scheduler, seed=2, call=interrupted)
    second = sample(model, scheduler, seed=1)
    own = diffusers.DDIMScheduler()
    enable_skip_cache(fresh, policy, own)
    assert torch.equal(second, sample(fresh, own, seed=1))


def test_02_guidance_merged_split_in_any_order_of_three_or_switched_off(model, scheduler):
    """More in test_cache under "Guidance", and test_any_pipeline for pipelines of diffusers."""
    policy = CachePolicy(1, interval=3, forecast="linear")
    orders = {
        "cond first": lambda step: (0, 1),
        "uncond first": lambda step: (1, 0),
        "three": lambda step: (2, 0, 1),
        "switched off": lambda step: (0, 1) if step < 4 else (0,),
    }
    made = {}
    for name, order in orders.items():
        cache = enable_skip_cache(model, policy, scheduler)
        made[name] = sample(model, scheduler, call=guided(order))
        assert torch.equal(made[name], reference(model, order, policy)), name
        assert "reused" in cache.trace

    def merged(model, x, t):
        cond, uncond = noise(model, torch.cat([x, x]), t, torch.tensor([0, 0, 1, 1])).chunk(2)
        return cond + 0.5 * (cond - uncond)

    enable_skip_cache(model, policy, scheduler)
    assert relative_l2(sample(model, scheduler, call=merged), made["cond first"]) < 1e-5


def test_03_another_batch_size_is_a_full_step_within_a_run_and_between_runs(model, scheduler):
    cache = enable_skip_cache(model, CachePolicy(1, interval=20), scheduler)

    def loses_one(model, x, t):
        size = 2 if t > 500 else 1
        return noise(model, x[:size], t, torch.arange(size)).expand(2, -1, -1, -1)

    sample(model, scheduler, call=loses_one)
    assert [step for step, kind in enumerate(cache.trace) if kind == "full"] == [0, 4]
    assert len(sample(model, scheduler, batch=3)) == 3
    assert cache.trace == ["full"] + ["reused"] * 9


def test_04_another_resolution_frame_count_text_length_dtype_or_device_is_a_full_step():
    model = tiny_text_transformer()
    cache = enable_skip_cache(model, CachePolicy(1, interval=99))

    def call(size=8, frames=4, words=5, dtype=torch.float32, device="cpu"):
        of = {"dtype": dtype, "device": device}
        with torch.no_grad():
            model.to(**of)(
                torch.zeros(1, 4, frames, size, size, **of),
                timestep=torch.tensor([500], device=device),
                encoder_hidden_states=torch.zeros(1, words, 12, **of),
            )

    changes = [{}, {"size": 4}, {"frames": 1}, {"words": 3}, {"dtype": torch.bfloat16}, {"device": "meta"}]
    for changed in changes:
        call(**changed)
        if changed != {"device": "meta"}:
            call(**changed)
    assert cache.trace == ["full", "reused"] * 5 + ["full"]


def test_05_other_steps_strength_or_timesteps_make_a_plan_of_their_own_and_a_foreign_schedule_is_an_error(model):
    scheduler = diffusers.EulerDiscreteScheduler()
    cache = enable_skip_cache(model, CachePolicy(1, full_steps=3), scheduler)
    for steps in (10, 6):
        sample(model, scheduler, steps=steps)
        assert (len(cache.trace), cache.trace.count("full")) == (steps, 3)
    scheduler.set_timesteps(timesteps=[900, 700, 300, 20])
    sample(model, scheduler, set_timesteps=False)
    assert (len(cache.trace), cache.trace.count("full")) == (4, 3)
    scheduler.set_timesteps(10)
    scheduler.set_begin_index(4)  # image-to-image at strength 0.6
    run(model)
    assert len(cache.plan) == 6
    enable_skip_cache(model, CachePolicy(1, full_steps=(0, 8)), scheduler)
    with pytest.raises(UsageError, match="made for another --num-inference-steps"):
        sample(model, scheduler, steps=6)


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "DDIMInverseScheduler"])
def test_06_a_timestep_twice_or_rising_divides_nothing_by_zero(model, name):
    """Every scheduler of the command with the cache: test_generation."""
    scheduler = getattr(diffusers, name)()
    cache = enable_skip_cache(model, CachePolicy(1, forecast="taylor2", target="residual"), scheduler)
    scheduler.set_timesteps(8)
    times = scheduler.timesteps.tolist()
    assert scheduler.order == 2 or times == sorted(times)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        with torch.no_grad():
            x = scheduler.step(noise(model, scheduler.scale_model_input(x, t), t, torch.arange(2)), t, x).prev_sample
    assert torch.isfinite(x).all()
    assert cache.trace == [("full", "reused")[step % 2] for step in range(len(times))]


def test_07_the_first_step_is_full_the_first_and_last_k_can_be_and_reuse_in_a_row_is_bounded():
    timesteps = list(range(980, -1, -20))
    policies = [CachePolicy(1, interval=4), CachePolicy(1, full_steps=(7, 30)), CachePolicy(1, full_steps=5)]
    policies.append(CachePolicy(1, interval=4, window=(700, 50)))
    plans = [policy.plan(timesteps) for policy in policies]
    assert all(plan[0] for plan in plans)
    assert plans[2][-1]
    assert all(plans[3][:15]) and all(plans[3][-2:]) and not all(plans[3])  # t >= 700, and once t <= 50 has passed
    in_a_row = "".join("fr"[not full] for full in plans[0]).split("f")
    assert max(map(len, in_a_row)) == 3


def test_08_neighbours_in_a_batch_change_nothing(model, scheduler):
    policy = CachePolicy(1, interval=4, forecast="linear", target="residual")
    cache = enable_skip_cache(model, policy, scheduler)
    made = {}
    for other in (1, 7):
        call = lambda m, x, t, other=other: noise(m, x, t, torch.tensor([0, other]))  # noqa: E731
        made[other] = sample(model, scheduler, call=call)
        assert cache.trace.count("full") == 3
    assert relative_l2(made[1][0], made[7][0]) < 1e-5 < 1e-3 < relative_l2(made[1][1], made[7][1])


def test_09_compiled_there_is_no_break_and_nothing_is_compiled_after_both_kinds_were_seen(tiny_dit):
    """Either order of compiling and enabling: test_cache. Joined streams: test_families."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    model, counter = tiny_dit(num_layers=3), CompileCounter()
    train_a_little(add_skip_branches(model))
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    scheduler = diffusers.DDIMScheduler()
    enable_skip_cache(compiled, CachePolicy(1), scheduler)
    for seed in (0, 1):
        sample(compiled, scheduler, steps=4, seed=seed)
        assert counter.frame_count == 2


@pytest.mark.parametrize("with_branches", [False, True])
def test_10_offloading_moves_no_left_out_block(model, scheduler, with_branches):
    """Groups of diffusers' own offloading: test_any_pipeline. Hooks taken off while the cache is on: test_cache."""
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    class Moves(ModelHook):
        def __init__(self):
            self.count = 0

        def pre_forward(self, module, *args, **kwargs):
            self.count += 1
            return args, kwargs

    if not with_branches:
        remove_skip_branches(model)
    made = []
    for _ in range(2):
        hooks = [Moves() for _ in model.transformer_blocks]
        for block, hook in zip(model.transformer_blocks, hooks):
            add_hook_to_module(block, hook)
        enable_skip_cache(model, CachePolicy(1, interval=5), scheduler)
        made.append(sample(model, scheduler))
        assert [hook.count for hook in hooks] == [10, 2, 2, 2, 2, 10]
        disable_skip_cache(model)
        remove_hook_from_module(model, recurse=True)
    assert torch.equal(*made)


def test_10_what_is_remembered_stays_where_it_was_computed(model):
    cache = enable_skip_cache(model.to("meta"), CachePolicy(1))
    run(model, **{name: value.to("meta") for name, value in inputs().items()})
    held = [tensor for slot in cache.slots.values() for tensor in slot.tensors()]
    assert held and all(tensor.is_meta for tensor in held)


def test_11_all_ranks_decide_alike_whatever_they_see(model, tiny_dit):
    """DDP and FSDP with branches attached: test_skip."""
    traces, policy = [], CachePolicy(1, full_steps=4, forecast="taylor2")
    for rank, own in enumerate((model, tiny_dit(seed=1))):
        scheduler = diffusers.DDIMScheduler()
        cache = enable_skip_cache(own, policy, scheduler)
        sample(own, scheduler, batch=1 + rank, seed=rank)
        traces.append(cache.trace)
    assert traces[0] == traces[1] == [("reused", "full")[full] for full in policy.plan(range(10))]


def test_12_memory_is_bounded_reported_and_let_go(model, scheduler):
    cache = enable_skip_cache(model, CachePolicy(1, interval=2, forecast="taylor2"), scheduler)
    for steps in (8, 20):
        sample(model, scheduler, steps=steps)
        # Batch, tokens, width, float32: the boundary and the shallow output, and the residual of two older steps.
        assert cache.peak_bytes == 4 * 2 * 16 * 16 * 4
        assert cache.slots == {}
    for end in (lambda: scheduler.set_timesteps(8), lambda: disable_skip_cache(model)):
        run(model)
        held = [weakref.ref(tensor) for slot in cache.slots.values() for tensor in slot.tensors()]
        assert held and all(ref() is not None for ref in held)
        end()
        assert all(ref() is None for ref in held)


def test_13_models_share_nothing_and_enabling_comes_and_goes_and_copies_stand_alone(model, tiny_dit):
    """Two pipelines, one within the other's run: test_any_pipeline."""
    of_class = {kind: dict(vars(kind)) for kind in (type(model), type(model.transformer_blocks[0]))}
    other = tiny_dit(seed=1)
    plain, expected = run(other), run(model)
    for _ in range(2):
        cache = enable_skip_cache(model, CachePolicy(1))
        run(model)
        assert torch.equal(run(other, **inputs(seed=3)), run(copy.deepcopy(other), **inputs(seed=3)))
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            run(copied, **inputs(seed=5))
        assert cache.trace == ["full"] and torch.equal(run(model), expected)
        disable_skip_cache(model)
    assert torch.equal(run(other), plain)
    assert of_class == {kind: dict(vars(kind)) for kind in of_class}


def test_14_steps_are_counted_and_traced_and_a_cache_that_does_nothing_warns(model, scheduler, skipdit, tiny_pipeline):
    cache = enable_skip_cache(model, CachePolicy(1, interval=5), scheduler)
    sample(model, scheduler)
    assert cache.trace == (["full"] + ["reused"] * 4) * 2
    assert str(cache.report()) == "8 of 10 steps reused, 28 of 60 blocks run"
    sizes = iter([1, 2] * 5)

    def changes(model, x, t):
        size = next(sizes)
        return noise(model, x[:size], t, torch.arange(size)).mean(0, keepdim=True).expand_as(x)

    with pytest.warns(UserWarning, match="reused none of 10 steps"):
        sample(model, scheduler, call=changes)
    out = tiny_pipeline().parent / "out.png"
    ran = skipdit("sample", "-m", out.parent / "tiny", "-o", out, "--steps", 4, "--cache-layers", 1)
    assert "2 of 4 steps reused" in ran.stdout + ran.stderr


def test_15_gradients_bypass_the_cache_and_reach_zero_branches_alone_at_the_first_step(tiny_dit):
    """EMA: test_skip. Resuming from a checkpoint: training/test_loop."""
    model = tiny_dit()
    branches = add_skip_branches(model)
    model.requires_grad_(False)
    branches.requires_grad_(True)
    cache = enable_skip_cache(model, CachePolicy(1))
    for _ in range(2):
        model(**inputs()).sample.square().mean().backward()
    run(model.train())
    assert cache.trace == ["full"] * 3
    assert all(linear.weight.grad.abs().max() > 0 for linear in branches.linears)
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached and all(name.startswith("skip_branches.") for name in reached)


@pytest.mark.parametrize("num_layers", [6, 7])
def test_16_converted_and_untrained_it_is_the_vanilla_model_to_the_bit(tiny_dit, num_layers):
    """The command proves it of every model that it converts: test_convert, test_families."""
    model = tiny_dit(num_layers=num_layers)
    vanilla = run(model)
    add_skip_branches(model)
    assert torch.equal(run(model), vanilla)


def test_17_saved_and_loaded_it_is_the_same_with_branches_and_without(model, tiny_pipeline, tmp_path):
    """Official ``.pt`` files, their keys and merge: test_convert, test_golden_dit. Bad folders: test_checkpoints."""
    joined = run(model)
    pipe = load_pipeline(tiny_pipeline())
    vanilla = run(pipe.transformer)
    add_skip_branches(pipe.transformer, branches=copy.deepcopy(model.skip_branches))
    save_pipeline(pipe, tmp_path / "skip")
    loaded = load_pipeline(tmp_path / "skip").transformer
    assert torch.equal(run(loaded), joined) and not any(parameter.is_meta for parameter in loaded.parameters())
    loaded.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for folder in (tmp_path / "shards", tmp_path / "skip" / "transformer"):
        assert torch.equal(run(diffusers.DiTTransformer2DModel.from_pretrained(folder).eval()), vanilla)
    remove_skip_branches(loaded)
    assert torch.equal(run(loaded), vanilla)
    with torch.device("meta"):
        hollow = type(model.skip_branches).from_config(model.skip_branches.config)
    with pytest.raises(UsageError, match="meta"):
        add_skip_branches(loaded, branches=hollow)


def test_18_a_lora_put_on_or_off_while_the_cache_is_on_is_followed_by_a_full_step():
    """``load_lora_weights`` in a running pipeline: test_any_pipeline."""
    from peft import LoraConfig

    model = tiny("SD3Transformer2DModel")
    given = arguments(model)
    cache = enable_skip_cache(model, CachePolicy(1, interval=99))
    plain = run_family(model, given)
    lora = LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
    changes = [lambda: model.add_adapter(lora), model.fuse_lora, model.unfuse_lora, model.unload_lora]
    for change in changes:
        run_family(model, given)
        change()
        last = run_family(model, given)
    assert cache.trace == ["full", "reused"] * 4 + ["full"]
    assert relative_l2(last, plain) < 1e-5


@pytest.mark.parametrize("num_layers", [6, 7])
def test_19_block_i_is_paired_with_l_minus_1_minus_i_and_too_deep_a_cache_is_refused(tiny_dit, num_layers):
    """The sums that a branch makes: test_skip."""
    model, left, joined = tiny_dit(num_layers=num_layers), [], []
    branches = add_skip_branches(model)
    for block in model.transformer_blocks:
        block.register_forward_hook(lambda m, a, out: left.append(out))
    branches.register_forward_pre_hook(lambda m, args: joined.append((len(left), *args)))
    run(model)
    assert [(at, pair) for at, _, _, pair in joined] == [(num_layers - 1 - i, i) for i in (2, 1, 0)]
    assert all(torch.equal(source, left[pair]) for _, _, source, pair in joined)
    deepest = (num_layers - 1) // 2
    enable_skip_cache(model, CachePolicy(deepest))
    with pytest.raises(UsageError, match=f"valid 1..{deepest}"):
        enable_skip_cache(model, CachePolicy(deepest + 1))


def test_20_a_bench_has_every_row_from_the_same_seeds_and_both_times_and_the_limit(skipdit, converted):
    """The columns and how they hang together: test_bench. The count of FLOPs: test_flops."""
    quick = ("--steps", 4, "--rounds", 1, "--warmup", 1, "--class-labels", 1, "--cache-layers", 1, "--no-exact")
    done = skipdit("bench", "-m", converted(), *quick, "--cache-interval", "1,2", "--json")
    assert done.code == 0, done.stderr
    rows = done.json["rows"]
    assert {row["case"] for row in rows} == {"vanilla", "vanilla-cache", "skip", "skip-cache", "fewer-steps"}
    assert all(row["seconds_end_to_end"] > row["seconds"] > 0 for row in rows)
    assert done.json["warmup_seconds"] > 0  # "compile_seconds" with --compile
    assert {row["identical"] for row in rows if row["cache_interval"] == 1} == {True}
    assert all(row["limit"] > 1 for row in rows if row["cache_interval"] == 2)


def test_every_point_has_its_test():
    numbers = sorted({name.split("_")[1] for name in globals() if name.startswith("test_") and name[5].isdigit()})
    assert numbers == [f"{number:02}" for number in range(1, 21)]
