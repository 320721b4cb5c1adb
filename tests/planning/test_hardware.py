"""``skipdit info --plan-hardware``: its figures against real steps, and against each other."""

import pytest
import torch

from skipdit_cli import CachePolicy, add_skip_branches, enable_skip_cache
from skipdit_cli.errors import UsageError
from skipdit_cli.families.example import example_inputs
from skipdit_cli.guide.topics import topic_path
from skipdit_cli.planning.flops import StepFlops
from skipdit_cli.planning.hardware import accelerators
from skipdit_cli.planning.hardware.device_memory import DDP, FSDP, ONE, ZERO, place
from skipdit_cli.planning.hardware.footprint import Workload, sampling_footprint, training_footprint
from tests.support.peak_memory import peak_of_sampling, peak_of_training
from tests.support.tiny_transformers import tiny

WIDE = {"num_attention_heads": 4, "attention_head_dim": 16}


def planned(model, workload: Workload) -> int:
    return place(ONE, training_footprint(model, workload), 1).peak


def branched(model, only_branches: bool = False):
    add_skip_branches(model)
    if only_branches:
        model.requires_grad_(False).skip_branches.requires_grad_(True)
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_of_training_a_dit_with_branches_is_that_of_a_real_step(tiny_dit, checkpointing):
    workload = Workload(8, gradient_checkpointing=checkpointing)
    model = branched(tiny_dit(num_layers=4, sample_size=16, **WIDE))
    assert planned(model, workload) == pytest.approx(peak_of_training(model, workload), rel=0.15)


def test_the_peak_of_stage_1_is_that_of_a_real_step(tiny_dit):
    model = branched(tiny_dit(num_layers=4, sample_size=16, **WIDE), only_branches=True)
    workload = Workload(8, only_branches=None)
    expected = peak_of_training(model, workload)
    assert planned(model, workload) == pytest.approx(expected, rel=0.15)
    assert planned(model, Workload(8, only_branches=True)) == planned(model, workload)


def test_the_peak_of_training_a_video_model_is_that_of_a_real_step(tiny_latte):
    model, workload = branched(tiny_latte(num_layers=2, **WIDE)), Workload(4)
    assert planned(model, workload) == pytest.approx(peak_of_training(model, workload), rel=0.15)


def test_the_peak_of_training_in_bfloat16_on_captions_is_that_of_a_real_step():
    model = tiny("PixArtTransformer2DModel")
    workload = Workload(4, (None, 16, 16), mixed_precision="bf16")
    assert planned(model, workload) == pytest.approx(peak_of_training(model, workload), rel=0.15)


def test_the_peak_of_sampling_is_that_of_a_real_forward_and_the_cache_holds_one_tensor(tiny_dit):
    model = branched(tiny_dit(num_layers=4, sample_size=16, **WIDE)).to(torch.bfloat16)
    footprint = sampling_footprint(model, 8)
    assert footprint.weights + footprint.activations == pytest.approx(peak_of_sampling(model, 8), rel=0.15)
    cache = enable_skip_cache(model, CachePolicy(1, forecast="reuse"))
    with torch.no_grad():
        model(**example_inputs(model, 8, dtype=torch.bfloat16))
    assert footprint.boundary == cache.peak_bytes == 8 * 64 * 64 * 2  # batch, tokens, width, bytes of a bfloat16
    assert footprint.flops == 2 * 8 * StepFlops(model).full


def test_a_backward_pass_counts_twice_its_forward_and_checkpointing_once_more(tiny_dit):
    model = tiny_dit(num_layers=2)
    forward = 2 * 4 * StepFlops(model).full
    plain = training_footprint(model, Workload(4))
    again = training_footprint(model, Workload(4, gradient_checkpointing=True))
    assert plain.flops == pytest.approx(3 * forward, rel=0.05) and again.flops == pytest.approx(4 * forward, rel=0.05)
    assert again.activations < plain.activations / 3 and again.weights == plain.weights


