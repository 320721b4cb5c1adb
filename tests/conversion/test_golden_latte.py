"""Official Latte checkpoints through ``skipdit convert`` give the numbers of the official code (tests/golden)."""

import pytest
import torch

from skipdit_cli import CachePolicy, disable_skip_cache, enable_skip_cache, load_pipeline
from skipdit_cli.sampling.by_class import denoise
from skipdit_cli.sampling.schedulers import make_scheduler
from tests.support.measurements import relative_l2

CASES = ["latte_cond", "latte_uncond", "latte_skip_cond", "latte_skip_uncond"]
SKIP_CASES = CASES[2:]
TEXT = "latte_t2v_skip"
TOLERANCE = 1e-4
WINDOW = (900, 49)  # the official code's "t >= 900 is full, over after t < 50", for whole timesteps
TEXT_VARIANTS = {"N2-700-50": (2, (700, 50)), "N3-800-100": (3, (800, 100))}


@pytest.fixture(scope="module")
def pipeline(golden_pipeline):
    loaded = {}
    return lambda name: loaded.setdefault(name, load_pipeline(golden_pipeline(name)))


def swapped(video):
    """(..., F, C, H, W), the official layout, to (..., C, F, H, W) or back."""
    return video.transpose(-4, -3)


@torch.no_grad()
def forward(transformer, x, t, y=None):
    return swapped(transformer(swapped(x), timestep=t, class_labels=y).sample)


@torch.no_grad()
def sequence(transformer, case):
    """The transformer called once per entry of the case's ``seq_*``, in order."""
    y = case.io.get("seq_y")
    return torch.stack([forward(transformer, x, t[None], y) for x, t in zip(case.io["seq_x"], case.io["seq_t"])])


def check_cached(cached, uncached, expected, plain):
    assert relative_l2(uncached, plain) < TOLERANCE
    assert relative_l2(cached, expected) < TOLERANCE
    assert relative_l2(cached - uncached, expected - plain) < 0.02


def check_trace(cache, facts):
    assert [at for at, kind in enumerate(cache.trace) if kind == "full"] == facts["full_step_indices"]


@pytest.mark.parametrize("name", CASES)
def test_forward(name, golden, pipeline):
    case = golden(name)
    out = forward(pipeline(name).transformer, case.io["x"], case.io["t"], case.io.get("y"))
    assert relative_l2(out, case.io["out_forward"]) < TOLERANCE


def test_guided_forward_of_all_channels(golden, pipeline):
    case = golden("latte_cond")
    x, t, y = case.io["x"], case.io["t"], case.io["y"]
    transformer = pipeline(case.name).transformer
    null = torch.full_like(y, transformer.config.num_embeds_ada_norm)
    out = forward(transformer, torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, null]))
    guided, unguided = out[:, :, :4].chunk(2)
    mixed = unguided + 7.0 * (guided - unguided)
    out = torch.cat([torch.cat([mixed, mixed]), out[:, :, 4:]], dim=2)
    assert relative_l2(out, case.io["out_forward_cfg7"]) < TOLERANCE


@pytest.mark.parametrize("interval", [2, 3])
@pytest.mark.parametrize("name", SKIP_CASES)
def test_the_sequence_of_calls(name, interval, golden, pipeline):
    case, transformer = golden(name), pipeline(name).transformer
    uncached = sequence(transformer, case)
    cache = enable_skip_cache(transformer, CachePolicy(layers=1, interval=interval, window=WINDOW, forecast="reuse"))
    cached = sequence(transformer, case)
    disable_skip_cache(transformer)
    check_trace(cache, case.facts[f"seq_cache{interval}"])
    check_cached(cached, uncached, case.io[f"out_seq_cache{interval}"], case.io["out_seq_uncached"])


def sample(pipe, case, guidance_scale=1.0, policy=None):
    """Final latents of DDIM in 20 steps, and the cache."""
    scheduler = make_scheduler("ddim", pipe)
    scheduler.set_timesteps(20)
    cache = enable_skip_cache(pipe.transformer, policy, scheduler) if policy else None
    x, labels = swapped(case.io["x_T"]), case.io.get("sample_y")
    try:
        made = denoise(pipe.transformer, scheduler, x, labels, guidance_scale=guidance_scale, guided_channels=4)
    finally:
        disable_skip_cache(pipe.transformer)
    return swapped(made), cache


