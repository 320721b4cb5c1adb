"""One mechanism for every family: declared, or found by watching a forward, and tried out before it is trusted."""

import copy
import inspect
import json
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

from skipdit_cli import (
    CachePolicy,
    SkipBranches,
    add_skip_branches,
    disable_skip_cache,
    enable_skip_cache,
    load_pipeline,
    remove_skip_branches,
)
from skipdit_cli.errors import UsageError
from skipdit_cli.families import FAMILIES, Backbone, BlockList
from skipdit_cli.families.table import RECORD, transformer_classes
from skipdit_cli.guide.topics import FOLDER
from skipdit_cli.trunk import trunk_of
from tests.support.tiny_dit_runs import train_a_little
from tests.support.tiny_transformers import CONFIGS, WIDTH, arguments, run, tiny

BACKBONES = {name: family.trunk for name, family in FAMILIES.items() if family.trunk is not None}
NATIVE = [name for name in CONFIGS if BACKBONES[name].native_skips]
CONVERTED = [name for name in CONFIGS if name not in NATIVE]
LATTES = ["LatteTransformer3DModel", "LatteClassTransformer3DModel"]


def left_on(model):
    """What could be left behind on any module."""
    kept = {name: set(module.__dict__) for name, module in model.named_modules()}
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    return kept, hooks, list(model.state_dict())


def units_that_run(model):
    """Of each unit, a leaf: whether it ran."""
    ran = []
    for index, (block, *_) in enumerate(trunk_of(model).units):
        for leaf in [module for module in block.modules() if not list(module.children())]:
            leaf.register_forward_hook(lambda *_, index=index: ran.append(index))
    return ran


def in_bfloat16(value):
    if isinstance(value, list):
        return [in_bfloat16(each) for each in value]
    return value.bfloat16() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


@pytest.fixture
def undeclared(monkeypatch):
    """``undeclared(name)``: the family as if we had no declaration of it."""
    return lambda name: monkeypatch.delitem(FAMILIES, name)


def test_every_declared_family_is_tested():
    assert set(BACKBONES) - set(CONFIGS) == {
        "ConditionedDiTTransformer2DModel",
        "DiTTransformer2DModel",
        *LATTES,
    }  # which have files of their own


@pytest.mark.parametrize("name", CONVERTED)
def test_converts_trains_and_comes_off_without_trace(name):
    model = tiny(name)
    given = arguments(model)
    before, clean = run(model, given), left_on(model)
    branches = add_skip_branches(model)
    assert branches.num_pairs == 3 and torch.equal(run(model, given), before)
    assert trunk_of(model).first_pass is None  # looked at, and found as declared

    model.requires_grad_(False)
    branches.requires_grad_(True)
    output = model(**given, return_dict=False)[0]
    (output[0] if isinstance(output, list) else output).square().mean().backward()
    assert all(linear.weight.grad.abs().max() > 0 for linear in branches.linears)
    assert all(p.grad is None for key, p in model.named_parameters() if not key.startswith("skip_branches."))

    train_a_little(branches)
    assert not torch.equal(run(model, given), before)
    assert remove_skip_branches(model) is branches
    model.requires_grad_(True)
    assert left_on(model) == clean and torch.equal(run(model, given), before)


