"""skipdit bench on any pipeline of diffusers: its rows, its limits against what the runs multiply, models alone."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from skipdit_cli import CachePolicy, add_skip_branches
from skipdit_cli.bench.run import Bench
from skipdit_cli.models import save_pipeline
from skipdit_cli.sampling.device import transformers_of
from skipdit_cli.sampling.generate import generate
from tests.support.tiny_pipelines import PIPELINES, build, sd3, settings_of
from tests.support.tiny_transformers import CONFIGS

CAT = "a red cat"
QUICK = {"num_inference_steps": 4, "seed": 3}
RUN = ("--steps", 4, "--cache-layers", 1, "--cache-interval", 2, "--rounds", 1, "--warmup", 0, "--no-exact", "--json")
CASES = ["vanilla", "vanilla-cache", "skip", "skip-cache", "fewer-steps"]
DIFFERENT = ["pixart-sigma", "flux", "lumina-2", "z-image", "mochi", "wan-2.2", "hunyuan-dit"]
"""One batch and two calls of guidance, two block lists, forwards that read masks or take lists, two transformers,
skips of its own."""


def with_branches(pipe):
    """The pipeline, with branches that do something on each transformer that has no skips of its own."""
    for transformer in transformers_of(pipe).values():
        if type(transformer).__name__ != "HunyuanDiT2DModel":
            torch.manual_seed(1)
            for linear in add_skip_branches(transformer).linears:
                torch.nn.init.normal_(linear.weight, std=0.05)
    return pipe


def picture(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
    return path


def flops_of(pipe, **settings) -> int:
    """What the transformers of a real run multiply and add, guidance and all."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        generate(pipe, [CAT], decode=False, **QUICK, **settings)
    return sum(counter.get_flop_counts()[type(pipe.transformer).__name__].values())


@pytest.mark.parametrize("name", DIFFERENT)
def test_every_row_is_there_and_its_limit_is_what_the_runs_multiply(name):
    pipe, settings = with_branches(build(name)), settings_of(name)
    policies = [CachePolicy(1, interval=2), CachePolicy(2, interval=4)]
    own = [case for case in CASES if "skip" not in case or name != "hunyuan-dit"]
    uncached, *cached = [flops_of(pipe, **settings, policy=policy) for policy in (None, *policies)]
    bench = Bench(pipe, policies, [CAT], **QUICK, **settings)
    rows = bench.run(rounds=1, warmup=0)
    assert list(dict.fromkeys(row["case"] for row in rows)) == own
    measured = [row for row in rows if row["case"] == ("vanilla-cache" if name == "hunyuan-dit" else "skip-cache")]
    assert [row["limit"] for row in measured] == pytest.approx([uncached / cost for cost in cached], rel=1e-9)
    for row in rows:
        if row["limit"] is not None:
            assert row["latent_rel_l2"] > 0 and row["psnr"] > 0 and row["ssim"] <= 1
            assert (row["temporal_difference"] is None) == (name != "wan-2.2")
    assert all(model.skip_branches for model in transformers_of(pipe).values() if name != "hunyuan-dit")
    said = " ".join(bench.report(rows, name, {})["notes"])
    assert ("skips of its own" in said) == (name == "hunyuan-dit") and "convert' adds them" not in said


def test_both_transformers_lose_their_branches_in_the_vanilla_rows():
    plain, pipe, settings = build("wan-2.2"), with_branches(build("wan-2.2")), settings_of("wan-2.2")
    bench = Bench(pipe, [CachePolicy(1)], [CAT], **QUICK, **settings)
    bench.run(rounds=1, warmup=0)
    assert torch.equal(bench.generated[0].latents, generate(plain, [CAT], **QUICK, **settings).latents)


