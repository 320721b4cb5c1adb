"""Official checkpoints through ``skipdit convert`` give the numbers of the official code (tests/golden)."""

import pytest
import torch

from skipdit_cli import CachePolicy, disable_skip_cache, enable_skip_cache, load_pipeline
from tests.support.measurements import relative_l2

CASES = ["dit", "dit_skip", "dit_skip_cache"]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model(golden_pipeline):
    return lambda name: load_pipeline(golden_pipeline(name)).transformer


@torch.no_grad()
def forward(transformer, x, t, y):
    return transformer(x, timestep=t, class_labels=y).sample


@torch.no_grad()
def sequence(transformer, case):
    """The transformer called once per entry of the case's ``seq_*``, in order."""
    batch = case.io["seq_y"].shape[0]
    times = case.io["seq_t"][:, None].expand(-1, batch)
    return torch.stack([forward(transformer, x, t, case.io["seq_y"]) for x, t in zip(case.io["seq_x"], times)])


@pytest.mark.parametrize("name", CASES)
def test_forward(name, golden, model):
    case = golden(name)
    out = forward(model(name), case.io["x"], case.io["t"], case.io["y"])
    assert relative_l2(out, case.io["out_forward"]) < TOLERANCE


@pytest.mark.parametrize("name", ["dit", "dit_skip"])
def test_guided_forward_of_three_channels(name, golden, model):
    case = golden(name)
    x, t, y = case.io["x"], case.io["t"], case.io["y"]
    null = torch.full_like(y, case.architecture["num_classes"])
    out = forward(model(name), torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, null]))
    guided, unguided = out[:, :3].chunk(2)
    mixed = unguided + 4.0 * (guided - unguided)
    out = torch.cat([torch.cat([mixed, mixed]), out[:, 3:]], dim=1)
    assert relative_l2(out, case.io["out_forward_cfg4"]) < TOLERANCE


def test_the_sequence_of_calls_uncached(golden, model):
    case = golden("dit_skip_cache")
    assert relative_l2(sequence(model(case.name), case), case.io["out_seq_uncached"]) < TOLERANCE


@pytest.mark.parametrize("interval", [2, 3])
def test_the_sequence_of_calls_with_the_official_cache(interval, golden, model):
    case = golden("dit_skip_cache")
    transformer = model(case.name)
    uncached = sequence(transformer, case)
    cache = enable_skip_cache(
        transformer, CachePolicy(layers=4, interval=interval, window=(1000, 20), forecast="reuse")
    )
    cached = sequence(transformer, case)
    trace = cache.trace
    disable_skip_cache(transformer)
    expected, plain = case.io[f"out_seq_cache{interval}"], case.io["out_seq_uncached"]
    full = case.facts[f"seq_cache{interval}"]["full_step_indices"]
    assert [at for at, kind in enumerate(trace) if kind == "full"] == full
    assert relative_l2(cached, expected) < TOLERANCE
    assert relative_l2(cached - uncached, expected - plain) < 0.02


def test_the_time_embedding_is_what_makes_them_agree(golden, model):
    from skipdit_cli.skip.time_embedding import set_time_embedding

    case, transformer = golden("dit"), model("dit")
    set_time_embedding(transformer, "diffusers")
    out = forward(transformer, case.io["x"], case.io["t"], case.io["y"])
    assert relative_l2(out, case.io["out_forward"]) > 0.5