@pytest.mark.parametrize("name", CONVERTED)
def test_what_is_loaded_in_bfloat16_is_converted_and_cached_in_it(name, tmp_path):
    """diffusers keeps some parts in float32 (Wan's modulation), the first parameter among them."""
    tiny(name).save_pretrained(tmp_path)
    model = type(tiny(name)).from_pretrained(tmp_path, torch_dtype=torch.bfloat16).eval()
    given = {key: in_bfloat16(value) for key, value in arguments(model).items()}
    before = run(model, given)
    branches = add_skip_branches(model)
    assert branches.dtype is torch.bfloat16 and torch.equal(run(model, given), before)
    train_a_little(branches)
    expected = run(model, given)
    assert not torch.equal(expected, before)
    cache = enable_skip_cache(model, CachePolicy(1, interval=3, forecast="linear", target="residual"))
    assert all(torch.equal(run(model, given), expected) for _ in range(2)) and cache.trace == ["full", "reused"]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_reused_step_runs_the_outer_blocks_and_at_the_same_input_is_the_full_one(name):
    model = tiny(name)
    given = arguments(model)
    if name not in NATIVE:
        train_a_little(add_skip_branches(model))
    expected = run(model, given)
    for policy in (CachePolicy(1, interval=3), CachePolicy(2, interval=3, forecast="taylor2", target="residual")):
        cache = enable_skip_cache(model, policy)
        assert all(torch.equal(run(model, given), expected) for _ in range(5))
        assert cache.trace == ["full", "reused", "reused", "full", "reused"]
    ran = units_that_run(model)
    noise = next(iter(inspect.signature(model.forward).parameters))
    other = run(model, {**given, noise: arguments(model, seed=1)[noise]})
    assert cache.trace[-1] == "reused" and set(ran) == {0, 1, 4, 5}
    assert torch.isfinite(other).all() and not torch.equal(other, expected)
    disable_skip_cache(model)
    assert torch.equal(run(model, given), expected)


@pytest.mark.parametrize("name", CONVERTED)
def test_what_is_found_is_what_is_declared(name, undeclared):
    model = tiny(name)
    given = arguments(model)
    before, declared = run(model, given), BACKBONES[name]
    undeclared(name)
    with pytest.raises(UsageError, match=f"{name}, whose transformer trunk is not declared; give example_inputs"):
        add_skip_branches(model)
    branches = add_skip_branches(model, example_inputs=given)
    found = trunk_of(model).backbone
    assert (found.lists, found.joined, found.interleaved) == (declared.lists, declared.joined, declared.interleaved)
    assert found.width == branches.config.dim and torch.equal(run(model, given), before)


@pytest.mark.parametrize("name", LATTES)
def test_lists_that_alternate_are_found(name, undeclared, tiny_latte):
    if name == "LatteClassTransformer3DModel":
        model = tiny_latte()
        given = {"class_labels": torch.tensor([3])}
    else:
        from diffusers import LatteTransformer3DModel

        config = dict(in_channels=1, out_channels=2, patch_size=2, sample_size=8, num_layers=3, caption_channels=6)
        model = LatteTransformer3DModel(2, 8, norm_type="ada_norm_single", video_length=4, **config).eval()
        given = {"encoder_hidden_states": torch.randn(1, 5, 6)}
    given.update(hidden_states=torch.randn(1, 1, 4, 8, 8), timestep=torch.tensor([500]))
    declared = BACKBONES[name]
    undeclared(name)
    add_skip_branches(model, example_inputs=given)
    assert trunk_of(model).backbone.lists == declared.lists and trunk_of(model).backbone.interleaved


@pytest.mark.parametrize("name", ["Flux2Transformer2DModel", "SD3Transformer2DModel", "CogVideoXTransformer3DModel"])
def test_branches_join_image_to_image(name):
    """By arithmetic of our own on the bare model: x + W LN[x, s], on the tokens of the image alone."""
    model = tiny(name)
    given = arguments(model)
    branches = train_a_little(add_skip_branches(model))
    joined, units = run(model, given), [block for (block,) in trunk_of(model).units]
    remove_skip_branches(model)
    inputs, tokens = {}, given["hidden_states"].shape[1] if name.startswith("Flux2") else None

    def image(x):
        return x if tokens is None else x[:, -tokens:]  # Flux.2's single blocks get the text first

    def fixed(index):
        def before(block, args, kwargs):
            x = kwargs["hidden_states"]
            inputs[index] = image(x).clone()
            pair = 5 - index
            if index > pair:
                norm, linear = branches.norms[pair], branches.linears[pair]
                both = torch.cat([image(x), inputs[pair + 1]], dim=-1)
                mean, variance = both.mean(-1, keepdim=True), both.var(-1, keepdim=True, correction=0)
                added = linear((both - mean) / (variance + 1e-6).sqrt() * norm.weight + norm.bias)
                x = torch.cat([x[:, : x.shape[1] - added.shape[1]], image(x) + added], dim=1)
            return args, {**kwargs, "hidden_states": x}

        return before

    for index, block in enumerate(units):
        block.register_forward_pre_hook(fixed(index), with_kwargs=True)
    assert torch.allclose(run(model, given), joined, atol=1e-5)