@pytest.mark.parametrize("converted", [True, False])
def test_from_an_image_through_the_command(skipdit, tmp_path, converted):
    """The text-to-image folder's sibling takes the image, as in ``sample``; of 8 steps half are run."""
    torch.manual_seed(0)
    save_pipeline(with_branches(sd3()) if converted else sd3(), tmp_path / "model")
    given = ("bench", "-m", tmp_path / "model", "--prompt", CAT, *PIPELINES["sd3"][1], *RUN, "--steps", 8)
    start = ("--image", picture(tmp_path / "start.png"), "--strength", 0.5)
    ran = skipdit(*given, *start, "-o", tmp_path / "out")
    assert ran.code == 0, ran.stderr
    rows = {row["case"]: row for row in ran.json["rows"]}
    assert list(rows) == [case for case in CASES if converted or "skip" not in case]
    assert {(row["full_steps"], row["steps"]) for name, row in rows.items() if "cache" in name} == {(2, 4)}
    assert rows["fewer-steps"]["limit"] == 4 / rows["fewer-steps"]["steps"]
    assert ran.json["image"].endswith("start.png") and ran.json["prompt"] == [CAT]
    assert "height 16 x width 16" in (tmp_path / "out" / "bench.md").read_text()
    assert json.loads((tmp_path / "out" / "bench.json").read_text())["rows"] == ran.json["rows"]
    refused = [
        (("--strength", 0.5), "without --image"),
        (("--image", tmp_path / "no.png"), "which is not a file"),
        (("--num-frames", 0), "--num-frames 0 but expected 1 or more"),
        (("--num-frames", 5), "this model makes images"),
        (("--height", 15), "--height 15 but expected a multiple"),
        (("--pipeline-arg", "prompt_3"), "expected KEY=VALUE"),
        (("--pipeline-arg", "moon=1"), "which a StableDiffusion3Pipeline does not take"),
        (("--lora", tmp_path / "none"), "which does not exist"),
        (("--cpu-offload", "group"), "this run is on the CPU"),
    ]
    for flags, says in refused if converted else ():
        ran = skipdit(*given, *flags, "-o", tmp_path / "bad")
        assert ran.code == 2 and says in ran.stderr, ran.stderr
        assert not list(tmp_path.glob("bad*"))


def test_a_missed_speedup_and_a_card_without_guidance(skipdit, tmp_path):
    save_pipeline(build("flux-2-klein"), tmp_path / "plain")
    model = tmp_path / "model"
    assert skipdit("convert", tmp_path / "plain", "-o", model, "--no-verify").code == 0
    ran = skipdit("bench", "-m", model, "--prompt", CAT, *PIPELINES["flux-2-klein"][1], *RUN, "--update-card",
                  "--min-speedup", 1000)  # fmt: skip
    assert ran.code == 3 and "--min-speedup 1000" in ran.stderr
    assert "| skip-cache | 1 | every 2 |" in (model / "README.md").read_text()


@pytest.mark.parametrize("name", ["HunyuanDiT2DModel", "CogVideoXTransformer3DModel", "Lumina2Transformer2DModel"])
def test_a_transformer_of_texts_is_timed_alone(skipdit, tmp_path, name):
    preset = tmp_path / "own.yaml"
    preset.write_text(yaml.safe_dump({"model": {"class": name, "config": json.loads(json.dumps(CONFIGS[name]))}}))
    ran = skipdit("bench", "--preset", preset, "--random-weights", *RUN)
    assert ran.code == 0, ran.stderr
    rows = {row["case"]: row for row in ran.json["rows"]}
    assert list(rows) == [case for case in CASES if "skip" not in case or name != "HunyuanDiT2DModel"]
    assert all(row["psnr"] is None and np.isfinite(row["latent_rel_l2"] or 0) for row in rows.values())
    assert 1 < rows["vanilla-cache"]["limit"] < 2 and ran.json["guidance_scale"] is None
    assert any("No texts" in note for note in ran.json["notes"])
    for flag, value in {"--prompt": CAT, "--guidance-scale": 3, "--height": 16}.items():
        refused = skipdit("bench", "--preset", preset, "--random-weights", *RUN, flag, value)
        assert refused.code == 2 and "leave it out" in refused.stderr
