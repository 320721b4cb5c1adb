"""Study ``released`` on tiny files of the official layouts: conversion, schedules, inputs of evaluations, resume."""

import argparse
import re

import numpy as np
import pytest
import torch

from skipdit_cli.errors import UsageError
from skipdit_cli.studies.released_weights.released_models import MODELS, count_reused
from skipdit_cli.studies.released_weights.requirements import read_prompts
from tests.support.pipeline_parts import tiny_vae

PRESET = """about: toy
source: tests
experiment: {{study: released, models: [{models}], weights: {weights}, intervals: [2], image_samples: 3,
  video_samples: 2, videos_per_prompt: 2, video_prompts: {weights}/prompts.txt, image_prompts: {weights}/prompts.txt,
  latency_rounds: 1, num_inference_steps: {steps}, tflops: 100, num_attention_heads: 2, sample_size: 8,
  num_frames: 3}}
"""
DEPTH, PAIRS = 10, 5
"""Blocks and branches of the image model: the official schedule keeps 4 blocks at each end live."""


def deeper(state: dict) -> dict:
    """Return an official image model of more blocks, those of the golden one again and again."""
    other = {name: tensor for name, tensor in state.items() if not re.match(r"blocks\.|skip_", name)}
    for part, source, target in (("blocks", 6, DEPTH), ("skip_norms", 3, PAIRS), ("skip_linears", 3, PAIRS)):
        for number in range(target):
            start = f"{part}.{number % source}."
            other |= {
                f"{part}.{number}.{name.removeprefix(start)}": tensor
                for name, tensor in state.items()
                if name.startswith(start)
            }
    return other


@pytest.fixture
def weights(golden, text_pipeline, tmp_path):
    """Write tiny files under the released names into a folder."""
    folder = tmp_path / "weights"
    folder.mkdir()
    with torch.serialization.safe_globals([argparse.Namespace]):
        image = torch.load(golden("dit_skip").checkpoint, weights_only=True)["ema"]
    torch.save({"ema": deeper(image)}, folder / "DiT-XL-2-skip.pt")
    names = {"ffs": "latte_skip_uncond", "ucf101": "latte_skip_cond", "t2v": "latte_t2v_skip"}
    for model, case in names.items():
        (folder / MODELS[model].file).symlink_to(golden(case).checkpoint)
    tiny_vae().save_pretrained(folder / "sd-vae-ft-mse")
    (folder / "Latte-1").symlink_to(text_pipeline)
    (folder / "prompts.txt").write_text("a cat on a roof\n\na dog, asleep\n")
    return folder


@pytest.fixture
def study(skipdit, tmp_path, weights):
    """``study(models, *flags)`` is the outcome of the study on the tiny files."""

    def run(models: str, *flags, steps: int = 4):
        preset = tmp_path / "toy.yaml"
        preset.write_text(PRESET.format(models=models, weights=weights, steps=steps))
        return skipdit("study", "released", "--preset", preset, "-o", tmp_path / "run", "--json", *flags)

    return run


def test_it_converts_samples_times_and_makes_inputs(study, tmp_path):
    ended = study("c2i, t2v", steps=2)
    assert ended.code == 0, ended.stderr
    run, numbers = tmp_path / "run", ended.json["numbers"]
    assert numbers["inputs"][0] == {"name": "c2i-uncached", "input": "c2i-uncached/samples.npz", "samples": 3}
    assert np.load(run / "c2i-n2" / "samples.npz")["arr_0"].shape == (3, 16, 16, 3)
    expected = {f"{prompt}-{index}.mp4" for prompt in ("a cat on a roof", "a dog, asleep") for index in (0, 1)}
    assert {path.name for path in (run / "vbench" / "t2v-n2").iterdir()} == expected
    first, files = run / "vbench" / "t2v-n2" / "a dog, asleep-0.mp4", sorted((run / "t2v-n2").glob("[0-9]*.mp4"))
    assert first.read_bytes() == files[2].read_bytes()
    latency = numbers["latency"]
    assert set(latency) == {f"{name}-{case}" for name in ("c2i", "t2v") for case in ("uncached", "n2")}
    assert latency["c2i-n2"]["paper"] == 1.46 and latency["t2v-n2"]["paper_psnr"] == 29.5
    assert latency["t2v-uncached"]["speedups"] == [1.0]
    page = (run / "report.html").read_text()
    assert "1.46" in page and "vbench/t2v-n2" in page and "do not apply" in page


def test_an_interrupted_run_goes_on(study, tmp_path, monkeypatch):
    from skipdit_cli.studies import released

    def interrupt(**arguments):
        raise KeyboardInterrupt

    latency = released.latency
    interrupt.__qualname__ = latency.__qualname__
    monkeypatch.setattr(released, "latency", interrupt)
    assert study("ucf101", steps=2).code == 130
    made = tmp_path / "run" / "ucf101-n2" / "samples.npz"
    before = made.stat().st_mtime_ns
    monkeypatch.setattr(released, "latency", latency)
    ended = study("ucf101", steps=2)
    assert ended.code == 0, ended.stderr
    assert made.stat().st_mtime_ns == before and len(ended.json["numbers"]["inputs"]) == 2
    assert np.load(made)["arr_0"].shape == (2, 4, 16, 16, 3)


def test_it_says_what_it_needs_and_refuses_to_begin_without(study, weights, tmp_path):
    (weights / "DiT-XL-2-skip.pt").unlink()
    dry = study("c2i, ffs", "--dry-run")
    assert dry.code == 0 and not (tmp_path / "run").exists()
    needs = "\n".join(dry.json["needs"])
    assert f"MISSING: {weights}/DiT-XL-2-skip.pt (https://huggingface.co/GuanjieChen/Skip-DiT)" in needs
    assert f"present: {weights}/ffs-skip.pt" in needs and "GB" in needs and "hours" in needs and "3 samples" in needs
    refused = study("c2i, ffs")
    assert refused.code == 2 and not (tmp_path / "run").exists()
    assert "1 missing file" in refused.stderr and "DiT-XL-2-skip.pt (https" in refused.stderr
    assert "ffs-skip.pt" not in refused.stderr
    unknown = study("dit")
    assert unknown.code == 2 and "expected some of c2i" in unknown.stderr


def test_the_official_schedules_reuse_as_many_steps_as_the_official_code():
    counts = {
        "skip-dit-c2i-n{}": (250, [122, 163, 183, 196]),
        "skip-dit-c2v-n{}": (250, [107, 142, 160, 170, 178]),
        "skip-dit-ucf101-n{}": (50, [22, 29, 33, 34, 36]),
        "skip-dit-t2v-n{}-700-50": (50, [17, 22, 25]),
        "skip-hunyuan-dit-n{}": (100, [33]),
    }
    for preset, (steps, reused) in counts.items():
        last = MODELS["hunyuan"].last_timestep if "hunyuan" in preset else 0
        assert [count_reused(preset.format(n), steps, last) for n in range(2, 2 + len(reused))] == reused


def test_prompts_that_cannot_name_a_file_are_refused(tmp_path):
    file = tmp_path / "prompts.txt"
    for text in ("either/or", "long " * 60):
        file.write_text(text)
        with pytest.raises(UsageError, match="cannot name a file"):
            read_prompts(str(file))