@pytest.mark.parametrize("name", ["Flux2Transformer2DModel", "SD3Transformer2DModel"])
def test_gradient_checkpointing_gives_the_same_gradients(name):
    model = tiny(name)
    given = arguments(model)
    train_a_little(add_skip_branches(model))

    def gradients():
        model.zero_grad()
        model(**given).sample.square().mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    plain = gradients()
    model.enable_gradient_checkpointing()
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients()))


def test_joined_streams_compile_into_two_graphs():
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    model = tiny("Flux2Transformer2DModel", num_layers=1, num_single_layers=2)
    given = arguments(model)
    train_a_little(add_skip_branches(model))
    expected, counter = run(model, given), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    cache = enable_skip_cache(compiled, CachePolicy(1, target="residual"))
    assert all(torch.equal(run(compiled, given), expected) for _ in range(6))
    assert cache.trace == ["full", "reused"] * 3 and counter.frame_count == 2


# A class without a declaration


def test_branches_know_the_trunk_that_was_found(undeclared, tmp_path):
    name = "Flux2Transformer2DModel"
    model, other = tiny(name), tiny(name)
    given = arguments(model)
    undeclared(name)
    train_a_little(add_skip_branches(model, example_inputs=given)).save_pretrained(tmp_path)
    joined = run(model, given)
    assert torch.equal(run(copy.deepcopy(model), given), joined)
    assert torch.equal(run(pickle.loads(pickle.dumps(model)), given), joined)

    loaded = SkipBranches.from_pretrained(tmp_path)
    add_skip_branches(other, branches=loaded)
    assert torch.equal(run(other, given), joined)
    assert Backbone.from_record(loaded.config.trunk) == trunk_of(model).backbone

    gone = {"name": "gone", "streams": ["x"], "joins": [], "wrapped": False}
    loaded.register_to_config(trunk={**loaded.config.trunk, "lists": [gone]})
    with pytest.raises(UsageError, match="without gone"):
        add_skip_branches(tiny(name), branches=loaded)
    loaded.register_to_config(trunk={"lists": 3})
    with pytest.raises(UsageError, match="record no trunk"):
        add_skip_branches(tiny(name), branches=loaded)


@pytest.mark.parametrize("target", ["boundary", "residual"])
def test_the_first_forward_tells_the_cache_where_the_trunk_is(undeclared, target):
    name = "AuraFlowTransformer2DModel"
    model = tiny(name)
    given = arguments(model)
    expected, clean = run(model, given), left_on(model)
    undeclared(name)
    cache = enable_skip_cache(model, CachePolicy(2, target=target))
    assert all(torch.equal(run(model, given), expected) for _ in range(4))
    assert cache.trace == ["full", "reused"] * 2
    assert str(cache.report()) == "2 of 4 steps reused, 20 of 24 blocks run"
    disable_skip_cache(model)
    assert left_on(model) == clean


def test_a_cache_may_be_taken_off_before_its_first_forward(undeclared):
    name = "SanaTransformer2DModel"
    model = tiny(name)
    clean = left_on(model)
    undeclared(name)
    enable_skip_cache(model, CachePolicy(1))
    enable_skip_cache(model, CachePolicy(2))
    disable_skip_cache(model)
    assert left_on(model) == clean


def test_a_depth_that_does_not_fit_is_refused_before_or_in_the_first_forward(undeclared):
    name = "SanaTransformer2DModel"
    model = tiny(name)
    with pytest.raises(UsageError, match="6 blocks, valid 1..2"):
        enable_skip_cache(model, CachePolicy(3))
    undeclared(name)
    with pytest.raises(UsageError, match="6 blocks, valid 1..2"):
        enable_skip_cache(tiny(name), CachePolicy(3), example_inputs=arguments(model))