def test_what_is_sharded_shrinks_with_the_devices(tiny_dit):
    footprint = training_footprint(branched(tiny_dit()), Workload(4), share=1 / 8)
    one, ddp, fsdp, zero = (place(name, footprint, 1 if name == ONE else 8) for name in (ONE, DDP, FSDP, ZERO))
    assert ddp.communication == footprint.trained and ddp.peak == one.peak + footprint.trained
    assert fsdp.optimizer == one.optimizer // 8 and fsdp.average == one.average // 8 and fsdp.peak < one.peak
    assert zero.weights == one.weights and zero.gradients == one.gradients // 8
    on_gpu = place(ONE, footprint, 1, gpu_memory=24 << 30)
    assert on_gpu.allowance > 1 << 30 and on_gpu.peak >= one.peak + on_gpu.allowance
    assert place(ONE, footprint, 1, ema=False).average == 0
    assert place(ONE, footprint, 1, accumulates=True).peak == one.peak + footprint.trained


def test_sharded_weights_are_float32_under_mixed_precision(tiny_dit):
    """Training gathers them in float32 and computes with copies that autocast makes, as in one process."""
    model = branched(tiny_dit(num_layers=2))
    footprint = training_footprint(model, Workload(2, mixed_precision="bf16"), share=1 / 8)
    one, fsdp, zero = (place(name, footprint, 1 if name == ONE else 8) for name in (ONE, FSDP, ZERO))
    assert fsdp.activations == zero.activations == one.activations
    assert zero.weights == one.weights and zero.gradients == one.gradients // 8
    assert fsdp.communication == 2 * footprint.largest_block + footprint.outside_blocks + footprint.largest_block


def test_devices_by_name_and_by_figures():
    parse = accelerators.parse_hardware
    assert (parse("8xH100").count, parse("8xH100").device.bf16) == (8, 989e12)
    assert parse("2x RTX 4090").device.name == "RTX4090" and parse("4xa100").device.memory == 80 << 30
    assert parse("L4").count == 1 and parse("16xH100").link == accelerators.NETWORK
    assert parse("1xCPU:24GB").device.memory == 24 << 30 and parse("1xCPU:24GB").device.fp32 is None
    own = parse("8x80GB:989TFLOPS:3350GB/s").device
    assert (own.memory, own.bf16, own.bandwidth) == (80 << 30, 989e12, 3.35e12)
    for text in ("", "0xH100", "8x", "xH100", "8xFOO", "1xCPU", "8xH100:x", "8x80GB:0TFLOPS", "-1xH100", "9" * 30):
        with pytest.raises(UsageError, match="--plan-hardware"):
            parse(text)


def test_the_table_of_the_guide_has_the_known_devices():
    page = topic_path("many-gpus").read_text(encoding="utf-8")
    for row in accelerators.rows():
        assert f"| {' | '.join(row)} |" in page, row[0]


def test_the_command_shows_memory_time_and_cost(skipdit, tiny_pipeline):
    model = tiny_pipeline(num_layers=2)
    flags = ("--plan-hardware", "8xH100", "--train-batch-size", 4, "--price-per-hour", 2, "--steps", 10)
    ran = skipdit("info", model, *flags, "--json")
    assert ran.code == 0, ran.stderr
    for words in ("DDP x8", "FSDP2 x8", "ZeRO-2 x8", "with --gradient-checkpointing", "25% to 55% of 989", "cost"):
        assert words in ran.stderr
    plan = ran.json
    one, ddp = plan["training"][:2]
    assert one["fits"] and plan["workload"]["mixed_precision"] == "bf16"
    assert ddp["samples"] == 32 and ddp["cost"]["most"] == pytest.approx(2 * ddp["device_hours"]["most"])
    assert plan["hardware"]["device"]["link"] == 450e9


def test_a_cpu_has_no_time_without_its_peak_and_no_allowance(skipdit, tiny_pipeline):
    flags = ("--plan-hardware", "1xCPU:1GB", "--train", "skip", "--no-use-ema", "--train-batch-size", 2, "--json")
    ran = skipdit("info", tiny_pipeline(num_layers=2), *flags)
    assert ran.code == 0 and "1xCPU:1GB:100GFLOPS" in ran.stderr and "DDP" not in ran.stderr
    (only,) = ran.json["training"]
    assert only["step"] is None and only["placement"]["allowance"] == 0 == only["placement"]["average"]
