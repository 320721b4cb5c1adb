"""planning.flops: the count of a step, against published figures and against what the cache really runs."""

import re

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from skipdit_cli import CachePolicy, add_skip_branches, enable_skip_cache
from skipdit_cli.errors import UsageError
from skipdit_cli.planning.flops import StepFlops, example_inputs, meta_transformer
from skipdit_cli.presets import load_preset
from tests.support.tiny_transformers import CONFIGS, arguments
from tests.support.tiny_transformers import tiny as family

XL_2_256 = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "sample_size": 32,
}


def tiny(merge=None, num_layers=7):
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=3,
        out_channels=3,
        num_layers=num_layers,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    ).eval()
    if merge:
        add_skip_branches(model, merge)
    return model


@torch.no_grad()
def counted(model, inputs=None) -> int:
    """Multiply-adds of a real forward; the counter knows nothing of the CPU's fused attention."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        model(**(inputs or example_inputs(model)))
    return counter.get_total_flops() // 2


def test_dit_xl_2_costs_what_the_paper_says_and_branches_add_8_percent():
    model = meta_transformer(DiTTransformer2DModel, XL_2_256, "residual")
    assert all(tensor.is_meta for tensor in model.parameters())
    flops = StepFlops(model)
    assert flops.vanilla == pytest.approx(118.64e9, rel=5e-4)
    assert flops.full - flops.vanilla == pytest.approx(9.51e9, rel=1e-3)
    assert flops.full / flops.vanilla - 1 == pytest.approx(0.080, abs=5e-4)
    assert sum(p.numel() for p in model.skip_branches.parameters()) == pytest.approx(37.24e6, rel=1e-4)


def test_all_sizes_cost_within_002_g_of_the_paper():
    """Multiply-adds in G at 256x256 of arXiv 2212.09748, from which diffusers' repeated embedders are left out."""
    paper = {"s": (6.06, 1.41, 0.36), "b": (23.01, 5.56, 1.42), "l": (80.71, 19.70, 5.01), "xl": (118.64, 29.05, 7.39)}
    for size, costs in paper.items():
        for patch, cost in zip((2, 4, 8), costs):
            preset = load_preset(f"dit-{size}-{patch}-256")
            config = preset.model["config"]
            few, more = (
                StepFlops(meta_transformer(DiTTransformer2DModel, {**config, "num_layers": blocks}))
                for blocks in (1, 2)
            )
            added = config["num_layers"] - 1  # every block costs the same, so two shallow models tell the cost of all
            counted = few.vanilla - few.copies + added * (more.vanilla - more.copies - few.vanilla + few.copies)
            assert abs(counted / 1e9 - cost) < 0.02, (size, patch, counted)
            stated = re.search(r"([\d.]+) GMACs", preset.about)[1]
            assert f"{counted / 1e9:.{len(stated.partition('.')[2])}f}" == stated


@pytest.mark.parametrize("merge", [None, "residual", "replace"])
def test_counts_are_those_of_the_forwards_that_run(merge):
    model = tiny(merge)
    flops = StepFlops(model)
    assert flops.full == counted(model)
    assert flops.vanilla == counted(tiny())
    for layers in (1, 2, 3):
        cache = enable_skip_cache(model, CachePolicy(layers, interval=2))
        assert [counted(model), counted(model)] == [flops.full, flops.reused(layers)]
        assert cache.trace == ["full", "reused"]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_costs_what_its_real_forward_costs(name):
    """Those too whose forward reads its masks (Lumina 2, Mochi) and those with an attention of their own."""
    model = family(name)
    if name != "HunyuanDiT2DModel":
        add_skip_branches(model)
    flops = StepFlops(model, [arguments(model)])
    enable_skip_cache(model, CachePolicy(1))
    assert [counted(model, arguments(model)) for _ in range(2)] == [flops.full, flops.reused(1)]
    assert 1 < flops.limit((True, False), 1) < 2
    StepFlops(model)  # at its own size


def test_a_batch_and_a_lower_precision_cost_what_one_image_costs():
    model = family("SD3Transformer2DModel")
    one, three = (example_inputs(model, batch, small=True, dtype=dtype) for batch, dtype in
                  ((1, torch.float32), (3, torch.bfloat16)))  # fmt: skip
    assert StepFlops(model, [one]).units == StepFlops(model, [three]).units == StepFlops(model, [one, three]).units
    with torch.autocast("cpu", torch.bfloat16):
        assert counted(model, one) == StepFlops(model, [one]).full


def test_attention_is_counted():
    """16 tokens of width 16: two products of 16 x 16 x 16 a block, which a count of Linear layers would miss."""
    linear_only = sum(
        module.in_features * module.out_features * (16 if "attn" in name or "ff" in name else 1)
        for name, module in tiny(num_layers=1).transformer_blocks[0].named_modules()
        if isinstance(module, torch.nn.Linear)
    )
    assert StepFlops(tiny(num_layers=7)).units[3] == linear_only + 2 * 16 * 16 * 16


def test_a_width_of_the_mlp_that_diffusers_does_not_know_is_counted():
    config = {**tiny().config, "mlp_ratio": 2.0}
    flops = StepFlops(meta_transformer(DiTTransformer2DModel, config))
    assert StepFlops(tiny()).full - flops.full == 7 * 2 * 16 * (2 * 16 * 16)


def test_limit_is_all_full_over_what_ran():
    flops = StepFlops(tiny("residual"))
    full, reused = flops.full, flops.reused(2)
    assert flops.limit(["full"] * 5, 2) == 1
    assert flops.limit(["full", "reused", "reused", "full"], 2) == pytest.approx(4 * full / (2 * full + 2 * reused))
    assert flops.limit((True, False), 2) == pytest.approx(2 * full / (full + reused))
    assert flops.ideal_speedup(2, 2, steps=10) == pytest.approx(10 * full / (5 * full + 5 * reused))
    assert 1 < flops.ideal_speedup(3, 5) < flops.ideal_speedup(1, 5)


def test_too_deep_a_cache_is_refused():
    with pytest.raises(
        UsageError, match=r"--cache-layers 4 leaves nothing to cache: the model has 7 blocks, valid 1\.\.3"
    ):
        StepFlops(tiny()).reused(4)