class Block(nn.Module):
    def __init__(self, returned=None, before=None):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.returned, self.before = returned or (lambda x, y: (x, y)), before or (lambda y: None)

    def forward(self, x, y):
        self.before(y)
        return self.returned(x + self.linear(x), y + 1)


class Toy(nn.Module):
    """Two streams of one shape through six blocks; ``returned`` makes what a block returns of them."""

    def __init__(self, returned=None, unpack=lambda result, x, y: result, order=range(6), before=None):
        super().__init__()
        self.layers = nn.ModuleList(Block(returned, before) for _ in range(6))
        self.order, self.unpack = order, unpack

    def forward(self, x, timestep=None):
        y, shared = x * 2, []
        for at in self.order:
            result = self.unpack(self.layers[at](x, y=y), x, y)
            x, y = result[:2]
            shared += result[2:]
        return x + 0.5 * y + sum(shared)


def toy_inputs():
    return {"x": torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))}


class TextFirst(Toy):
    """Called as Cosmos 3 is: the text comes first, and what is denoised has a name of its own."""

    def forward(self, input_ids, vision_tokens, vision_timesteps):
        return super().forward(vision_tokens[0] + input_ids[:, :, None] + vision_timesteps / 1000)


@torch.no_grad()
def test_what_is_denoised_need_not_be_the_first_argument():
    model, noise, texts = TextFirst().eval(), toy_inputs()["x"], [torch.zeros(2, 3), torch.ones(2, 3)]
    cache = enable_skip_cache(model, CachePolicy(1, window=(900, 100)))
    for t in (1000, 800, 600, 400):
        model(texts[0], [noise * t], torch.tensor([t]))
    assert cache.trace == ["full", "reused", "full", "reused"]
    cache = enable_skip_cache(model, CachePolicy(1, full_steps=(0,)))
    made = [model(text, [noise], torch.tensor([1.0])) for text in texts + texts]
    assert cache.trace == ["full", "full", "reused", "reused"]
    assert torch.equal(made[0], made[2]) and torch.equal(made[1], made[3])  # each from its own text's memory


@torch.no_grad()
def test_a_window_without_timesteps_is_refused():
    model = Toy().eval()
    enable_skip_cache(model, CachePolicy(1, window=(900, 100)))
    with pytest.raises(UsageError, match="called without a timestep"):
        model(**toy_inputs())


def test_a_compiled_model_is_watched_uncompiled():
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    model, counter = Toy().eval(), CompileCounter()
    with torch.no_grad():
        expected = model(**toy_inputs())
        compiled = torch.compile(model, backend=counter)
        cache = enable_skip_cache(compiled, CachePolicy(1))
        assert all(torch.equal(compiled(**toy_inputs()), expected) for _ in range(4))
    assert cache.trace == ["full", "reused"] * 2 and counter.frame_count == 2


@pytest.mark.parametrize(
    "toy, found",
    [
        (Toy(), ("x", "y")),
        (Toy(lambda x, y: (y, x), lambda result, x, y: result[::-1]), ("y", "x")),
        (Toy(lambda x, y: (x, None, y), lambda result, x, y: (result[0], result[2])), ("x", None, "y")),
        (Toy(lambda x, y: x, lambda result, x, y: (result, y)), ("x",)),
        (Toy(lambda x, y: (x,), lambda result, x, y: (result[0], y)), ("x",)),
        (Toy(lambda x, y: [x, y], lambda result, x, y: (result[0] + 1, result[1] * 2)), ("x", "y")),
    ],
    ids=["as given", "swapped", "with a None", "one alone", "one in a tuple", "changed in between"],
)
def test_streams_are_known_by_what_goes_where(toy, found):
    toy.eval()
    expected = toy(**toy_inputs())
    branches = add_skip_branches(toy, example_inputs=toy_inputs())
    (listing,) = trunk_of(toy).backbone.lists
    assert (listing.name, listing.streams, listing.joins) == ("layers", found, ())
    assert torch.equal(toy(**toy_inputs()), expected) and branches.config.dim == 4


