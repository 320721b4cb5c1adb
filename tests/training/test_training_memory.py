"""Training on a device that is too small for a step: the error says what takes how much, and what would fit."""

import functools
import re

import pytest
import torch
from diffusers import DiTTransformer2DModel
from PIL import Image

from skipdit_cli.planning.hardware.footprint import Workload, training_footprint


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_step_that_does_not_fit_says_what_would(skipdit, tiny_pipeline, tmp_path, monkeypatch):
    forward = DiTTransformer2DModel.forward

    @functools.wraps(forward)
    def forward_of_few(self, hidden_states, *args, **kwargs):
        is_real = type(next(self.parameters())) is torch.nn.Parameter  # not the copy that the figures are counted on
        if len(hidden_states) > 4 and is_real:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return forward(self, hidden_states, *args, **kwargs)

    for i in range(8):
        (tmp_path / "images" / str(i)).mkdir(parents=True)
        Image.new("L", (8, 8), i).save(tmp_path / "images" / str(i) / "0.png")
    model, data = tiny_pipeline(num_layers=2), tmp_path / "images"
    converted = tmp_path / "converted"
    assert skipdit("convert", model, "-o", converted).code == 0
    monkeypatch.setattr(DiTTransformer2DModel, "forward", forward_of_few)
    shared = ("finetune", "-m", converted, "--data", data, "--train", "all", "--max-train-steps", 1)
    ran = skipdit(*shared, "--train-batch-size", 8, "-o", tmp_path / "run")
    assert ran.code == 1 and "Traceback" not in ran.stderr
    sentence = " ".join(ran.stderr.split())
    for words in ("out of memory in a training step", "of main memory were free", "weights", "optimizer", "EMA"):
        assert words in sentence
    assert re.search(r"activations of a batch of 8 \d+\.\d+", sentence)
    assert "--gradient-checkpointing would bring that to" in sentence and "--train-batch-size 2 would" in sentence


def test_the_figures_are_those_of_the_plan(tiny_dit):
    from skipdit_cli.planning.hardware.device_memory import ONE, place
    from skipdit_cli.planning.hardware.out_of_memory import explain

    model, workload = tiny_dit(sample_size=64, num_layers=1), Workload(32, only_branches=None)
    placement = place(ONE, training_footprint(model, workload), 1)
    message = explain(model, workload, torch.device("cpu"), "23.1 of 24.0 GiB")
    assert f"needs {placement.peak / (1 << 30):.2f} GiB" in message and "(23.1 of 24.0 GiB)" in message
