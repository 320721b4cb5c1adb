"""DiT's four ways of conditioning: the paper's counts, diffusers' numbers, and what the package does to a model."""

import pytest
import torch
from diffusers import DiTTransformer2DModel

from skipdit_cli import CachePolicy, enable_skip_cache, load_pipeline
from skipdit_cli.families.conditioned_dit import CONDITIONINGS
from skipdit_cli.families.conditioned_dit_model import ConditionedDiTTransformer2DModel
from skipdit_cli.skip.time_embedding import set_time_embedding
from tests.support.tiny_dit_runs import inputs, sample
from tests.support.tiny_transformers import perturbed

SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 1,
    "out_channels": 2,
    "sample_size": 8,
    "num_embeds_ada_norm": 10,
    "num_layers": 4,
}
PAPER = {
    "in-context": (449, 119.4),
    "cross-attention": (598, 137.6),
    "adaln": (600, 118.6),
    "adaln-zero": (675, 118.6),
}
"""Millions of parameters and G multiply-adds of XL/2 at 256x256, from section 5 of arXiv 2212.09748."""
PRESET = """about: A tiny DiT.
source: tests.
model:
  class: DiTTransformer2DModel
  config: {num_layers: 4, num_attention_heads: 2, attention_head_dim: 8, in_channels: 1, out_channels: 2,
    sample_size: 8, patch_size: 4, num_embeds_ada_norm: 10}
train: {data: digits, train-batch-size: 4, max-train-steps: 2}
finetune: {data: digits, train-batch-size: 4, max-train-steps: 2}
"""


def make(conditioning: str):
    torch.manual_seed(0)
    return perturbed(ConditionedDiTTransformer2DModel(conditioning, **SIZES).eval())


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_xl_2_has_the_parameters_and_multiply_adds_of_the_paper(skipdit, conditioning):
    facts = skipdit("info", "--preset", "dit-xl-2-256", "--conditioning", conditioning, "--json").json
    parameters, macs = PAPER[conditioning]
    assert facts["parameters"] / 1e6 == pytest.approx(parameters, rel=0.002)
    assert facts["macs"] / 1e9 == pytest.approx(macs, rel=0.001)


def test_adaln_zero_gives_the_numbers_of_diffusers_with_the_same_weights():
    theirs = perturbed(DiTTransformer2DModel(**SIZES, norm_eps=1e-6).eval())
    set_time_embedding(theirs, "official")
    for block in theirs.transformer_blocks[1:]:  # as in the official code, where all blocks share the embedders
        block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
    first = "transformer_blocks.0.norm1.emb."
    weights = {key.removeprefix(first): value for key, value in theirs.state_dict().items()}
    ours = ConditionedDiTTransformer2DModel("adaln-zero", **SIZES).eval()
    ours.load_state_dict({key: value for key, value in weights.items() if ".norm1.emb." not in key})
    with torch.no_grad():
        assert torch.equal(ours(**inputs()).sample, theirs(**inputs()).sample)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_the_timestep_and_the_label_reach_the_output_and_tokens_that_hold_them_do_not(conditioning):
    model, given = make(conditioning), inputs()
    with torch.no_grad():
        output = model(**given).sample
        assert output.shape == (2, 2, 8, 8)
        for name in ("timestep", "class_labels"):
            assert not torch.allclose(model(**{**given, name: given[name] + 1}).sample, output)


def test_gradient_checkpointing_changes_no_gradient():
    for conditioning in CONDITIONINGS:
        gradients = []
        for checkpointing in (False, True):
            model = make(conditioning)
            if checkpointing:
                model.enable_gradient_checkpointing()
            model(**inputs()).sample.square().mean().backward()
            gradients.append([parameter.grad for parameter in model.parameters()])
        assert all(torch.equal(one, other) for one, other in zip(*gradients))


def test_another_conditioning_is_refused(skipdit, tmp_path):
    with pytest.raises(ValueError, match="Got conditioning 'film'"):
        ConditionedDiTTransformer2DModel("film")
    for words, says in (
        (("--preset", "digits", "--conditioning", "adalin"), "Did you mean 'adaln'?"),
        (("--preset", "digits-video", "--conditioning", "adaln"), "LatteClassTransformer3DModel"),
        (("--sweep", "digits-sizes", "--conditioning", "adaln"), "--sweep"),
    ):
        ran = skipdit("train", *words, "-o", tmp_path / "out")
        assert ran.code == 2 and says in ran.stderr and not (tmp_path / "out").exists()
    assert "--preset of a DiT" in skipdit("info", tmp_path, "--conditioning", "adaln").stderr


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_a_model_is_trained_converted_finetuned_cached_and_sampled(skipdit, tmp_path, conditioning):
    preset, folder = tmp_path / "own.yaml", tmp_path / "run"
    preset.write_text(PRESET)

    def run(*words):
        ended = skipdit(*words, "--json")
        assert ended.code == 0, ended.stderr
        return ended

    run("train", "--preset", preset, "--no-skip-branches", "--conditioning", conditioning, "-o", folder / "vanilla")
    proof = run("convert", "-m", folder / "vanilla", "-o", folder / "skip")
    assert "bit" in proof.stderr
    run("finetune", "-m", folder / "skip", "--preset", preset, "--train", "skip", "-o", folder / "stage1")
    ended = run(
        "sample", "-m", folder / "stage1", "--class-labels", "0,1", "--steps", 6, "--cache-layers", 1,
        "--cache-interval", 2, "--guidance-scale", 1.5, "-o", folder / "samples",
    )  # fmt: skip
    assert "3 of 6 steps reused" in ended.stderr, ended.stderr

    pipe = load_pipeline(folder / "stage1")
    assert pipe.transformer.config.conditioning == conditioning
    model, scheduler = perturbed(pipe.transformer.eval()), pipe.scheduler
    plain = sample(model, scheduler)
    enable_skip_cache(model, CachePolicy(1, interval=1), scheduler)
    assert torch.equal(sample(model, scheduler), plain)