@pytest.mark.parametrize(
    "toy, reason",
    [
        (nn.Linear(2, 2), "no transformer trunk: it has no list of blocks"),
        (Toy(order=(0, 1, 2, 2, 3, 4, 5)), "layers: its blocks do not run once each, in order"),
        (Toy(order=(5, 4, 3, 2, 1, 0)), "layers: its blocks do not run once each, in order"),
        (Toy(lambda x, y: {"x": x, "y": y}, lambda r, x, y: (r["x"], r["y"])), "no output of a block is an input"),
        (Toy(lambda x, y: (x, y, y.mean())), "whose blocks cannot be left out"),
        (Toy(before=lambda y: y.add_(1)), "a reused step at the same input differs"),
    ],
    ids=["nothing", "twice", "backwards", "a dict", "more than streams", "in place"],
)
def test_what_cannot_be_done_is_refused_with_the_reason(toy, reason):
    clean = left_on(toy)
    for attempt in (
        lambda: add_skip_branches(toy, example_inputs=toy_inputs()),
        lambda: (enable_skip_cache(toy, CachePolicy(1)), toy.eval()(**toy_inputs())),
    ):
        with pytest.raises(UsageError, match=reason):
            with torch.no_grad():
                attempt()
        disable_skip_cache(toy)
        assert left_on(toy) == clean


def test_a_unet_is_refused():
    from diffusers import UNet2DConditionModel

    kinds = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    unet = UNet2DConditionModel(8, block_out_channels=(8, 8), norm_num_groups=4, cross_attention_dim=8, **kinds)
    for attempt in (add_skip_branches, lambda model: enable_skip_cache(model, CachePolicy(1))):
        with pytest.raises(UsageError, match="no transformer trunk: it is a UNet"):
            attempt(unet)


@pytest.mark.parametrize("with_inputs", [False, True])
def test_a_declaration_that_does_not_fit_is_noticed(monkeypatch, with_inputs):
    """Blocks that return their streams in another order than we know: another diffusers, say."""
    name = "QwenImageTransformer2DModel"
    model = tiny(name)
    swapped = BlockList("transformer_blocks", ("hidden_states", "encoder_hidden_states"))
    monkeypatch.setitem(FAMILIES, name, replace(FAMILIES[name], trunk=Backbone((swapped,))))
    if with_inputs:
        with pytest.raises(UsageError, match="declared trunk does not fit|do not hand on"):
            add_skip_branches(model, example_inputs=arguments(model))
        assert not hasattr(model, "skip_branches")
    else:
        add_skip_branches(model)
        with pytest.raises(UsageError, match="do not hand on"):
            run(model, arguments(model))


# Skips of its own


@pytest.fixture
def hunyuan():
    return tiny(NATIVE[0], num_layers=8)


def test_a_model_with_skips_of_its_own_gets_none(hunyuan):
    clean = left_on(hunyuan)
    with pytest.raises(UsageError, match="skips of its own"):
        add_skip_branches(hunyuan)
    assert left_on(hunyuan) == clean


def test_a_reused_step_takes_the_residuals_of_a_controlnet_that_are_its_own(hunyuan):
    """Late blocks take them from the end of the list: the last block, with N = 1, the first of them."""
    given = arguments(hunyuan)
    residuals = [torch.randn(1, 16, 16) for _ in range(3)]
    cache = enable_skip_cache(hunyuan, CachePolicy(1, interval=9))
    expected = run(hunyuan, {**given, "controlnet_block_samples": residuals})
    deep = [residuals[0], *(torch.randn(1, 16, 16) for _ in range(2))]
    assert torch.equal(run(hunyuan, {**given, "controlnet_block_samples": deep}), expected)
    outer = [torch.randn(1, 16, 16), *residuals[1:]]
    assert not torch.equal(run(hunyuan, {**given, "controlnet_block_samples": outer}), expected)
    assert cache.trace == ["full", "reused", "reused"]