@pytest.mark.parametrize("interval", [2, 3])
@pytest.mark.parametrize("name, guidance_scale", [*((name, 1.0) for name in SKIP_CASES), ("latte_skip_cond", 7.0)])
def test_ddim_runs(name, guidance_scale, interval, golden, pipeline):
    case, pipe = golden(name), pipeline(name)
    run = "ddim20_cfg7" if guidance_scale > 1 else "ddim20"
    uncached, _ = sample(pipe, case, guidance_scale)
    cached, cache = sample(
        pipe, case, guidance_scale, CachePolicy(1, interval=interval, window=WINDOW, forecast="reuse")
    )
    check_trace(cache, case.facts[f"{run}_cache{interval}"])
    expected = [case.io[f"{run}_{kind}_final"][: len(cached)] for kind in (f"cache{interval}", "uncached")]
    check_cached(cached, uncached, *expected)


# Text to video


@torch.no_grad()
def text_forward(transformer, x, t, context, mask=None):
    if mask is not None:  # diffusers takes a bias for every frame, the official class a mask for every video
        mask = ((1 - mask) * -10000.0)[:, None].repeat_interleave(x.shape[2], dim=0)
    return transformer(x, timestep=t, encoder_hidden_states=context, encoder_attention_mask=mask).sample


@pytest.mark.parametrize("masked", [False, True])
def test_text_forward(masked, golden, pipeline):
    case, transformer = golden(TEXT), pipeline(TEXT).transformer
    mask = case.io["context_mask"] if masked else None
    out = text_forward(transformer, case.io["x"], case.io["t"], case.io["context"], mask)
    assert relative_l2(out, case.io["out_forward_masked" if masked else "out_forward"]) < TOLERANCE


def text_sequence(transformer, case):
    context = case.io["sample_context"]
    steps = zip(case.io["seq_x"], case.io["seq_t"])
    return torch.stack([text_forward(transformer, x, t[None], context) for x, t in steps])


@pytest.mark.parametrize("variant", TEXT_VARIANTS)
def test_the_sequence_of_text_calls(variant, golden, pipeline):
    case, transformer = golden(TEXT), pipeline(TEXT).transformer
    interval, window = TEXT_VARIANTS[variant]
    uncached = text_sequence(transformer, case)
    cache = enable_skip_cache(transformer, CachePolicy(layers=1, interval=interval, window=window, forecast="reuse"))
    cached = text_sequence(transformer, case)
    disable_skip_cache(transformer)
    check_trace(cache, case.facts[f"seq_{variant}"])
    check_cached(cached, uncached, case.io[f"out_seq_{variant}"], case.io["out_seq_uncached"])


def text_sample(pipe, case, policy=None):
    scheduler = make_scheduler(None, pipe)
    scheduler.set_timesteps(20)
    cache = enable_skip_cache(pipe.transformer, policy, scheduler) if policy else None
    x = case.io["x_T"]
    for t in scheduler.timesteps:
        eps = text_forward(pipe.transformer, x, t[None], case.io["sample_context"])[:, :4]
        x = scheduler.step(eps, t, x, return_dict=False)[0]
    disable_skip_cache(pipe.transformer)
    return x, cache


@pytest.mark.parametrize("variant", TEXT_VARIANTS)
def test_text_ddim_runs(variant, golden, pipeline):
    case, pipe = golden(TEXT), pipeline(TEXT)
    interval, window = TEXT_VARIANTS[variant]
    uncached, _ = text_sample(pipe, case)
    cached, cache = text_sample(pipe, case, CachePolicy(1, interval=interval, window=window, forecast="reuse"))
    check_trace(cache, case.facts[f"ddim20_{variant}"])
    check_cached(cached, uncached, case.io[f"ddim20_{variant}_final"], case.io["ddim20_uncached_final"])
