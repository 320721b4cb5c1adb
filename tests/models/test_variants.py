"""``--variant``: weights in files such as ``diffusion_pytorch_model.fp16.safetensors``."""

import pytest
import torch

from skipdit_cli import load_pipeline
from skipdit_cli.models.outline import read_outline
from skipdit_cli.models.weights import STEM


@pytest.fixture
def both(tiny_pipeline):
    """A folder with weights in float32 without a variant, and others, in float16, in the variant fp16."""
    folder, other = tiny_pipeline(), load_pipeline(tiny_pipeline("other", seed=1))
    other.transformer.half().save_pretrained(folder / "transformer", variant="fp16")
    return folder


def test_the_variant_is_read_and_a_missing_one_is_refused_by_all_commands(skipdit, both, tmp_path):
    plain, half = load_pipeline(both).transformer, load_pipeline(both, variant="fp16").transformer
    assert not torch.allclose(*(each.transformer_blocks[0].attn1.to_q.weight for each in (plain, half)), atol=1e-3)
    assert read_outline(both, variant="fp16").trunk is not None
    sample = ("sample", "--class-labels", "0", "--steps", 1, "-o", tmp_path / "a.png")
    commands = [
        sample,
        ("convert", "-o", tmp_path / "c"),
        ("info",),
        ("bench",),
        ("calibrate", "--cost", 4, "-o", tmp_path / "p.yaml"),
    ]
    commands += [("finetune", "--data", tmp_path / "data", "-o", tmp_path / "run")]
    (tmp_path / "data").mkdir()
    for command in commands:
        result = skipdit(*command, "-m", both, "--variant", "bf16")
        assert result.code == 2 and "has weights in the variants: fp16; leave --variant out" in result.stderr, command
    assert skipdit(*sample, "-m", both, "--variant", "fp16").code == 0
    refused = skipdit("convert", "-m", both, "--variant", "fp16", "-o", tmp_path / "c")
    assert refused.code == 2 and "without a variant as well" in refused.stderr
    (both / "transformer" / f"{STEM}.safetensors").unlink()
    assert skipdit("convert", "-m", both, "--variant", "fp16", "-o", tmp_path / "c").code == 0