def test_a_reused_step_feeds_the_models_own_skips_fresh(hunyuan):
    given = arguments(hunyuan)
    other = {**given, "hidden_states": arguments(hunyuan, seed=1)["hidden_states"]}
    shallow, seen = {}, {}
    hunyuan.blocks[0].register_forward_hook(lambda module, args, output: shallow.update(fresh=output))
    hunyuan.blocks[7].register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    cache = enable_skip_cache(hunyuan, CachePolicy(1, interval=9))
    run(hunyuan, given)
    old = shallow["fresh"]
    run(hunyuan, other)
    assert cache.trace == ["full", "reused"]
    assert torch.equal(seen["skip"], shallow["fresh"]) and not torch.equal(old, shallow["fresh"])


# What a call may carry


def test_residuals_of_a_controlnet_between_blocks():
    model = tiny("FluxTransformer2DModel")
    extra = {
        "controlnet_block_samples": [torch.randn(1, 256, 16) for _ in range(2)],
        "controlnet_single_block_samples": [torch.randn(1, 256, 16) for _ in range(2)],
    }
    given = {**arguments(model), **extra}
    train_a_little(add_skip_branches(model))
    expected = run(model, given)
    assert not torch.equal(expected, run(model, arguments(model)))
    for target in ("boundary", "residual"):
        enable_skip_cache(model, CachePolicy(1, target=target))
        assert all(torch.equal(run(model, given), expected) for _ in range(4))


def test_another_list_of_left_out_layers_is_a_full_step():
    """Skip-layer guidance of SD3: the model leaves blocks out itself."""
    model = tiny("SD3Transformer2DModel")
    given = arguments(model)
    expected = run(model, {**given, "skip_layers": [4]})
    cache = enable_skip_cache(model, CachePolicy(1, interval=9))
    run(model, given)
    assert torch.equal(run(model, {**given, "skip_layers": [4]}), expected)
    assert cache.trace == ["full", "full"]


def test_a_timestep_that_is_a_plain_number():
    model = Toy().eval()
    cache = enable_skip_cache(model, CachePolicy(1))
    with torch.no_grad():
        for timestep in (900, 800, 700, 600):
            model(**toy_inputs(), timestep=timestep)
    assert cache.trace == ["full", "reused"] * 2


def test_a_call_that_fills_another_cache_is_full():
    model = tiny("Flux2Transformer2DModel")
    given = arguments(model)
    cache = enable_skip_cache(model, CachePolicy(1, interval=9))
    for extra in ({}, {}, {"kv_cache_mode": "extract", "num_ref_tokens": 4}, {}):
        run(model, {**given, **extra})
    assert cache.trace == ["full", "reused", "full", "reused"]


def test_branches_of_guidance_are_known_by_lists_of_texts_too():
    from diffusers import FlowMatchEulerDiscreteScheduler

    model, scheduler = tiny("ZImageTransformer2DModel"), FlowMatchEulerDiscreteScheduler()
    one, other = arguments(model), arguments(model, seed=1)["cap_feats"]
    cache = enable_skip_cache(model, CachePolicy(1), scheduler)
    scheduler.set_timesteps(4)
    for t in scheduler.timesteps:
        for texts in [one["cap_feats"], other] if t > 500 else [other, one["cap_feats"]]:
            run(model, {**one, "cap_feats": texts, "t": t[None] / 1000})
        scheduler.step(one["x"][0], t, one["x"][0])
    assert cache.trace == ["full"] * 2 + ["reused"] * 2 + ["full"] * 2 + ["reused"] * 2


