"""Two live ends: the first F and the last B blocks run on a reused step."""

import diffusers
import pytest
import torch

from skipdit_cli import CachePolicy, add_skip_branches, enable_skip_cache
from skipdit_cli.cache.forecast import weights
from skipdit_cli.errors import UsageError
from tests.support.tiny_dit_runs import inputs, run, sample, train_a_little
from tests.support.tiny_transformers import arguments, tiny, tiny_text_transformer
from tests.support.tiny_transformers import run as run_any

ENDS = [(0, 0), (1, 0), (0, 1), (2, 0), (2, 1), (1, 2), (5, 0), (0, 5)]


def test_n_stands_for_both_ends():
    assert CachePolicy(2) == CachePolicy((2, 2)) == CachePolicy([2, 2])
    assert CachePolicy(2).layers == (2, 2)


@pytest.mark.parametrize("layers", ENDS)
@pytest.mark.parametrize("with_branches", [False, True])
def test_exactly_the_live_blocks_run(tiny_dit, layers, with_branches):
    model = tiny_dit()
    if with_branches:
        train_a_little(add_skip_branches(model))
    cache = enable_skip_cache(model, CachePolicy(layers))
    ran = []
    for i, block in enumerate(model.transformer_blocks):
        block.attn1.register_forward_hook(lambda *_, i=i: ran.append(i))
    run(model), run(model)
    front, back = layers
    assert cache.trace == ["full", "reused"]
    assert ran == [*range(6), *range(front), *range(6 - back, 6)]
    report = cache.report()
    assert (report.blocks_run, report.blocks_total) == (6 + front + back, 12)


@pytest.mark.parametrize("layers", ENDS)
@pytest.mark.parametrize("target", ["boundary", None])
@pytest.mark.parametrize("with_branches", [False, True])
def test_a_reused_step_at_the_same_input_is_the_full_one(tiny_dit, layers, target, with_branches):
    model = tiny_dit()
    if with_branches and layers[0] >= layers[1]:
        train_a_little(add_skip_branches(model))
    cache = enable_skip_cache(model, CachePolicy(layers, target=target))
    full, reused = run(model), run(model)
    assert cache.trace == ["full", "reused"] and torch.equal(full, reused)


def test_a_branch_without_its_live_source_is_left_out(tiny_dit):
    """With (1, 2) the branch of the pair (1, 4) has no fresh source: block 4 runs without it, block 5 with its own."""
    model = tiny_dit()
    train_a_little(add_skip_branches(model))
    enable_skip_cache(model, CachePolicy((1, 2), forecast="reuse"))
    boundary, blocks = {}, model.transformer_blocks
    handle = blocks[3].register_forward_hook(lambda _, __, output: boundary.update(old=output))
    run(model)
    handle.remove()
    fresh = inputs(seed=5)["hidden_states"]
    got = run(model, hidden_states=fresh)
    plain = tiny_dit()
    branches, arguments = model.skip_branches, {k: v for k, v in inputs().items() if k != "hidden_states"}
    with torch.no_grad():
        source = plain.transformer_blocks[0](plain.pos_embed(fresh), **arguments)
        x = plain.transformer_blocks[4](boundary["old"], **arguments)
        x = plain.transformer_blocks[5](branches(x, source, 0), **arguments)
        handle = plain.transformer_blocks[5].register_forward_hook(lambda *_: x)
        assert torch.equal(got, run(plain, hidden_states=fresh))
    handle.remove()


@pytest.mark.parametrize("layers", [(0, 1), (1, 2)])
def test_the_replace_merge_needs_the_source_of_a_live_target(tiny_dit, layers):
    model = tiny_dit()
    add_skip_branches(model, merge="replace")
    with pytest.raises(UsageError, match="FRONT of at least BACK"):
        enable_skip_cache(model, CachePolicy(layers))
    enable_skip_cache(model, CachePolicy((2, 1)))


