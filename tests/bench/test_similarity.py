"""The similarity of features between steps, the full steps of a run, and ``bench --html``."""

import pytest
import torch

from skipdit_cli import CachePolicy, add_skip_branches, load_pipeline
from skipdit_cli.bench.similarity import measure_similarity
from skipdit_cli.sampling.generate import generate

RUN = {"guidance_scale": 2.0, "seed": 3, "num_inference_steps": 4}


def test_similarity_is_the_cosine_of_block_outputs_of_successive_steps(tiny_pipeline):
    pipe, outputs = load_pipeline(tiny_pipeline(num_layers=3)), []
    handle = pipe.transformer.transformer_blocks[1].register_forward_hook(lambda *call: outputs.append(call[2]))
    measured = measure_similarity(pipe, [1, 2], **RUN)
    handle.remove()
    assert [len(block) for block in measured.cosines] == [3, 3, 3] and len(outputs) == 4
    expected = torch.nn.functional.cosine_similarity(outputs[2].flatten(), outputs[1].flatten(), dim=0)
    assert measured.cosines[1][1] == pytest.approx(float(expected), abs=1e-6)
    assert -1 <= measured.mean <= 1
    assert all(not block._forward_hooks for block in pipe.transformer.transformer_blocks)
    assert measure_similarity(pipe, [1], **{**RUN, "num_inference_steps": 1}) is None


def test_similarity_of_units_of_two_blocks(latte_pipeline):
    pipe = load_pipeline(latte_pipeline(num_layers=4))
    add_skip_branches(pipe.transformer)
    measured = measure_similarity(pipe, [1, 2, 3, 4, 5], batch_size=2, **RUN)
    assert [len(block) for block in measured.cosines] == [3, 3, 3, 3]


def test_a_run_tells_its_full_steps(tiny_pipeline):
    pipe = load_pipeline(tiny_pipeline())
    assert generate(pipe, [1], **RUN).full_steps == (0, 1, 2, 3)
    assert generate(pipe, [1], policy=CachePolicy(1, full_steps=(0, 2)), **RUN).full_steps == (0, 2)


QUICK = (
    "--steps",
    4,
    "--rounds",
    1,
    "--warmup",
    0,
    "--class-labels",
    "1,2",
    "--cache-interval",
    2,
    "--no-exact",
    "--json",
)


def test_bench_writes_a_report(skipdit, tiny_pipeline, tmp_path):
    file = tmp_path / "new" / "report.html"
    ran = skipdit("bench", "-m", tiny_pipeline(num_layers=4), *QUICK, "--html", file)
    assert ran.code == 0 and f"Wrote {file}, which opens in a browser." in ran.stderr, ran.stderr
    page = file.read_text()
    assert "Compare the pictures" in page and "of the cost, this model" in page and "1: class 1" in page
    assert page.count("<title>block ") == 4 * 3 and "vanilla, every 2, taylor2 residual, N=1: 2 of 4 steps" in page
    again = skipdit("bench", "-m", tmp_path / "tiny", *QUICK, "--html", file)
    assert again.code == 2 and f"Output {file} exists" in again.stderr
    other = skipdit("bench", "-m", tmp_path / "tiny", *QUICK, "--html", tmp_path / "report.pdf")
    assert other.code == 2 and "report.pdf but expected a .html file" in other.stderr