def test_a_second_transformer_that_takes_over_begins_with_a_full_step():
    """Wan 2.2: one for the noisy steps, one for the others."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    high, low = tiny("WanTransformer3DModel"), tiny("WanTransformer3DModel", seed=1)
    given, scheduler = arguments(high), FlowMatchEulerDiscreteScheduler()
    caches = [enable_skip_cache(model, CachePolicy(1, interval=3), scheduler) for model in (high, low)]
    for _ in range(2):
        scheduler.set_timesteps(8)
        for step, t in enumerate(scheduler.timesteps):
            run(high if step < 4 else low, {**given, "timestep": t[None]})
            scheduler.step(given["hidden_states"], t, given["hidden_states"])
        assert caches[0].trace == ["full", "reused", "reused", "full"]
        assert caches[1].trace == ["full", "reused", "full", "reused"]  # steps 4 to 7: 6 is full by the schedule


# Models and pipelines as they come


def test_a_model_whose_weights_are_stored_in_eight_bits():
    model = tiny("FluxTransformer2DModel")
    given = arguments(model)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    before = run(model, given)
    assert any(parameter.dtype is torch.float8_e4m3fn for parameter in model.parameters())
    branches = add_skip_branches(model)
    assert {parameter.dtype for parameter in branches.parameters()} == {torch.float32}
    assert torch.equal(run(model, given), before)


@pytest.fixture
def write(tmp_path):
    """``write(pipeline, transformer, **parts)``: the folder of a pipeline whose other parts are None."""

    def to(kind: str, transformer, **parts):
        import diffusers

        from skipdit_cli.models import save_pipeline

        takes = getattr(diffusers, kind)
        required = [name for name, p in inspect.signature(takes).parameters.items() if p.default is p.empty]
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        given = {**dict.fromkeys(required), "transformer": transformer, "scheduler": scheduler, **parts}
        save_pipeline(takes(**given), tmp_path / kind)
        return tmp_path / kind

    return to


def test_convert_takes_a_pipeline_with_two_transformers(write, skipdit, tmp_path):
    one, other = tiny("WanTransformer3DModel"), tiny("WanTransformer3DModel", seed=1)
    given = arguments(one)
    folder = write("WanPipeline", one, transformer_2=other)
    converted = skipdit("convert", folder, "-o", tmp_path / "out", "--json")
    assert converted.code == 0, converted.stderr
    assert converted.json["bitwise_equal"] and "skip_2/" in converted.stderr
    pipe = load_pipeline(tmp_path / "out")
    for loaded, vanilla in ((pipe.transformer, one), (pipe.transformer_2, other)):
        assert torch.equal(run(loaded, given), run(vanilla, given))
    train_a_little(pipe.transformer_2.skip_branches)
    joined = run(pipe.transformer_2, given)
    pipe.save_pretrained(tmp_path / "saved")
    again = load_pipeline(tmp_path / "saved")
    assert torch.equal(run(again.transformer_2, given), joined) and again.transformer.skip_branches.num_pairs == 3


def test_convert_finds_the_trunk_of_a_class_that_is_not_declared(write, skipdit, tmp_path):
    import diffusers

    sizes = dict(num_layers=4, in_channels=2, out_channels=2, sample_size=8, pos_embed_max_size=8, text_embed_dim=6)
    model = diffusers.CogView3PlusTransformer2DModel(**WIDTH, **sizes, time_embed_dim=8, condition_dim=2)
    folder = write("CogView3PlusPipeline", model, scheduler=diffusers.CogVideoXDDIMScheduler())
    unknown = skipdit("info", folder)
    assert unknown.code == 0 and "found in a forward" in unknown.stdout
    converted = skipdit("convert", folder, "-o", tmp_path / "out", "--json")
    assert converted.code == 0 and converted.json["pairs"] == 2 and converted.json["bitwise_equal"]
    known = skipdit("info", tmp_path / "out", "--json").json
    assert (known["blocks"], known["attached"], known["macs"] > 0) == (4, True, True)
    assert trunk_of(load_pipeline(tmp_path / "out").transformer).backbone.joined == "hidden_states"


@pytest.mark.parametrize(
    "name, double, single",
    [
        ("AuraFlowTransformer2DModel", "num_mmdit_layers", "num_single_dit_layers"),
        ("ChromaTransformer2DModel", "num_layers", "num_single_layers"),
        ("Flux2Transformer2DModel", "num_layers", "num_single_layers"),
    ],
)
@pytest.mark.parametrize("doubles", [0, 1, 5])
def test_every_branch_counts_whatever_the_mixture_of_double_and_single_blocks(name, double, single, doubles):
    model = tiny(name, **{double: doubles, single: 6 - doubles})
    given = arguments(model)
    before = run(model, given)
    branches = add_skip_branches(model)
    assert torch.equal(run(model, given), before)
    for linear in branches.linears:
        before = run(model, given)
        with torch.no_grad():
            linear.weight.add_(0.1)
        assert not torch.equal(run(model, given), before)
    full = run(model, given)
    cache = enable_skip_cache(model, CachePolicy(2))
    assert torch.equal(run(model, given), full) and torch.equal(run(model, given), full)
    assert cache.trace == ["full", "reused"]


@pytest.mark.parametrize(
    "given, words",
    [
        ([1], "of type list but expected a dict"),
        ({}, "missing a required argument: 'hidden_states'"),
        (
            {"hidden_states": 1, "timestep": 1, "encoder_hidden_states": 1, "foo": 1},
            "unexpected keyword argument 'foo'",
        ),
    ],
)
def test_example_inputs_that_are_none(given, words):
    model = tiny("SanaTransformer2DModel")
    with pytest.raises(UsageError, match=words):
        add_skip_branches(model, example_inputs=given)
    with pytest.raises(UsageError, match=words):
        enable_skip_cache(model, CachePolicy(1), example_inputs=given)


@pytest.mark.parametrize("thing", [None, object()])
def test_what_is_no_model(thing):
    with pytest.raises(UsageError, match="such as pipe.transformer"):
        add_skip_branches(thing)
    with pytest.raises(UsageError, match="such as pipe.transformer"):
        enable_skip_cache(thing, CachePolicy(1))


@pytest.mark.parametrize(
    "kind, name, config, reason",
    [
        ("HunyuanDiTPipeline", "HunyuanDiT2DModel", {}, "has skips of its own"),
        ("SanaPipeline", "SanaTransformer2DModel", {"num_layers": 1}, "1 block, too few"),
    ],
)
def test_convert_refuses_in_a_sentence(write, skipdit, tmp_path, kind, name, config, reason):
    folder = write(kind, tiny(name, **config))
    refused = skipdit("convert", folder, "-o", tmp_path / "out")
    assert refused.code == 2 and reason in refused.stderr and not (tmp_path / "out").exists()


def test_convert_refuses_a_model_no_input_is_known_for(skipdit, tmp_path):
    import diffusers

    sizes = dict(num_layers=2, embedding_dim=8, num_embeddings=7, additional_embeddings=4)
    prior = diffusers.PriorTransformer(**WIDTH, **sizes)
    prior.save_pretrained(tmp_path / "pipeline" / "transformer")
    diffusers.DDIMScheduler().save_pretrained(tmp_path / "pipeline" / "scheduler")
    index = {"transformer": ["diffusers", "PriorTransformer"], "scheduler": ["diffusers", "DDIMScheduler"]}
    (tmp_path / "pipeline" / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline", **index}))
    refused = skipdit("convert", tmp_path / "pipeline", "-o", tmp_path / "out")
    assert refused.code == 2 and "no example of it can be made" in refused.stderr
    assert "in Python" in refused.stderr  # what can be done


# The table


def test_the_table_of_families_is_what_was_found_out(skipdit):
    table = skipdit("info", "--families", "--json")
    assert table.code == 0, table.stderr
    known = {row["name"]: row for row in table.json["families"]}
    assert set(transformer_classes()) | set(BACKBONES) == set(known)
    for name in CONFIGS:  # the tests above try these out anew
        lists = [listing.name for listing in BACKBONES[name].lists]
        assert known[name]["known"] == ("own skips" if name in NATIVE else "declared")
        assert known[name]["blocks"] == lists
    recorded = json.loads(RECORD.read_text())["classes"]
    assert all(recorded[name]["works"] for name in CONFIGS)
    assert all(recorded[name]["blocks"] == [each.name for each in BACKBONES[name].lists] for name in CONFIGS)


def test_the_table_as_markdown(skipdit):
    table = skipdit("info", "--families", "--markdown").stdout
    assert "| `PixArtTransformer2DModel` | declared | transformer_blocks | - |" in table
    page = (FOLDER / "backbones.md").read_text()
    assert [line for line in table.splitlines() if line.startswith("| `") and line not in page] == []
    for wrong in (["--markdown"], ["--families", "-m", "x"]):
        assert skipdit("info", *wrong).code == 2