def test_branches_that_come_after_the_cache_are_checked_as_well(tiny_dit):
    model = tiny_dit()
    enable_skip_cache(model, CachePolicy((0, 1)))
    add_skip_branches(model, merge="replace")
    with pytest.raises(UsageError, match="FRONT of at least BACK"):
        run(model)


@pytest.mark.parametrize("layers, valid", [((3, 3), "1..2"), ((6, 0), "at most 5"), ((2, 4), "at most 5")])
def test_too_deep_is_refused(tiny_dit, layers, valid):
    with pytest.raises(UsageError, match=valid):
        enable_skip_cache(tiny_dit(), CachePolicy(layers))


@pytest.mark.parametrize("return_dict", [True, False])
def test_without_a_live_block_the_output_itself_is_forecast(tiny_dit, return_dict):
    model = tiny_dit()
    cache = enable_skip_cache(model, CachePolicy(0, full_steps=(0, 1, 2), forecast="taylor2"))
    with torch.no_grad():
        outputs = [model(**inputs(seed=step), return_dict=return_dict) for step in range(4)]
    assert cache.trace == ["full"] * 3 + ["reused"] and type(outputs[3]) is type(outputs[0])
    first, second, third, forecast = (output[0] for output in outputs)
    expected = third + sum(
        w * (value - third) for w, value in zip(weights("taylor2", [-2.0, -1.0, 0.0], -3.0)[1:], (second, first))
    )
    torch.testing.assert_close(forecast, expected)


@pytest.mark.parametrize("layers", [(1, 0), (0, 0)])
def test_a_reused_run_follows_its_scheduler(tiny_dit, layers):
    """Late steps of one generation differ from the first of the next: no state is left over."""
    model, scheduler = tiny_dit(), diffusers.DDIMScheduler()
    cache = enable_skip_cache(model, CachePolicy(layers, full_steps=4), scheduler)
    first, second = sample(model, scheduler), sample(model, scheduler)
    assert torch.equal(first, second) and cache.trace.count("full") == 4


@pytest.mark.parametrize("layers", [(1, 0), (0, 1), (0, 0)])
@pytest.mark.parametrize("name", ["LatteTransformer3DModel", "FluxTransformer2DModel", "WanTransformer3DModel"])
def test_a_boundary_behind_the_last_block_of_any_layout(name, layers):
    """Latte's last block returns a temporal layout, Flux's two streams, the last of them concatenated."""
    model = tiny_text_transformer() if name.startswith("Latte") else tiny(name)
    example = arguments(model)
    cache = enable_skip_cache(model, CachePolicy(layers, interval=2))
    full, reused = (run_any(model, example) for _ in range(2))
    assert cache.trace == ["full", "reused"] and torch.equal(full, reused)
    assert cache.ends.has_residual == (layers != (0, 0))


def test_without_a_live_block_only_the_full_step_is_compiled(tiny_dit):
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    model, counter = tiny_dit(), CompileCounter()
    expected = run(model)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    cache = enable_skip_cache(compiled, CachePolicy(0))
    assert all(torch.equal(run(compiled), expected) for _ in range(6))
    assert cache.trace == ["full", "reused"] * 3 and counter.frame_count == 1


# Damping


def test_damping_multiplies_each_order_of_the_differences():
    times, t = [400.0, 650.0, 700.0], 330.0
    orders = [weights(name, times, t) + [0.0] * (2 - k) for k, name in enumerate(("reuse", "linear", "taylor2"))]
    constant, line, parabola = orders
    expected = [c + 0.5 * (b - c) + 0.25 * (a - b) for a, b, c in zip(parabola, line, constant)]
    assert weights("taylor2", times, t, 0.5) == pytest.approx(expected)
    assert weights("taylor2", times, t, 1.0) == weights("taylor2", times, t)
    assert weights("taylor2", times, t, 0.0) == pytest.approx(constant)
